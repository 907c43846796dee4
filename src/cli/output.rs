//! What a command says: text or JSON on standard output, questions and complaints on standard error.
//!
//! Nothing is coloured, so there is nothing to switch off for pipes or NO_COLOR. A reader that went away is
//! [`Failure::Hangup`], never a panic.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::failure::Failure;
use super::interrupt::Interrupts;
use crate::error::Error;

/// In which form answers are printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
}

impl Output {
    /// Prints `value` as JSON, or the text made of it.
    pub fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if !self.json {
            return print(&text(value));
        }
        let mut json = serde_json::to_string_pretty(value).expect("our values have string keys");
        json.push('\n');
        print(&json)
    }

    /// Prints `value` as one line of JSON, or the text made of it in place of what the terminal showed before.
    pub fn show_again<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if self.json {
            return print(&(serde_json::to_string(value).expect("our values have string keys") + "\n"));
        }
        const HOME_AND_CLEAR: &str = "\x1b[H\x1b[2J";
        let clear = if io::stdout().is_terminal() { HOME_AND_CLEAR } else { "" };
        print(&format!("{clear}{}", text(value)))
    }
}

/// Writes to standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Hangup,
        _ => Failure::Failed(Error::io("writing to standard output", error)),
    })
}

/// Writes to standard error; if that fails there is nobody left to tell.
pub fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Aligned columns under a header, without lines around them.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// Asks before data is destroyed: `--yes` answers; without it a person at a terminal is asked, and anyone else told.
pub async fn confirm(yes: bool, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::Usage(format!("{what}: this destroys data: say so with --yes")));
    }
    complain(&format!("{what}. Type yes to go on: "));
    let mut interrupts = Interrupts::listen()?;
    let reading = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let answer = tokio::select! {
        answer = reading => answer.expect("reading does not panic"),
        () = interrupts.next() => return Err(Failure::Interrupted("not confirmed: nothing was done".into())),
    };
    let answer = answer.map_err(|error| Error::io("reading the answer", error))?;
    if answer.trim() == "yes" {
        Ok(())
    } else {
        Err(Failure::Usage("not confirmed: nothing was done".into()))
    }
}
