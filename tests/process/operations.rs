//! docs/operations.md, as it is written: its sessions are run in their order, in one shell, against the built program, and
//! each command has to say what the document says that it says.
//!
//! A session is a block that is marked `sh session`; one in a comment stands in for guests and accidents. `$ ` begins a
//! command, with a here document if it has one; the lines below it are what it prints, on both channels. `…` stands
//! for any text, on a line of its own for any lines; how wide columns are does not count. A command must succeed, unless
//! `echo $?` comes next. What only asks is asked again until it answers as written. Paths of the document are below a
//! temporary directory. Needs root.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use afterimage::env::{Environment, OsEnvironment};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::gateway::PATIENCE;

const DOCUMENT: &str = include_str!("../../docs/operations.md");
const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");
/// Where the document has its files; all of that is below the test's own directory.
const PLACES: [&str; 6] =
    ["/etc/afterimage", "/var/lib/afterimage", "/run/afterimage", "/srv/", "/media/", "/mnt/"];
/// What changes nothing, and may come to say what is written only in a moment.
const QUESTIONS: [&str; 5] = ["status", "check", "events", "jobs", "hooks list"];
const ANYTHING: char = '…';
/// Begins the line that says how a command ended.
const ENDED: char = '\u{1}';
/// Lines of the gateway's log that a failed test shows.
const LOG_LINES_SHOWN: usize = 40;

/// A command of the document.
struct Step {
    /// Where it is, counted from 1.
    line: usize,
    command: String,
    expected: Vec<&'static str>,
}

impl Step {
    /// Whether the lines that follow belong to a here document of it.
    fn goes_on(&self) -> bool {
        let Some((_, rest)) = self.command.split_once("<<'") else {
            return false;
        };
        let (word, _) = rest.split_once('\'').expect("a quoted word");
        self.command.lines().next_back() != Some(word)
    }

    fn is_question(&self) -> bool {
        let words = self.command.strip_prefix("afterimage ");
        words.is_some_and(|words| QUESTIONS.iter().any(|question| words.starts_with(question)))
    }
}

/// The commands of all sessions.
fn steps(document: &'static str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = (1..).zip(document.lines());
    while let Some((_, line)) = lines.next() {
        let end = match line {
            "```sh session" => "```",
            "<!-- sh session" => "-->",
            _ => continue,
        };
        let before = steps.len();
        for (number, line) in lines.by_ref().take_while(|(_, line)| *line != end) {
            let open = steps.last_mut().filter(|step| step.goes_on());
            if let Some(step) = open {
                step.command.push('\n');
                step.command.push_str(line);
            } else if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step { line: number, command: command.to_owned(), expected: Vec::new() });
            } else {
                assert!(steps.len() > before, "line {number}: a session begins with a command");
                steps.last_mut().expect("just looked at").expected.push(line);
            }
        }
        assert!(steps.last().is_none_or(|step| !step.goes_on()), "a here document does not end");
    }
    steps
}

/// Whether lines are as they are written.
fn are_as_written(written: &[&str], said: &[String]) -> bool {
    match written.split_first() {
        None => said.is_empty(),
        Some((line, rest)) if line.chars().eq([ANYTHING]) => {
            (0..=said.len()).any(|left_out| are_as_written(rest, &said[left_out..]))
        }
        Some((line, rest)) => said
            .split_first()
            .is_some_and(|(first, others)| is_as_written(line, first) && are_as_written(rest, others)),
    }
}

fn is_as_written(written: &str, said: &str) -> bool {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let (written, said) = (words(written), words(said));
    let Some((first, rest)) = written.split_once(ANYTHING) else {
        return written == said;
    };
    let (middle, last) = rest.rsplit_once(ANYTHING).unwrap_or(("", rest));
    let Some(mut said) = said.strip_prefix(first) else {
        return false;
    };
    for part in middle.split(ANYTHING) {
        match said.split_once(part) {
            Some((_, after)) => said = after,
            None => return false,
        }
    }
    said.ends_with(last)
}

