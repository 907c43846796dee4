//! `sim SEED`: replays one seed of the simulator with a trace. `sim --seeds A..B`, `sim --minutes M`: many seeds.
//! `sim --script FILE`: plays a script, such as the fuzzer keeps of what failed.

use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{cell::RefCell, ops::Range, rc::Rc};

use afterimage::planted::{Bug, Planted};
use afterimage::sim::script::Script;
use afterimage::sim::{Failure, Options, Report, play, run, sweep};

const USAGE: &str = "sim SEED [--bug NAME] [--quiet]\n\
                     sim --script FILE [--bug NAME] [--quiet]\n\
                     sim --seeds A..B [--bug NAME]\n\
                     sim --minutes M [--from SEED] [--bug NAME]";

struct Arguments {
    seeds: Range<u64>,
    script: Option<Script>,
    limit: Option<Duration>,
    bug: Option<Bug>,
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(text) => {
            eprintln!("{text}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let planted = arguments.bug.map_or(Planted::NONE, Planted::with);
    if let Some(script) = &arguments.script {
        return replay(planted, arguments.trace, |options| play(script, options));
    }
    if arguments.seeds.end - arguments.seeds.start == 1 {
        return replay(planted, arguments.trace, |options| run(arguments.seeds.start, options));
    }
    sweep_seeds(&arguments, planted)
}

fn parse(words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { seeds: 0..0, script: None, limit: None, bug: None, trace: true };
    let mut from = 0;
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        let mut value = |name: &str| words.next().ok_or_else(|| format!("{name} needs a value"));
        match &*word {
            "--quiet" => arguments.trace = false,
            "--script" => {
                let path = value("--script")?;
                let bytes = std::fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
                arguments.script = Some(Script::decode(&bytes));
            }
            "--bug" => arguments.bug = Some(bug(&value("--bug")?)?),
            "--from" => from = number(&value("--from")?)?,
            "--minutes" => {
                let minutes = number(&value("--minutes")?)?;
                arguments.limit = Some(Duration::from_secs(minutes * 60));
            }
            "--seeds" => {
                let text = value("--seeds")?;
                let (start, end) = text.split_once("..").ok_or("--seeds takes a range such as 0..1000")?;
                arguments.seeds = number(start)?..number(end)?;
            }
            seed => {
                let seed = number(seed)?;
                arguments.seeds = seed..seed + 1;
            }
        }
    }
    if arguments.limit.is_some() {
        arguments.seeds = from..u64::MAX;
    }
    if arguments.seeds.is_empty() && arguments.script.is_none() {
        return Err("neither a seed nor a script was named".to_owned());
    }
    Ok(arguments)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

fn bug(name: &str) -> Result<Bug, String> {
    let found = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
    found.ok_or_else(|| format!("no bug is called {name:?}; there are {:?}", Bug::ALL))
}

fn replay(planted: Planted, trace: bool, run: impl FnOnce(&Options) -> Result<Report, Failure>) -> ExitCode {
    let mut options = Options { planted, ..Options::default() };
    if trace {
        options.sink = Some(Rc::new(RefCell::new(|line: &str| println!("{line}"))));
    }
    match run(&options) {
        Ok(report) => {
            println!("{report:#?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}

/// Runs many seeds until one fails or the time is up.
fn sweep_seeds(arguments: &Arguments, planted: Planted) -> ExitCode {
    let start = started();
    let is_over = || arguments.limit.is_some_and(|limit| start.elapsed() > limit);
    let swept = sweep(arguments.seeds.clone(), planted, is_over);
    println!("{} seeds clean in {:.1} s: {:#?}", swept.clean, start.elapsed().as_secs_f64(), swept.report);
    for failure in &swept.failures {
        let bug = arguments.bug.map_or_else(String::new, |bug| format!(" --bug {bug:?}"));
        let seed = failure.seed.expect("a sweep runs seeds");
        println!("{failure}\nreplay: sim {seed}{bug}");
    }
    if swept.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[allow(clippy::disallowed_methods)]
fn started() -> Instant {
    Instant::now()
}
