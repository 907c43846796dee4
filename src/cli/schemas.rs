//! What `--json` prints: the schema of each command's output, made of the types that it is printed from. Committed as docs/api/cli.json,
//! which a test compares; another validates what a real gateway's commands print.

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::attach::Attachment;
use super::check::Verdict;
use super::doctor::Finding;
use super::journal::{Report, Verification};
use super::keys::Exported;
use super::tools::Mounted;
use crate::control::model::{
    Adopted, AuditRecord, Disk, Event, Group, GroupReport, GroupVerified, HookStatus, Job, Keys, Point,
    PointCreated, PolicyForecast, RepairReport, Restored, Resumed, Status, Test, Token, TokenCreated,
    VerifyReport,
};
use crate::control::schema::{Schemas, readable};

const ABOUT: &str = "\
What each command prints with --json: one value; of `status --watch` and `events --follow`, one a line. Names of fields end in their unit: \
sizes are bytes, durations milliseconds; times are RFC 3339 in UTC. Whoever reads them ignores fields and words that it does not know: later \
versions add some, and take none away.";

/// The schemas of all commands.
pub fn document() -> Value {
    let mut schemas = Schemas::new("/$defs");
    let mut commands = Map::new();
    for (command, schema) in COMMANDS {
        commands.insert((*command).to_owned(), schema(&mut schemas));
    }
    let mut document = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "afterimage --json",
        "description": ABOUT,
        "commands": commands,
        "$defs": schemas.definitions(),
    });
    readable(&mut document);
    document
}

type SchemaOf = fn(&mut Schemas) -> Value;

/// Every command that takes `--json`, in the words that ask for it; an option where it prints something else then.
const COMMANDS: &[(&str, SchemaOf)] = &[
    ("attach", of::<Attachment>),
    ("audit", of::<Vec<AuditRecord>>),
    ("check", of::<Verdict>),
    ("disk create", of::<Disk>),
    ("disk list", of::<Vec<Disk>>),
    ("disk remove", of::<()>),
    ("disk resize", of::<Disk>),
    ("doctor", of::<Vec<Finding>>),
    ("events", of::<Vec<Event>>),
    ("events --follow", of::<Event>),
    ("failover cleanup", of::<Vec<u64>>),
    ("failover list", of::<Vec<Test>>),
    ("failover test", of::<Test>),
    ("group create", of::<Group>),
    ("group list", of::<Vec<Group>>),
    ("group pause", of::<Group>),
    ("group remove", of::<()>),
    ("group resume", of::<Resumed>),
    ("group show", of::<Group>),
    ("hooks list", of::<Vec<HookStatus>>),
    ("hooks test", of::<HookStatus>),
    ("job cancel", of::<Job>),
    ("job show", of::<Job>),
    ("jobs", of::<Vec<Job>>),
    ("journal inspect", of::<Report>),
    ("journal verify", of::<Verification>),
    ("key export", of::<Exported>),
    ("key import", of::<Keys>),
    ("key rotate", of::<Keys>),
    ("key show", of::<Keys>),
    ("point create", of::<PointCreated>),
    ("point delete", of::<Point>),
    ("point hold", of::<Point>),
    ("point list", of::<Vec<Point>>),
    ("point mount", of::<Mounted>),
    ("point release", of::<Point>),
    ("point unmount", of::<Mounted>),
    ("policy set", of::<Group>),
    ("policy set --dry-run", of::<PolicyForecast>),
    ("report", of::<GroupReport>),
    ("restore", of::<Restored>),
    ("status", of::<Status>),
    ("token create", of::<TokenCreated>),
    ("token list", of::<Vec<Token>>),
    ("token revoke", of::<Token>),
    ("vault adopt", of::<Adopted>),
    ("vault repair", of::<RepairReport>),
    ("vault verify", of::<VerifyReport>),
    ("verify", of::<GroupVerified>),
];

fn of<T: JsonSchema>(schemas: &mut Schemas) -> Value {
    schemas.answered::<T>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::arguments::Arguments;

    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<String>) {
        for subcommand in command.get_subcommands() {
            let path = format!("{path} {}", subcommand.get_name()).trim().to_owned();
            match subcommand.has_subcommands() {
                true => leaves(subcommand, &path, found),
                false => found.push(path),
            }
        }
    }

    #[test]
    fn every_command_that_takes_json_has_a_schema() {
        let mut commands = Vec::new();
        leaves(&Arguments::grammar(), "", &mut commands);
        commands.retain(|command| !["serve", "demo", "completions", "man"].contains(&command.as_str()));
        let without_options = |command: &str| command.split(" --").next().unwrap_or(command).to_owned();
        let mut described: Vec<String> =
            COMMANDS.iter().map(|(command, _)| without_options(command)).collect();
        described.dedup();
        commands.sort();
        assert_eq!(commands, described);
    }
}
