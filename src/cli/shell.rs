//! `compress completions SHELL` and `compress man`: what shells and readers of manuals want, from the flags.

use super::{Cli, print};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use compress::{Error, Result};

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// A command, for its own page [default: the page of `compress` itself]
    command: Option<String>,
}

pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "compress", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub fn man(args: &ManArgs) -> Result<()> {
    let mut command = Cli::command();
    command.build(); // so that commands know whose they are
    if let Some(name) = &args.command {
        let found = command.get_subcommands().find(|c| c.get_name() == name).cloned();
        command = found.ok_or_else(|| Error::Usage {
            found: format!("there is no command `{name}`"),
            advice: "`compress --help` lists them".into(),
        })?;
    }
    let mut page = Vec::new();
    // Writing to memory cannot fail.
    let _ = Man::new(command).render(&mut page);
    print(&String::from_utf8_lossy(&page))
}
