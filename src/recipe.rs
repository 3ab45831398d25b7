//! Which passes run, in which order, with which options. The one place that reads `passes::ALL`.
//!
//! A recipe is written on the command line (`prune(sparsity=0.5),binarize`) or in a TOML file
//! (docs/architecture.md, "Recipes"); both come out as the same steps.

use crate::emit::{Emit, SignPlanes, Target, refused};
use crate::model::Model;
use crate::pass::{Entry, Pass};
use crate::{Error, Result, passes};
use serde_json::{Value as Json, json};
use toml::{Table, Value};

/// Passes in the order they run.
#[derive(Debug, Default)]
pub struct Recipe {
    pub steps: Vec<Step>,
    /// Forms for other software besides.
    pub emit: Emit,
}

/// One pass with all its options, those not given at their defaults.
#[derive(Debug)]
pub struct Step {
    pub name: &'static str,
    pub options: Table,
    pub pass: Box<dyn Pass>,
}

impl Recipe {
    /// Parses `prune(sparsity=0.5),binarize(planes=2, rank=16)`. Nothing at all is the empty recipe.
    ///
    /// # Errors
    /// [`Error::Recipe`] where the text breaks the grammar, and what [`Recipe::from_steps`] refuses; [`Error::Option`] for an
    /// option that has no say beside another.
    pub fn parse(text: &str, set: &[String]) -> Result<Recipe> {
        let steps = split(text)?
            .into_iter()
            .map(|step| {
                let (name, options) = match step.split_once('(') {
                    None => (step, Table::new()),
                    Some((name, rest)) => {
                        let inside =
                            rest.strip_suffix(')').ok_or_else(|| bad(step, "a `)` at its end"))?;
                        (name, options(inside)?)
                    }
                };
                Ok((name.trim().to_string(), options))
            })
            .collect::<Result<Vec<_>>>()?;
        let typed: Vec<Table> = steps.iter().map(|(_, options)| options.clone()).collect();
        let recipe = Recipe::from_steps(steps, set)?;
        for (step, typed) in recipe.steps.iter().zip(typed) {
            let Some((option, other)) = step.pass.ignores() else { continue };
            if let Some(value) = typed.get(option) {
                return Err(Error::Option {
                    pass: step.name,
                    option,
                    found: value.to_string(),
                    expected: format!("none beside `{other}`"),
                });
            }
        }
        Ok(recipe)
    }

    /// Parses a TOML recipe: `version = 1`, then one `[[step]]` a pass, with `pass` and its options.
    ///
    /// # Errors
    /// [`Error::Recipe`] for broken TOML, other versions and unknown keys, and what
    /// [`Recipe::from_steps`] refuses.
    pub fn from_toml(text: &str, set: &[String]) -> Result<Recipe> {
        let (steps, mut others) = read_table(text)?;
        let emit = emit(&mut others)?;
        nothing_left(&others, "`version`, `emit`, `onnx_binary` and `[[step]]`")?;
        Ok(Recipe { emit, ..Recipe::from_steps(steps, set)? })
    }

    /// Checks that every pass knows what the family of `model` has.
    ///
    /// # Errors
    /// As [`fits`].
    pub fn check_family(&self, model: &Model) -> Result<()> {
        self.steps
            .iter()
            .try_for_each(|step| fits(step.name, step.pass.needs_plain_layers(), model))
    }

    /// Checks that every target that is to be written can carry what becomes of `model`, as far as that is known before
    /// passes run. `data`: whether there is text to train on.
    ///
    /// # Errors
    /// [`Error::Mismatch`], with what is in the way and the targets that carry it.
    pub fn check_emit(&self, model: &Model, data: bool) -> Result<()> {
        self.emit.check(model)?;
        for step in &self.steps {
            for &target in &self.emit.targets {
                if let Some(why) = step.pass.refuses(target, data) {
                    let carries = |other: Target| {
                        let passes =
                            self.steps.iter().all(|s| s.pass.refuses(other, data).is_none());
                        passes && other.refusal(model).is_none()
                    };
                    return Err(refused(target, format!("after `{}` {why}", step.name), carries));
                }
            }
        }
        Ok(())
    }

