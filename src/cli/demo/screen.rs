//! What a person sees while the demo runs: steps that stay, and one live line below them. In a pipe the live line is
//! printed once a second.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::failure::Failure;
use crate::cli::output::print;
use crate::env::{Environment, OsEnvironment};
use crate::units::MonotonicNanos;

const LINES_APART: Duration = Duration::from_secs(1);

pub struct Screen {
    terminal: bool,
    /// The live line, while there is one.
    bar: Option<ProgressBar>,
    clock: OsEnvironment,
    last_line: Option<MonotonicNanos>,
    steps: u32,
}

impl Screen {
    pub fn new() -> Screen {
        let terminal = std::io::stdout().is_terminal();
        Screen { terminal, bar: None, clock: OsEnvironment::new(), last_line: None, steps: 0 }
    }

    /// A numbered step.
    pub fn step(&mut self, text: &str) -> Result<(), Failure> {
        self.steps += 1;
        self.say(&format!("{}  {text}", self.steps))
    }

    /// Something that stays, in the live line's place.
    pub fn say(&mut self, text: &str) -> Result<(), Failure> {
        self.last_line = None;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        print(&format!("{text}\n"))
    }

    /// Something that the next one replaces.
    pub fn live(&mut self, text: &str) -> Result<(), Failure> {
        if self.terminal {
            let bar = self.bar.get_or_insert_with(live_line);
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
}

fn live_line() -> ProgressBar {
    let style = ProgressStyle::with_template("   {spinner} {wide_msg}").expect("a constant template");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout()).with_style(style)
}
