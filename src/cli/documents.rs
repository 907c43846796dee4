//! `completions` and `man`: what packages put beside the program, made of the very grammar that parses its arguments, so that
//! neither can say what is not so.
//!
//! A man page for each command, `afterimage-group-create(1)` say, and `afterimage(1)` over them, which also tells of exit
//! statuses, environment and files. Nothing in them depends on time or place: the same program gives the same bytes.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Command, ValueEnum};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use super::arguments::{Arguments, DEFAULT_SOCKET, SOCKET_VARIABLE};
use super::failure::{EXIT_STATUSES, Failure};
use super::place::TOKEN_VARIABLE;
use super::{logging, tools};
use crate::error::Error;

const PROGRAM: &str = "afterimage";
const SECTION: &str = "1";

/// Where packages put what, by name and meaning.
const FILES: [(&str, &str); 6] = [
    ("/etc/afterimage/afterimage.toml", "The configuration of the service; each key is explained in it."),
    (
        "/var/lib/afterimage",
        "Its data directory: journals, images, vault, catalogue, and the site key unless configured elsewhere.",
    ),
    (DEFAULT_SOCKET, "The socket of its API, for its user and root."),
    (
        "/run/afterimage/nbd.sock",
        "The socket that block clients connect to, for members of the group afterimage.",
    ),
    (tools::MOUNT_NOTES, "What `point mount` has mounted, until `point unmount`."),
    ("/usr/share/doc/afterimage", "Documents: installation, failure model, formats, limits."),
];

/// A shell that completes words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// A script that has a shell complete our arguments.
pub fn completions(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    let mut grammar = Arguments::grammar();
    grammar.build();
    clap_complete::generate(shell, &mut visible(&grammar), PROGRAM, &mut script);
    String::from_utf8(script).expect("our grammar is UTF-8")
}

/// What is listed of a command that is built; clap_complete itself would offer what is hidden, too.
fn visible(command: &Command) -> Command {
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    Command::new(command.get_name().to_owned())
        // Which an argument for the version has to have.
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        // Help and version are among the arguments already, and each command has its own copy of those for all.
        .disable_help_flag(true)
        .disable_version_flag(true)
        .disable_help_subcommand(true)
        .args(arguments.map(|argument| argument.clone().global(false)))
        .subcommands(below.map(visible))
}

/// Writes the page of each command to a directory.
pub fn write_man_pages(directory: &Path) -> Result<(), Failure> {
    if !directory.is_dir() {
        let text = format!("--to `{}`: this is no directory: create it first", directory.display());
        return Err(Failure::Usage(text));
    }
    for (name, text) in man_pages() {
        let path = directory.join(format!("{name}.{SECTION}"));
        fs::write(&path, text).map_err(|error| Error::io("writing a man page", error).at_path(&path))?;
    }
    Ok(())
}

/// The name and the text of each page.
fn man_pages() -> Vec<(String, Vec<u8>)> {
    let mut grammar = Arguments::grammar().disable_help_subcommand(true);
    grammar.build();
    let mut pages = Vec::new();
    add_pages(&grammar, None, &mut pages);
    pages
}

fn add_pages(command: &Command, parent: Option<&str>, pages: &mut Vec<(String, Vec<u8>)>) {
    let name = command.get_display_name().unwrap_or(PROGRAM).to_owned();
    let text = page(command, &name, parent).expect("memory takes what is written");
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        add_pages(below, Some(&name), pages);
    }
    pages.push((name, text));
}

fn page(command: &Command, name: &str, parent: Option<&str>) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone())
        .title(name)
        .source(format!("Afterimage {}", env!("CARGO_PKG_VERSION")))
        .manual("Afterimage");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    add_examples(command, &mut rest);
    if parent.is_none() {
        add_list(
            "EXIT STATUS",
            EXIT_STATUSES.map(|(status, meaning)| (status.to_string(), meaning.to_owned())),
            &mut rest,
        );
        add_list("ENVIRONMENT", environment(), &mut rest);
        add_list("FILES", FILES.map(|(file, meaning)| (file.to_owned(), meaning.to_owned())), &mut rest);
    }
    add_see_also(command, parent, &mut rest);
    rest.to_writer(&mut text)?;
    Ok(text)
}