    /// Checks names, options and order; `set` holds overrides like `prune.sparsity=0.6`.
    ///
    /// # Errors
    /// Unknown passes and options, with the nearest known name; options of the wrong type or outside
    /// their range; a pass after one that forbids it.
    pub fn from_steps(mut steps: Vec<(String, Table)>, set: &[String]) -> Result<Recipe> {
        for set in set {
            let (key, value) =
                set.split_once('=').ok_or_else(|| bad(set, "`pass.option=value` in --set"))?;
            let (name, option) =
                key.split_once('.').ok_or_else(|| bad(set, "`pass.option=value` in --set"))?;
            let mut found = false;
            for (_, options) in steps.iter_mut().filter(|(step, _)| step == name.trim()) {
                options.insert(option.trim().to_string(), parse_value(value.trim())?);
                found = true;
            }
            if !found {
                return Err(bad(&format!("--set {set}"), &format!("a step `{name}` to set it in")));
            }
        }
        let steps = steps
            .into_iter()
            .map(|(name, options)| step(&name, options))
            .collect::<Result<Vec<_>>>()?;
        for (i, step) in steps.iter().enumerate() {
            let entry = entry(step.name)?;
            if let Some(later) = steps[i + 1..].iter().find(|s| entry.forbids.contains(&s.name)) {
                let (first, second) = (step.name, later.name);
                let expected = match first == second {
                    true => format!("`{first}` once: a second one cannot build on the first"),
                    false => {
                        format!(
                            "`{second}` before `{first}`: it does not run on what `{first}` leaves"
                        )
                    }
                };
                return Err(Error::Recipe {
                    found: format!("`{second}` after `{first}`"),
                    expected,
                });
            }
        }
        Ok(Recipe { steps, emit: Emit::default() })
    }

    /// As config.json and reports hold it; null for the empty recipe.
    pub fn to_json(&self) -> Json {
        if self.steps.is_empty() {
            return Json::Null;
        }
        let steps: Vec<Json> =
            self.steps.iter().map(|s| json!({"pass": s.name, "options": s.options})).collect();
        Json::Array(steps)
    }

    /// As `--passes` takes it, without the options that have their defaults.
    pub fn to_passes(&self) -> String {
        let step = |step: &Step| {
            let defaults = entry(step.name).map(|e| (e.defaults)()).unwrap_or_default();
            let given = step.options.iter().filter(|(k, v)| defaults.get(*k) != Some(*v));
            passes_step(step.name, given)
        };
        self.steps.iter().map(step).collect::<Vec<_>>().join(",")
    }

    /// As the TOML file that reproduces it.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("version = 1\n");
        if !self.emit.targets.is_empty() {
            let names: Vec<&str> = self.emit.targets.iter().map(|f| f.name()).collect();
            text += &format!("emit = {names:?}\n");
        }
        if self.emit.sign_planes != SignPlanes::default() {
            text += &format!("onnx_binary = \"{}\"\n", self.emit.sign_planes.name());
        }
        for step in &self.steps {
            text += &format!("\n[[step]]\npass = \"{}\"\n{}", step.name, step.options);
        }
        text
    }
}

/// Checks that the pass `name` knows what the family of `model` has: `does` is its [`Pass::needs_plain_layers`].
///
/// # Errors
/// [`Error::Mismatch`], with the feature that is in the way and the passes that run.
pub fn fits(name: &str, does: Option<&str>, model: &Model) -> Result<()> {
    let (Some(feature), Some(does)) = (model.family.feature, does) else {
        return Ok(());
    };
    let runs = |entry: &&Entry| {
        (entry.parse)(Table::new()).is_ok_and(|pass| pass.needs_plain_layers().is_none())
    };
    let others: Vec<&str> = passes::ALL.iter().filter(runs).map(|entry| entry.name).collect();
    Err(Error::Mismatch {
        found: format!("family `{}` has {feature}", model.family.model_type),
        expected: format!("`{name}` {does}, of all passes {} run there", others.join(", ")),
        advice: "leave it out, or start from a model of another family",
    })
}

