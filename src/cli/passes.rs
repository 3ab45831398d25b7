//! `compress passes [NAME]`

use super::{print, print_json};
use clap::Args;
use compress::Result;
use compress::recipe::entry;
use serde_json::json;

#[derive(Debug, Args)]
pub struct PassesArgs {
    /// The pass to explain
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn main(args: &PassesArgs) -> Result<()> {
    match &args.name {
        Some(name) => {
            let entry = entry(name)?;
            let defaults = (entry.defaults)();
            if args.json {
                return print_json(&json!({
                    "name": entry.name, "summary": entry.summary, "options": defaults, "readme": entry.readme,
                }));
            }
            print(entry.readme)?;
            print(&format!(
                "\nDefaults:\n\n```toml\n[[step]]\npass = \"{}\"\n{defaults}```\n",
                entry.name
            ))
        }
        None => {
            let all = compress::passes::ALL;
            if args.json {
                let list: Vec<_> = all
                    .iter()
                    .map(|e| json!({"name": e.name, "summary": e.summary, "options": (e.defaults)()}))
                    .collect();
                return print_json(&list);
            }
            for e in all {
                print(&format!("{:<10}  {}\n", e.name, e.summary))?;
            }
            print("\n`compress passes NAME` explains one, with its options.\n")?;
            Ok(())
        }
    }
}