/// Variables and their meanings.
fn environment() -> [(String, String); 6] {
    let entry = |name: &str, meaning: &str| (name.to_owned(), meaning.to_owned());
    [
        (
            SOCKET_VARIABLE.to_owned(),
            format!(
                "The gateway's API socket, or its URL, where --socket is not given; else {DEFAULT_SOCKET}."
            ),
        ),
        entry(TOKEN_VARIABLE, "The token that a gateway asks for over TCP, where --token-file is not given."),
        entry(
            logging::VARIABLE,
            "What `serve` logs, for example info,afterimage::journal=debug; it overrides [log] level.",
        ),
        entry("NO_COLOR", "If set, the log of `serve` has no colours on a terminal."),
        entry("TMPDIR", "Where `demo` works; else /tmp."),
        entry(
            "NOTIFY_SOCKET, WATCHDOG_USEC",
            "Set by systemd for `serve`, which tells it when it is ready and stops, and that its data threads live.",
        ),
    ]
}

/// What stands behind `--help` as an example, as it is.
fn add_examples(command: &Command, roff: &mut Roff) {
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let Some((_, lines)) = after.split_once("Example:\n") else { return };
    roff.control("SH", ["EXAMPLES"]).control("nf", []);
    for line in lines.lines() {
        roff.text([roman(line.trim())]);
    }
    roff.control("fi", []);
}

fn add_list(heading: &str, entries: impl IntoIterator<Item = (String, String)>, roff: &mut Roff) {
    roff.control("SH", [heading]);
    for (name, meaning) in entries {
        roff.control("TP", []).text([bold(name)]).text([roman(meaning)]);
    }
}

fn add_see_also(command: &Command, parent: Option<&str>, roff: &mut Roff) {
    let own = command.get_display_name().unwrap_or(PROGRAM);
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    let below = below.map(|below| format!("{own}-{}", below.get_name()));
    let names: Vec<String> = parent.map(str::to_owned).into_iter().chain(below).collect();
    roff.control("SH", ["SEE ALSO"]);
    let mut line: Vec<Inline> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let separator = if index + 1 < names.len() { ", " } else { "" };
        line.extend([italic(name.clone()), roman(format!("({SECTION}){separator}"))]);
    }
    roff.text(line);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(command: &Command, name: &str, found: &mut Vec<String>) {
        found.push(name.to_owned());
        for below in
            command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help")
        {
            commands(below, &format!("{name}-{}", below.get_name()), found);
        }
    }

    #[test]
    fn each_command_has_a_page_with_its_options_and_example() {
        let mut expected = Vec::new();
        commands(&Arguments::grammar(), PROGRAM, &mut expected);
        let pages = man_pages();
        let mut names: Vec<String> = pages.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
        for (name, text) in &pages {
            let text = std::str::from_utf8(text).unwrap();
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "SEE ALSO"] {
                let heading = format!(
                    ".SH {}",
                    if section.contains(' ') { format!("\"{section}\"") } else { section.to_owned() }
                );
                assert!(text.contains(&heading), "{name} has {section}: {text}");
            }
            assert!(!text.contains(".SH EXTRA"), "{name}");
        }
        let text = |name: &str| {
            let (_, text) = pages.iter().find(|(page, _)| page == name).unwrap();
            String::from_utf8(text.clone()).unwrap().replace("\\-", "-")
        };
        assert!(text("afterimage-disk-create").contains("--import"));
        assert!(!text("afterimage-serve").contains("--dies-with"), "which is not for people");
        let main = text(PROGRAM);
        for word in [
            "EXIT STATUS",
            "130",
            "AFTERIMAGE_SOCKET",
            "AFTERIMAGE_TOKEN",
            "AFTERIMAGE_LOG",
            "/etc/afterimage/afterimage.toml",
        ] {
            assert!(main.contains(word), "{word}: {main}");
        }
    }

    #[test]
    fn each_shell_has_completions() {
        for (shell, word) in [
            (Shell::Bash, "complete -F"),
            (Shell::Zsh, "#compdef afterimage"),
            (Shell::Fish, "complete -c afterimage"),
        ] {
            let script = completions(shell);
            assert!(script.contains(word), "{shell:?}: {script}");
            assert!(script.contains("failover") && script.contains("accept-loss"), "{shell:?}");
            assert!(!script.contains("dies-with"), "{shell:?}: which is not for people");
        }
    }
}