/// Names and options of the steps of a TOML recipe, unchecked.
///
/// # Errors
/// [`Error::Recipe`] for broken TOML, other versions and unknown keys.
pub fn read_toml(text: &str) -> Result<Vec<(String, Table)>> {
    let (steps, others) = read_table(text)?;
    nothing_left(&others, "`version` and `[[step]]`")?;
    Ok(steps)
}

fn nothing_left(table: &Table, known: &str) -> Result<()> {
    match table.keys().next() {
        Some(key) => Err(bad(&format!("key `{key}`"), known)),
        None => Ok(()),
    }
}

/// The steps, and the keys beside them.
fn read_table(text: &str) -> Result<(Vec<(String, Table)>, Table)> {
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| Error::Recipe {
        found: e.message().to_string(),
        expected: match e.span() {
            Some(span) => {
                let before = text.get(..span.start).unwrap_or(text);
                format!("TOML, on line {}", 1 + before.matches('\n').count())
            }
            None => "TOML".into(),
        },
    })?;
    match table.remove("version") {
        Some(Value::Integer(1)) => {}
        found => {
            let found = found.map_or("no `version`".into(), |v| format!("`version = {v}`"));
            return Err(Error::Recipe { found, expected: "`version = 1`".into() });
        }
    }
    let steps = match table.remove("step") {
        None => Vec::new(),
        Some(Value::Array(steps)) => steps,
        Some(other) => return Err(bad(&other.to_string(), "`[[step]]` tables")),
    };
    let steps = steps
        .into_iter()
        .map(|step| {
            let Value::Table(mut options) = step else {
                return Err(bad(&step.to_string(), "a `[[step]]` table"));
            };
            match options.remove("pass") {
                Some(Value::String(name)) => Ok((name, options)),
                _ => Err(bad("a step without a name", "`pass = \"…\"` in every `[[step]]`")),
            }
        })
        .collect::<Result<_>>()?;
    Ok((steps, table))
}

/// The keys of a recipe that say what is written besides.
fn emit(table: &mut Table) -> Result<Emit> {
    let names: Vec<String> = match table.remove("emit") {
        None => Vec::new(),
        Some(found) => {
            let said = found.to_string();
            found.try_into().map_err(|_| bad(&format!("`emit = {said}`"), "a list of names"))?
        }
    };
    let planes = match table.remove("onnx_binary") {
        None => None,
        Some(Value::String(name)) => Some(SignPlanes::named(&name)?),
        Some(other) => return Err(bad(&format!("`onnx_binary = {other}`"), "a name")),
    };
    Emit::new(&names, planes)
}

/// The entry of the pass `name`.
///
/// # Errors
/// [`Error::UnknownPass`], with the nearest known name.
pub fn entry(name: &str) -> Result<&'static Entry> {
    passes::ALL.iter().find(|e| e.name == name).ok_or_else(|| {
        let names: Vec<&str> = passes::ALL.iter().map(|e| e.name).collect();
        Error::UnknownPass {
            found: name.to_string(),
            nearest: nearest(name, &names),
            known: names.join(", "),
        }
    })
}

