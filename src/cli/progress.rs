//! Progress on stderr, and Ctrl-C.

use compress::pass::Progress;
use compress::{Error, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ctrl-C and SIGTERM ask the run to stop and clean up; the second time they end it at once.
pub fn catch_signals() {
    let handler = || {
        if INTERRUPTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    };
    // Where no handler can be set, a signal ends the process, and the next run removes what it left.
    let _ = ctrlc::set_handler(handler);
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// A bar with the time left on a terminal, nothing elsewhere.
pub struct Bar {
    bar: Mutex<ProgressBar>,
    draw: bool,
    quiet: bool,
}

impl Bar {
    pub fn new(quiet: bool) -> Bar {
        let draw = !quiet && std::io::stderr().is_terminal();
        Bar { bar: Mutex::new(ProgressBar::hidden()), draw, quiet }
    }

    fn bar(&self) -> std::sync::MutexGuard<'_, ProgressBar> {
        self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn finish(&self) {
        self.bar().finish_and_clear();
    }
}

impl Progress for Bar {
    fn start(&self, what: &str, total: usize) {
        let mut bar = self.bar();
        bar.finish_and_clear();
        if self.draw {
            let template = if std::env::var_os("NO_COLOR").is_some() {
                "{prefix:<22} [{bar:30}] {pos}/{len}, {eta} left  {msg}"
            } else {
                "{prefix:<22} [{bar:30.cyan}] {pos}/{len}, {eta} left  {msg}"
            };
            let style = ProgressStyle::with_template(template).expect("a constant template");
            *bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr())
                .with_style(style.progress_chars("=> "))
                .with_prefix(what.to_string());
            bar.tick();
        }
    }

    fn note(&self, words: &str) {
        self.bar().set_message(words.to_string());
    }

    fn log(&self, line: &str) {
        match (self.draw, self.quiet) {
            (true, _) => self.bar().println(line),
            (false, false) => eprintln!("{line}"),
            (false, true) => {}
        }
    }

    fn step(&self) -> Result<()> {
        self.bar().inc(1);
        self.go_on()
    }

    fn go_on(&self) -> Result<()> {
        if interrupted() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
