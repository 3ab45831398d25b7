//! What the binary says of itself, and of a wrong command line.

use crate::support::{Dir, Run};
use crate::tiny::Tiny;

/// One snapshot of several commands: what was typed, the exit code, stdout, stderr.
fn transcript(dir: &Dir, commands: &[&[&str]]) -> String {
    let mut text = String::new();
    for args in commands {
        let Run { code, stdout, stderr } = dir.run(args);
        let quoted = |a: &&str| {
            if a.is_empty() || a.contains(' ') { format!("'{a}'") } else { a.to_string() }
        };
        let line = args.iter().map(quoted).collect::<Vec<_>>().join(" ");
        text += &format!("$ compress {line}\n[exit {}]\n", code.unwrap());
        for (name, stream) in [("stdout", stdout), ("stderr", stderr)] {
            if !stream.is_empty() {
                text += &format!("--- {name}\n{stream}");
            }
        }
        text += "\n";
    }
    text
}

#[test]
fn help_names_every_command_and_option() {
    let dir = Dir::new();
    insta::assert_snapshot!("help", transcript(&dir, &[&["--help"]]));
    let commands = [
        "inspect", "eval", "train", "passes", "forward", "verify", "emit", "compare", "bench",
        "search", "gate",
    ]
    .map(|c| [c, "--help"]);
    insta::assert_snapshot!(
        "help_of_commands",
        transcript(&dir, &commands.each_ref().map(|c| &c[..]))
    );
}

#[test]
fn a_wrong_command_line_is_explained() {
    let dir = Dir::with_tiny();
    let commands: &[&[&str]] = &[
        &[],
        &["model", "-o", "out"],
        &["--passes", "prune", "model"],
        &["--passes", "prune", "-o", "out"],
        &["--passes", "prune", "--recipe", "r.toml", "model", "-o", "out"],
        &["--passes", "prune", "model", "-o", "out", "--sparsity", "0.5"],
        &["--passes", "prune", "model", "-o", "out", "--seed", "-1"],
        &["--passes", "prune", "model", "-o", "out", "--threads", "0"],
        &["--passes", "prune", "model", "-o", "out", "--calib-texts", "0"],
        &["--passes", "prune", "model", "-o", "out", "--max-length", "0"],
        &["--passes", "prune", "model", "-o", "out", "--max-length", "33"],
        &["inspct", "model"],
        &["inspect"],
        &["eval", "model"],
    ];
    insta::assert_snapshot!("usage", transcript(&dir, commands));
    assert!(!dir.path("out").exists());
}

#[test]
fn passes_lists_and_explains() {
    let dir = Dir::new();
    insta::assert_snapshot!(
        "passes",
        transcript(&dir, &[&["passes"], &["passes", "nosuch"], &["passes", "binarise"]])
    );
    for entry in compress::passes::ALL {
        let text = dir.ok(&["passes", entry.name]);
        assert!(text.starts_with(entry.readme), "{} starts with its README", entry.name);
        assert!(text.contains(&format!("[[step]]\npass = \"{}\"\n", entry.name)), "{text}");
    }
}

#[test]
fn a_bad_recipe_is_explained() {
    let dir = Dir::with_tiny();
    let mut text = String::new();
    for passes in [
        "pruen",
        "prune(sparsity=1)",
        "prune(sparsity=-0.1)",
        "prune(sparsity=nan)",
        "prune(sparsity=high)",
        "prune(sparsity=0.5",
        "prune(sparsty=0.5)",
        "prune(mode=text)",
        "prune(shape=round)",
        "prune,",
        "binarize(planes=0)",
        "binarize(planes=-1)",
        "binarize(rank=100000)",
        "binarize(rounds=0)",
        "binarize(group=1)",
        "binarize(damp=0)",
        "binarize,prune",
        "binarize,binarize",
        "tokens,prune",
        "tokens,tokens",
    ] {
        let args = ["--passes", passes, "--calib", "none", "model", "-o", "out"];
        text += &format!("{}\n    {}\n", passes.escape_default(), dir.fails(3, &args));
    }
    for set in [
        "prune",
        "prune.sparsity",
        "binarize.planes=1",
        "prune.nosuch=1",
        "prune.sparsity=[",
        "prune.sparsity=",
    ] {
        let args = ["--passes", "prune", "--set", set, "model", "-o", "out"];
        text += &format!("--set {set}\n    {}\n", dir.fails(3, &args));
    }
    insta::assert_snapshot!("recipes", text);
}

#[test]
fn inspect_shows_what_is_there() {
    let dir = Dir::with_tiny();
    Tiny::packed().save(&dir.path("packed"));
    Tiny::masked_lm().save(&dir.path("mlm"));
    dir.ok(&["--passes", "prune(sparsity=0.6)", "--calib", "none", "model", "-o", "pruned"]);
    let commands: &[&[&str]] = &[
        &["inspect", "model"],
        &["inspect", "model/model.safetensors"],
        &["inspect", "packed"],
        &["inspect", "mlm"],
        &["inspect", "pruned"],
    ];
    insta::assert_snapshot!("inspect", transcript(&dir, commands));
}

#[test]
fn verify_says_what_it_checked() {
    let dir = Dir::with_tiny();
    dir.ok(&["--passes", "prune,binarize", "model", "-o", "out"]);
    insta::assert_snapshot!(
        "verify",
        transcript(&dir, &[&["verify", "out"], &["verify", "model"], &["verify", "nosuch"]])
    );
}

/// The table of a run, without what was timed.
#[test]
fn a_run_shows_before_and_after() {
    let dir = Dir::with_tiny();
    let args = [
        "--passes",
        "prune(sparsity=0.5),binarize(rank=1)",
        "--calib",
        "none",
        "model",
        "-o",
        "out",
    ];
    let text = dir.ok(&args);
    let timeless = |line: &str| match line.split_once(" in ") {
        Some((before, after)) if after.contains(" s; ") => {
            format!("{before} in [TIME]; {}", &after[after.find("; ").unwrap() + 2..])
        }
        _ => line.split_whitespace().collect::<Vec<_>>().join(" "), // widths depend on the latency
    };
    let lines = text.lines().filter(|l| !l.starts_with("latency")).map(timeless);
    insta::assert_snapshot!("run", lines.collect::<Vec<_>>().join("\n"));
}