fn step(name: &str, given: Table) -> Result<Step> {
    let entry = entry(name)?;
    let mut options = (entry.defaults)();
    let asked: Vec<String> = given.keys().cloned().collect();
    for (key, value) in given {
        let Some(default) = options.get(&key) else {
            let known: Vec<&str> = options.keys().map(String::as_str).collect();
            return Err(Error::UnknownOption {
                pass: name.to_string(),
                nearest: nearest(&key, &known),
                known: known.join(", "),
                found: key,
            });
        };
        // `sparsity=1` is a number all the same.
        let value = match (default, value) {
            (Value::Float(_), Value::Integer(i)) => Value::Float(i as f64),
            (_, value) => value,
        };
        options.insert(key, value);
    }
    let pass = (entry.parse)(options.clone()).map_err(|e| {
        // The first that is not even right by itself.
        let alone = |key: &String| {
            let one = Table::from_iter([(key.clone(), options[key].clone())]);
            Some((key.clone(), (entry.parse)(one).err()?))
        };
        let (key, e) = asked.iter().find_map(alone).map_or((None, e), |(key, e)| (Some(key), e));
        let found = match &key {
            Some(key) => format!("`{key}={}` of `{name}`", options[key]),
            None => format!("options of `{name}`"),
        };
        match wanted(e.message()) {
            Some(takes) => {
                let expected = format!("{takes}; `compress passes {name}` says more");
                Error::Recipe { found, expected }
            }
            None => Error::Recipe {
                found: format!("{found} ({})", e.message()),
                expected: format!("what `compress passes {name}` lists"),
            },
        }
    })?;
    pass.check()?;
    Ok(Step { name: entry.name, options, pass })
}

/// What an option takes, of the message of serde that it was something else, where that says so.
fn wanted(message: &str) -> Option<&str> {
    let (_, takes) = message.rsplit_once("expected ")?;
    Some(match takes {
        "f64" | "f32" => "a number, as 0.5",
        "usize" | "u64" | "u32" => "a whole number, 0 or more",
        "a boolean" => "true or false",
        "a string" => "a word",
        other => other,
    })
}

/// Splits at commas that stand in no parentheses, brackets or quotes.
fn split(text: &str) -> Result<Vec<&str>> {
    let (mut parts, mut depth, mut start, mut quoted) = (Vec::new(), 0i32, 0, false);
    for (i, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '(' | '[' if !quoted => depth += 1,
            ')' | ']' if !quoted => depth -= 1,
            ',' if depth == 0 && !quoted => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
        if depth < 0 {
            return Err(bad(text, "every `)` after a `(`"));
        }
    }
    if depth != 0 || quoted {
        return Err(bad(text, "every `(` and quote closed"));
    }
    parts.push(text[start..].trim());
    match parts.iter().any(|p| p.is_empty()) {
        true if text.trim().is_empty() => Ok(Vec::new()),
        true => Err(bad(text, "a name on both sides of each comma")),
        false => Ok(parts),
    }
}

fn options(inside: &str) -> Result<Table> {
    split(inside)?
        .into_iter()
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(|| bad(pair, "`option=value`"))?;
            Ok((key.trim().to_string(), parse_value(value.trim())?))
        })
        .collect()
}

/// A TOML value; a bare word is a string, and so is a path.
fn parse_value(text: &str) -> Result<Value> {
    if let Ok(mut table) = format!("v = {text}").parse::<Table>()
        && let Some(value) = table.remove("v")
    {
        return Ok(value);
    }
    match !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./%".contains(c)) {
        true => Ok(Value::String(text.to_string())),
        false => Err(bad(text, "a number, true, false, or a word")),
    }
}

/// One step as `--passes` takes it.
pub fn passes_step<'a>(
    name: &str,
    options: impl Iterator<Item = (&'a String, &'a Value)>,
) -> String {
    let value = |value: &Value| match value {
        // Quotes only where the word would be read as something else.
        Value::String(word) if parse_value(word).is_ok_and(|read| read == *value) => word.clone(),
        other => other.to_string(),
    };
    let given: Vec<String> = options.map(|(k, v)| format!("{k}={}", value(v))).collect();
    match given.is_empty() {
        true => name.to_string(),
        false => format!("{name}({})", given.join(",")),
    }
}

