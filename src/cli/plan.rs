//! `compress plan MODEL --passes …`, and `--dry-run`

use super::run::RecipeArgs;
use super::texts::TextArgs;
use super::units::ShardSize;
use super::{ThreadArgs, print, print_json, tokenizer};
use clap::Args;
use compress::Result;
use compress::checkpoint::OutputFolder;
use compress::model::{Bounds, Model};
use compress::pipeline::plan::{Foreseen, PassPlan, Plan, TargetPlan, Touched};
use compress::pipeline::{root, side_files};
use compress::recipe::Recipe;
use compress::report::{Expected, SMALLER, bytes, count, giga, plain_table, span, times};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The checkpoint: a Hugging Face folder, or a .safetensors file with config.json beside it
    model: PathBuf,

    #[command(flatten)]
    recipe: RecipeArgs,

    #[command(flatten)]
    texts: TextArgs,

    #[command(flatten)]
    threads: ThreadArgs,

    /// Weight files larger than this are split: `500MB`, `5GB`, or a number of MB
    #[arg(long, alias = "shard-size", value_name = "SIZE", default_value_t)]
    max_shard_size: ShardSize,

    /// The folder that the run would write: it is checked and not touched, as a plan writes nothing
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,

    /// As on the run; a plan asks for it nowhere, as it replaces nothing
    #[arg(long)]
    force: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn main(args: &PlanArgs) -> Result<()> {
    args.threads.apply()?;
    let recipe = args.recipe.read()?;
    let output = args.output.as_deref();
    let plan = of(&args.model, &recipe, &args.texts, args.max_shard_size.0, output)?;
    show(&plan, args.json)
}

/// The plan of a run with these arguments. `output` is the folder that it would write, or replace by --force.
pub fn of(
    input: &Path,
    recipe: &Recipe,
    texts: &TextArgs,
    max_shard_bytes: u64,
    output: Option<&Path>,
) -> Result<Plan> {
    let model = Model::outline(input)?;
    recipe.check_family(&model)?;
    recipe.check_emit(&model, texts.data.is_some())?;
    if let Some(output) = output {
        OutputFolder::check(output, input, true)?;
    }
    let needed = recipe.steps.iter().any(|s| s.pass.counts_words() || s.pass.needs_tokenizer());
    let read = texts.calib() != "none" || texts.data.is_some() || texts.eval.is_some();
    let tokenizer = if needed || read { tokenizer(input)? } else { None };
    let foreseen = Foreseen {
        tokenizer: tokenizer.as_ref(),
        side_files: &side_files(&root(input), input)?,
        text: texts.foresee(&model, tokenizer.as_ref(), input)?,
        texts: texts.calib_texts,
        data: texts.data.is_some(),
        max_shard_bytes,
    };
    Plan::new(&model, input, recipe, &foreseen)
}

pub fn show(plan: &Plan, json: bool) -> Result<()> {
    if json {
        return print_json(plan);
    }
    let passes = match plan.passes.len() {
        1 => "1 pass".to_string(),
        n => format!("{n} passes"),
    };
    print(&format!(
        "plan of {passes} for {}: {} with a head for {}\n\n",
        super::plain(&plan.base_model),
        plan.family,
        plan.task
    ))?;
    let row = |name: &str, e: &Expected| {
        let cells = [span(e.params, count), span(e.bytes, count), span(e.flops, giga)];
        [vec![name.to_string()], cells.to_vec()].concat()
    };
    let mut rows = vec![row("as read", &plan.before)];
    rows.extend(plan.passes.iter().map(|pass| row(pass.name, &pass.after)));
    let flops = format!("FLOPs, 1 x {} tokens", plan.tokens);
    print(&plain_table(&["behind", "parameters", "bytes of tensors", &flops], &rows))?;
    print("\n")?;
    for pass in &plan.passes {
        print(&format!("{}: {}\n", pass.name, done(pass)))?;
    }
    print(&summary(plan))?;
    print(&plan.targets.iter().map(target).collect::<String>())
}

/// What a pass touches, and what is not known of it.
fn done(pass: &PassPlan) -> String {
    let touched = |t: &Touched| match (t.matrices, &t.after[..]) {
        (1, "cut") => format!("{} in {} cut", t.part, t.before),
        (n, "cut") => format!("{n} matrices of the {} in {} cut", t.part, t.before),
        (0 | 1, after) => format!("{} from {} to {after}", t.part, t.before),
        (n, after) => format!("{n} matrices of the {} from {} to {after}", t.part, t.before),
    };
    let said: Vec<String> =
        pass.touches.iter().map(touched).chain(pass.notes.iter().cloned()).collect();
    if said.is_empty() { "changes nothing".into() } else { said.join("; ") }
}

/// The files, and what it takes to make them.
fn summary(plan: &Plan) -> String {
    let factor = |bytes: u64| plan.file_bytes_before as f64 / bytes.max(1) as f64;
    let smaller = |bytes| times(plan.file_bytes_before as f64, bytes as f64, SMALLER);
    let Bounds { low, high } = plan.file_bytes;
    let smaller = match low == high {
        true => smaller(low),
        false if factor(high) >= 1.0 => format!("{:.2}x to {}", factor(high), smaller(low)),
        false => format!("{} to {}", smaller(high), smaller(low)),
    };
    let mut out = format!(
        "\nweight file: {} bytes ({}) of {}, {smaller}\n",
        span(plan.file_bytes, count),
        span(plan.file_bytes, bytes),
        bytes(plan.file_bytes_before),
    );
    if plan.files.len() > 1 {
        for file in &plan.files {
            out += &format!("  {}: {} bytes\n", file.name, count(file.bytes));
        }
    }
    let [low, high] = plan.bits_per_weight;
    out += &match low == high {
        true => format!("bits per weight of the layers: {low:.2}\n"),
        false => format!("bits per weight of the layers: {low:.2} to {high:.2}\n"),
    };
    out += match plan.loads_natively {
        Some(true) => "stock Transformers classes load the output\n",
        Some(false) => "stock Transformers classes do not load the output as it is\n",
        None => "whether stock Transformers classes load the output depends on what is found\n",
    };
    let estimate = &plan.estimate;
    let threads = match estimate.threads {
        1 => "1 thread".to_string(),
        n => format!("{n} threads"),
    };
    out + &format!(
        "about {} on {threads}, and {:.0} MB of memory\n",
        seconds(estimate.seconds),
        estimate.peak_memory_bytes as f64 / 1e6
    )
}

fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

fn target(target: &TargetPlan) -> String {
    let name = target.name;
    let Some(weights) = target.weight_bytes else {
        let why = target.refused.as_deref().unwrap_or_default();
        return format!("target {name}: refused, {why}\n");
    };
    let done = if target.asked { "is written" } else { "could be written" };
    let code = match target.code_bytes {
        0 => String::new(),
        code => format!(", and {} bytes of Python code", count(code)),
    };
    let (exact, rounded) = (span(weights, count), span(weights, bytes));
    format!("target {name}: {done}, {exact} bytes ({rounded}){code}\n")
}
