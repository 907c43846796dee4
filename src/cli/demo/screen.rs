//! What a person sees while the demo runs: steps that stay, and one live line below them. In a pipe the live line is
//! printed once a second.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::failure::Failure;
use crate::cli::output::print;
use crate::env::{Environment, OsEnvironment};
use crate::units::MonotonicNanos;

const LINES_APART: Duration = Duration::from_secs(1);

pub struct Screen {
    live: Option<ProgressBar>,
    clock: OsEnvironment,
    last_line: Option<MonotonicNanos>,
    steps: u32,
}

impl Screen {
    pub fn new() -> Screen {
        let live = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_draw_target(indicatif::ProgressDrawTarget::stdout());
            bar.set_style(
                ProgressStyle::with_template("   {spinner} {wide_msg}").expect("a constant template"),
            );
            bar
        });
        Screen { live, clock: OsEnvironment::new(), last_line: None, steps: 0 }
    }

    /// A numbered step.
    pub fn step(&mut self, text: &str) -> Result<(), Failure> {
        self.steps += 1;
        self.say(&format!("{}  {text}", self.steps))
    }

    /// Something that stays.
    pub fn say(&mut self, text: &str) -> Result<(), Failure> {
        self.last_line = None;
        match &self.live {
            Some(bar) => bar.suspend(|| print(&format!("{text}\n"))),
            None => print(&format!("{text}\n")),
        }
    }

    /// Something that the next one replaces.
    pub fn live(&mut self, text: &str) -> Result<(), Failure> {
        if let Some(bar) = &self.live {
            bar.set_message(text.to_owned());
            bar.tick();
            return Ok(());
        }
        let now = self.clock.monotonic();
        let soon = self.last_line.is_some_and(|last| u128::from(now.0 - last.0) < LINES_APART.as_nanos());
        if soon {
            return Ok(());
        }
        self.last_line = Some(now);
        print(&format!("     {text}\n"))
    }

    /// Takes the live line away.
    pub fn clear(&mut self) {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
            bar.reset();
        }
    }
}