fn bad(found: &str, expected: &str) -> Error {
    Error::Recipe { found: format!("`{found}`"), expected: expected.into() }
}

/// `, did you mean …?`, if something known is close.
fn nearest(found: &str, known: &[&str]) -> String {
    known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(found, k), k))
        .filter(|(distance, k)| *distance <= 1 + k.len() / 3)
        .min()
        .map_or(String::new(), |(_, k)| format!(", did you mean `{k}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Recipe::parse(text, &[]).expect_err("a broken recipe").to_string()
    }

    #[test]
    fn the_command_line_and_toml_say_the_same() {
        let line = Recipe::parse("prune(sparsity=0.6, shape=uniform),binarize(rank=16)", &[]);
        let line = line.expect("a recipe");
        let file = Recipe::from_toml(&line.to_toml(), &[]).expect("its own TOML");
        assert_eq!(line.to_json(), file.to_json());
        assert_eq!(line.steps[0].options["shape"].as_str(), Some("uniform"));
    }

    #[test]
    fn recipes_of_this_repository_are_read() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut read = 0;
        for file in std::fs::read_dir(folder).expect("a folder") {
            let path = file.expect("a file").path();
            let text = std::fs::read_to_string(&path).expect("text");
            let recipe = Recipe::from_toml(&text, &[]).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            assert!(!recipe.steps.is_empty(), "{path:?}");
            read += 1;
        }
        assert!(read > 0, "no recipe");
    }

    #[test]
    fn a_path_needs_quotes_only_where_it_is_no_word() {
        let masks = |value: &str| {
            let recipe = Recipe::parse(&format!("prune(masks={value})"), &[]).expect("a recipe");
            recipe.steps[0].options["masks"].as_str().expect("a string").to_string()
        };
        assert_eq!(masks("../a-b/zs.safetensors"), "../a-b/zs.safetensors");
        assert_eq!(masks("\"a b, c/zs\""), "a b, c/zs");
    }

    #[test]
    fn passes_are_written_as_they_are_read() {
        let text = "vocab(keep=[\"en.tsv\", \"5\"]),prune(masks=\"a b, c/zs\"),embed(method=int8),binarize(damp=0.1,rank=16)";
        let recipe = Recipe::parse(text, &[]).expect("a recipe");
        assert_eq!(recipe.to_passes(), text);
        let defaults = Recipe::parse("prune(sparsity=0.25, rounds=0)", &[]).expect("a recipe");
        assert_eq!(defaults.to_passes(), "prune");
    }

    #[test]
    fn an_option_without_a_say_is_refused_where_it_was_typed() {
        insta::assert_snapshot!(error("binarize(planes=2,bits=2.5)"), @"pass `binarize`: `planes` is 2, expected none beside `bits`");
        assert!(error("binarize(planes=2,size=1MB)").contains("none beside `size`"));
        assert!(error("binarize(form=double,planes=2)").contains("none beside `form=double`"));
        // A recipe that was written out names every option.
        let mixed = Recipe::parse("binarize(bits=2.5)", &[]).expect("a recipe");
        assert!(mixed.to_toml().contains("planes = 2"));
        assert!(Recipe::from_toml(&mixed.to_toml(), &[]).is_ok());
    }

    #[test]
    fn nothing_is_the_empty_recipe() {
        assert!(Recipe::parse("", &[]).expect("empty").steps.is_empty());
        assert_eq!(Recipe::default().to_json(), Json::Null);
    }

    #[test]
    fn set_overrides_every_step_of_that_name() {
        let recipe = Recipe::parse("prune", &["prune.sparsity=0".into()]).expect("a recipe");
        assert_eq!(recipe.steps[0].options["sparsity"].as_float(), Some(0.0));
        let error = Recipe::parse("prune", &["binarize.rank=1".into()]).expect_err("no such step");
        insta::assert_snapshot!(error, @"cannot read the recipe: found `--set binarize.rank=1`, expected a step `binarize` to set it in");
    }

    #[test]
    fn mistakes_are_named_with_what_was_meant() {
        insta::assert_snapshot!(error("prunne"), @"no pass is named `prunne`, did you mean `prune`?; this build knows: vocab, prune, tokens, embed, binarize, quantize, distill");
        insta::assert_snapshot!(error("prune(sparcity=0.5)"), @"pass `prune` has no option `sparcity`, did you mean `sparsity`?; it knows: batch, dropout, finetune, finetune_rate, flops, hidden, mask_rate, masks, matching, mode, params, prediction, rate, rearrange, repair, round_to, rounds, save_masks, shape, sparsity, speedup, start, steps, temperature, warmup, width");
        insta::assert_snapshot!(error("prune(sparsity=high)"), @r#"cannot read the recipe: found `sparsity="high"` of `prune`, expected a number, as 0.5; `compress passes prune` says more"#);
        insta::assert_snapshot!(error("prune(rate=0.1,sparsity=50%)"), @r#"cannot read the recipe: found `sparsity="50%"` of `prune`, expected a number, as 0.5; `compress passes prune` says more"#);
        insta::assert_snapshot!(error("binarize(planes=2.5)"), @"cannot read the recipe: found `planes=2.5` of `binarize`, expected a whole number, 0 or more; `compress passes binarize` says more");
        insta::assert_snapshot!(error("binarize(form=planar)"), @r#"cannot read the recipe: found `form="planar"` of `binarize`, expected `planes` or `double`; `compress passes binarize` says more"#);
        insta::assert_snapshot!(error("prune(masks=3)"), @"cannot read the recipe: found `masks=3` of `prune`, expected a word; `compress passes prune` says more");
        insta::assert_snapshot!(error("binarize(planes=9)"), @"pass `binarize`: `planes` is 9, expected 1, 2, 3 or 4");
        insta::assert_snapshot!(error("prune(sparsity=0.5"), @"cannot read the recipe: found `prune(sparsity=0.5`, expected every `(` and quote closed");
        insta::assert_snapshot!(error("prune,,binarize"), @"cannot read the recipe: found `prune,,binarize`, expected a name on both sides of each comma");
        insta::assert_snapshot!(error("prune(0.5)"), @"cannot read the recipe: found `0.5`, expected `option=value`");
        insta::assert_snapshot!(error("binarize,prune"), @"cannot read the recipe: found `prune` after `binarize`, expected `prune` before `binarize`: it does not run on what `binarize` leaves");
        insta::assert_snapshot!(error("binarize,binarize"), @"cannot read the recipe: found `binarize` after `binarize`, expected `binarize` once: a second one cannot build on the first");
        insta::assert_snapshot!(error("tokens,prune"), @"cannot read the recipe: found `prune` after `tokens`, expected `prune` before `tokens`: it does not run on what `tokens` leaves");
        insta::assert_snapshot!(error("tokens,binarize,tokens"), @"cannot read the recipe: found `tokens` after `tokens`, expected `tokens` once: a second one cannot build on the first");
        let toml = |text: &str| Recipe::from_toml(text, &[]).expect_err("broken").to_string();
        insta::assert_snapshot!(toml("version = 2"), @"cannot read the recipe: found `version = 2`, expected `version = 1`");
        insta::assert_snapshot!(toml("version = 1\nsteps = []"), @"cannot read the recipe: found `key `steps``, expected `version`, `emit`, `onnx_binary` and `[[step]]`");
        insta::assert_snapshot!(toml("version = 1\n[[step]]\npass = prune"), @"cannot read the recipe: found string values must be quoted, expected literal string, expected TOML, on line 3");
        insta::assert_snapshot!(toml("version = 1\n[[step]]\nsparsity = 0.5"), @"cannot read the recipe: found `a step without a name`, expected `pass = \"…\"` in every `[[step]]`");
    }
}
