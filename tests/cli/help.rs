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
        "inspect",
        "eval",
        "train",
        "plan",
        "passes",
        "forward",
        "verify",
        "reproduce",
        "emit",
        "compare",
        "bench",
        "search",
        "gate",
        "completions",
        "man",
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
        &["--passes", "prune", "model", "-o", "out", "--max-length", "2"],
        &["--passes", "prune", "model", "-o", "out", "--max-length", "33"],
        &["inspct", "model"],
        &["inspect"],
        &["eval", "model"],
    ];
    insta::assert_snapshot!("usage", transcript(&dir, commands));
    assert!(!dir.path("out").exists());
}

/// The limit depends on the machine.
#[test]
fn threads_without_number_are_refused() {
    let dir = Dir::with_tiny();
    let message = dir.fails(2, &["eval", "model", "--data", "data.tsv", "--threads", "8000"]);
    assert!(message.starts_with("--threads is 8000; give at most "), "{message}");
    dir.ok(&["eval", "model", "--data", "data.tsv", "--threads", "64"]);
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

#[test]
fn shells_and_manuals_know_every_command_and_flag() {
    let dir = Dir::new();
    let help = dir.ok(&["--help"]);
    let flags = |text: &str| -> Vec<String> {
        let words = text.lines().filter_map(|l| l.trim_start().split("--").nth(1));
        let names = words.map(|w| w.chars().take_while(|c| c.is_alphanumeric() || *c == '-'));
        names.map(Iterator::collect).filter(|n: &String| n.len() > 2).collect()
    };
    let flags = flags(&help);
    assert!(flags.contains(&"calib-texts".into()), "{flags:?}");
    let page = dir.ok(&["man"]);
    for flag in &flags {
        let escaped = flag.replace('-', "\\-");
        assert!(page.contains(&format!("\\-\\-{escaped}")), "--{flag} is not in the manual");
    }
    assert!(page.starts_with(".ie") && page.contains(".TH compress 1"), "{}", &page[..200]);
    assert!(dir.ok(&["man", "search"]).contains(".TH compress-search 1"));
    insta::assert_snapshot!(dir.fails(2, &["man", "serch"]), @"there is no command `serch`; `compress --help` lists them");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = dir.ok(&["completions", shell]);
        for flag in &flags {
            assert!(script.contains(flag), "--{flag} is not completed by {shell}");
        }
        assert!(script.contains("reproduce"), "{shell} knows no commands");
        if shell == "bash" {
            dir.write("compress.bash", &script);
            let checked = std::process::Command::new("bash")
                .arg("-n")
                .arg(dir.path("compress.bash"))
                .status();
            // Where there is a bash, it can read it.
            assert!(checked.is_err() || checked.is_ok_and(|status| status.success()));
        }
    }
}