/// A shell in a directory of its own; what it started is killed with it.
struct Shell {
    root: String,
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Shell {
    fn new(root: &Path) -> Shell {
        let root = root.to_str().expect("a path in UTF-8").to_owned();
        for place in PLACES {
            fs::create_dir_all(format!("{root}{place}")).expect("our own directory");
        }
        let programs = Path::new(PROGRAM).parent().expect("it is in a directory");
        let path = std::env::var("PATH").expect("there is one");
        let mut child = Command::new("bash")
            .current_dir(&root)
            .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", programs.display()))
            .env("AFTERIMAGE_SOCKET", format!("{root}/run/afterimage/api.sock"))
            .env("LC_ALL", "C.UTF-8")
            .env_remove("BASH_ENV")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("bash");
        let mut input = child.stdin.take().expect("a pipe");
        writeln!(input, "exec 2>&1").expect("it reads");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            // Nobody takes the rest of it when a test has failed.
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Shell { root, child, input, output }
    }

    /// What a command prints, and its exit status, which the next command sees as `$?`.
    fn run(&mut self, command: &str) -> (Vec<String>, i32) {
        // In two steps: the directory's own name may have one of the places in it.
        let marked = PLACES
            .iter()
            .fold(command.to_owned(), |command, place| command.replace(place, &format!("{ENDED}{place}")));
        let command = marked.replace(ENDED, &self.root);
        writeln!(
            self.input,
            "{{ {command}\n}} </dev/null\n__status=$?; printf '\\n\\001%d\\n' $__status; (exit $__status)"
        )
        .expect("the shell reads");
        let mut said = Vec::new();
        loop {
            let line = self.output.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("{command}\n{error} after {said:#?}"));
            if let Some(status) = line.strip_prefix(ENDED) {
                // What ends the last line if the command did not.
                while said.last().is_some_and(String::is_empty) {
                    said.pop();
                }
                return (said, status.parse().expect("a number"));
            }
            said.push(line.replace(&self.root, ""));
        }
    }

    /// Runs a command of the document; it has to end and to say what is written.
    #[track_caller]
    fn follow(&mut self, step: &Step, may_fail: bool) {
        let clock = OsEnvironment::new();
        let asked_first = clock.monotonic();
        loop {
            let (said, status) = self.run(&step.command);
            let is_well = status == 0 || may_fail;
            if is_well && are_as_written(&step.expected, &said) {
                return;
            }
            let waited = Duration::from_nanos(clock.monotonic().0 - asked_first.0);
            assert!(
                step.is_question() && waited < PATIENCE,
                "docs/operations.md, line {}: $ {}\nis to say\n{}\nand ends with {status} and says\n{}",
                step.line,
                step.command,
                step.expected.join("\n"),
                said.join("\n")
            );
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(format!("{}/srv/gateway.log", self.root)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(LOG_LINES_SHOWN);
            eprintln!("the gateway's log:\n{}", lines[from..].join("\n"));
            // A mount that outlives its gateway hangs whoever looks at it; usually there is none.
            let files = format!("{}/mnt/files", self.root);
            let _ = Command::new(PROGRAM).args(["point", "unmount", &files]).output();
        }
        // The gateway is in the shell's group, also where the document did not come to its end.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

#[test]
fn the_operations_guide_says_what_the_program_does() {
    let steps = steps(DOCUMENT);
    assert!(steps.len() > 100, "its sessions are found: {}", steps.len());
    let directory = tempfile::tempdir().unwrap();
    let mut shell = Shell::new(&directory.path().canonicalize().unwrap());
    for (index, step) in steps.iter().enumerate() {
        let may_fail = steps.get(index + 1).is_some_and(|next| next.command == "echo $?");
        shell.follow(step, may_fail);
    }
}

#[test]
fn what_is_not_as_written_is_noticed() {
    for (written, said, is_same) in [
        ("point … of … created", "point 0a1b of today created", true),
        ("point … of … created", "point 0a1b of today made", false),
        ("erp  …, idle  1", "erp    53ms, idle    1", true),
        ("erp  …, idle  1", "erp    53ms, idle    10", false),
        ("takes …", "  takes  maps", true),
        ("0 faults", "10 faults", false),
        ("… faults, … left", "2 faults, 3 left", true),
        ("… faults, … left", "2 faults left", false),
        ("a…a", "a", false),
        ("a…b…b", "a b", false),
    ] {
        assert_eq!(is_as_written(written, said), is_same, "{written} and {said}");
    }
    let said = ["first", "second", "third"].map(str::to_owned);
    assert!(are_as_written(&["first", "…", "third"], &said));
    assert!(are_as_written(&["…", "first", "second", "third", "…"], &said));
    for written in [&["first", "third"][..], &["…", "second"], &["first", "…", "second"], &[]] {
        assert!(!are_as_written(written, &said), "{written:?}");
    }
}
