//! The command line's grammar. Text is parsed here, and nowhere below.

mod groups;
mod history;
mod points;
mod report;
mod tokens;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind as UsageKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::attach::Consumer;
use super::check::CheckArguments;
use super::doctor::DoctorArguments;
use super::documents::Shell;
use super::failure::Failure;
use super::place::Place;
use super::tools::ImageFormat;
use super::values::rate;
use crate::control::name::{DiskPath, Name};
use crate::throttle::ByteRate;

pub use groups::{DiskCommand, GroupCommand, SourceArgument};
pub use history::{AuditArguments, EventsArguments, HooksCommand, JobCommand};
pub use points::{FailoverCommand, PointArgument, PointCommand, PolicyCommand};
pub use report::ReportArguments;
pub use tokens::TokenCommand;

/// Where a gateway's API is looked for unless told otherwise; packages configure it there.
pub const DEFAULT_SOCKET: &str = "/run/afterimage/api.sock";
/// Where it is looked for instead; set and empty is not set.
pub const SOCKET_VARIABLE: &str = "AFTERIMAGE_SOCKET";
/// Options of all commands but those which they mean nothing to: they neither list nor take them.
const NOT_TAKEN: [(&str, &[&str]); 6] = [
    ("serve", &["socket", "token_file", "json"]),
    ("demo", &["socket", "token_file", "json"]),
    ("doctor", &["socket", "token_file"]),
    ("journal", &["socket", "token_file"]),
    ("completions", &["socket", "token_file", "json"]),
    ("man", &["socket", "token_file", "json"]),
];

/// Continuous replication and point-in-time recovery for VM disks.
#[derive(Debug, Parser)]
#[command(name = "afterimage", version, arg_required_else_help = true)]
#[command(after_help = "Example:
  afterimage serve --config /etc/afterimage/afterimage.toml
  afterimage group create erp
  afterimage disk create erp/database --size 20G
  afterimage status")]
pub struct Arguments {
    /// The gateway's API: its socket ([api] socket in its configuration), or http://HOST:PORT ([api] listen); without it, what
    /// AFTERIMAGE_SOCKET says, else /run/afterimage/api.sock
    #[arg(long, global = true, value_name = "PATH|URL")]
    pub socket: Option<PathBuf>,
    /// A file that holds the token which a gateway asks for over TCP; without it, what AFTERIMAGE_TOKEN says
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

impl Arguments {
    /// Clap's grammar, in which each command lists only the options that mean something to it.
    pub fn grammar() -> clap::Command {
        let mut grammar = Arguments::command();
        for (command, options) in NOT_TAKEN {
            let hidden: Vec<clap::Arg> = grammar
                .get_arguments()
                .filter(|argument| options.contains(&argument.get_id().as_str()))
                .map(|argument| argument.clone().hide(true))
                .collect();
            grammar = grammar.mut_subcommand(command, |command| command.args(hidden));
        }
        grammar
    }

    /// What these words say, the program's name first.
    pub fn of(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Arguments, clap::Error> {
        let mut grammar = Arguments::grammar();
        let matches = grammar.try_get_matches_from_mut(words)?;
        let given = Arguments::from_arg_matches(&matches)?;
        let command = matches.subcommand_name().unwrap_or_default();
        let not_taken =
            NOT_TAKEN.iter().filter(|(name, _)| *name == command).flat_map(|(_, options)| *options);
        for option in not_taken {
            let why = match *option {
                "socket" if given.socket.is_some() => "it asks no running gateway",
                "token_file" if given.token_file.is_some() => "it asks no running gateway",
                "json" if given.json => "what it prints is for people",
                _ => continue,
            };
            let text = format!("`{command}` takes no --{}: {why}", option.replace('_', "-"));
            return Err(grammar.error(UsageKind::UnknownArgument, text));
        }
        Ok(given)
    }

    /// Where the gateway is that is asked; `variable` is what the environment says.
    pub fn place(&self, variable: Option<OsString>) -> Result<Place, Failure> {
        let variable = variable.filter(|path| !path.is_empty()).map(PathBuf::from);
        let place = self.socket.clone().or(variable).unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
        Place::parse(place.as_os_str())
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a gateway in the foreground, until SIGTERM
    #[command(
        after_help = "It raises its limit on open files to the hard one: it keeps one for each disk, 5 to 64 for each group's journal, and one for each \
                      client (docs/limits.md).\n\nExample:\n  afterimage serve --config /etc/afterimage/afterimage.toml"
    )]
    Serve {
        /// The configuration; docs/afterimage.example.toml documents every key
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// End with the process that starts it, which has this id: for `demo`
        #[arg(long, value_name = "PID", hide = true)]
        dies_with: Option<i32>,
    },
    /// Protect two disks in a temporary directory, crash the gateway, recover, and verify every block
    #[command(after_help = "Example:\n  afterimage demo --keep")]
    Demo {
        /// Leave the gateway running, and print how to attach QEMU or fio
        #[arg(long)]
        keep: bool,
    },
    /// Look at what this machine can do for a gateway: io_uring, O_DIRECT, space, limits, clock, disk speed; no gateway is needed
    ///
    /// Each with a verdict and a mend: `degraded` is what serve goes on without, `refused` what it refuses, or what would stop it soon: exit status 1
    /// if anything is. For the disk's speed, 128 MiB are written to a file that has no name and is gone afterwards.
    #[command(after_help = "Example:\n  afterimage doctor --config /etc/afterimage/afterimage.toml")]
    Doctor(DoctorArguments),
    /// Look into a journal's files, read-only; no gateway is needed
    #[command(subcommand, arg_required_else_help = true)]
    #[command(
        after_help = "Example:\n  afterimage journal verify /var/lib/afterimage/groups/GROUP_ID/journal"
    )]
    Journal(JournalCommand),
    #[command(flatten)]
    Client(ClientCommand),
    /// Print what a shell completes the words of `afterimage` by; the Debian package has it in place already
    #[command(after_help = "Example:\n  afterimage completions bash")]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the man pages, made of what --help says: for packages
    #[command(hide = true, after_help = "Example:\n  afterimage man --to /usr/local/share/man/man1")]
    Man {
        /// An existing directory
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// List segments, incarnations and what opening would take, also of a damaged journal
    #[command(
        after_help = "Example:\n  afterimage journal inspect /var/lib/afterimage/groups/GROUP_ID/journal --frames"
    )]
    Inspect {
        /// A journal's directory, or one segment file
        path: PathBuf,
        /// Each frame too
        #[arg(long)]
        frames: bool,
        /// Each frame and each record too
        #[arg(long)]
        records: bool,
    },
    /// Check every checksum, the chain and what is stated durable; exit status 1 if it is damaged, 2 if none can be read
    ///
    /// Nothing in a journal says that its newest used segments are missing, as they are from a copy that was made too early: their
    /// records are missed where the images' checkpoints or an index run beside the journal tell of them, and not otherwise.
    /// A gateway that opens it knows the newest recovery point, too. Segments that no opening would take (they are free: ready for
    /// use, or to be used again) are listed by `journal inspect` and not checked.
    #[command(
        after_help = "Example:\n  afterimage journal verify /var/lib/afterimage/groups/GROUP_ID/journal"
    )]
    Verify {
        /// A journal's directory, or one segment file
        path: PathBuf,
    },
}

/// What is asked of a running gateway.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Protection groups: disks that share recovery points
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage group create erp")]
    Group(GroupCommand),
    /// Protected disks
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage disk create erp/database --size 20G")]
    Disk(DiskCommand),
    /// How groups are protected
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage policy set erp --interval 1s")]
    Policy(PolicyCommand),
    /// Recovery points
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage point create erp --label before-upgrade")]
    Point(PointCommand),
    /// Test failovers: a recovery point served beside ongoing protection
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage failover test erp --point \"10m ago\"")]
    Failover(FailoverCommand),
    /// Write a recovery point's disks to files: raw ones, DISK.raw, or images of another format
    #[command(
        after_help = "Example:\n  afterimage restore erp --point before-upgrade --to /srv/restored\n  \
                            afterimage restore erp --point \"10m ago\" --to /srv/restored --format qcow2"
    )]
    Restore {
        /// The group
        group: Name,
        #[command(flatten)]
        point: PointArgument,
        /// The directory; created if missing
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// What the files are; all but raw are written by qemu-img, on this machine
        #[arg(long, value_enum, default_value_t)]
        format: ImageFormat,
        #[command(flatten)]
        consent: Consent,
    },
    /// Compare what a group serves with the newest recovery point in its vault, byte by byte, beside its guests
    #[command(after_help = "Example:\n  afterimage verify erp\n  afterimage verify erp --rate 100M")]
    Verify {
        /// The group
        group: Name,
        /// Bytes to read in a second at most; without it, as many as there are
        #[arg(long, value_name = "SIZE", value_parser = rate, allow_hyphen_values = true)]
        rate: Option<ByteRate>,
    },
    /// How the gateway and its groups stand
    #[command(after_help = "Example:\n  afterimage status --watch")]
    Status {
        /// Say it again every second
        #[arg(long)]
        watch: bool,
    },
    /// How a group fared: churn, points, history and space over time, as a plot in a file and a summary
    ///
    /// The plot is one SVG file for any browser. It is drawn from samples that the gateway takes every minute, and from the recovery points;
    /// times are in UTC: docs/reports.md.
    #[command(
        after_help = "Example:\n  afterimage report erp\n  afterimage report erp --last 24h --to /srv/erp.svg --yes"
    )]
    Report(ReportArguments),
    /// For monitoring: one line, and exit status 0 OK, 1 WARNING, 2 CRITICAL, or 3 UNKNOWN
    ///
    /// In the form of the Monitoring Plugins, with figures. UNKNOWN is also wrong usage, a gateway that does not answer, and a group that
    /// there is not. What is how bad: docs/metrics.md.
    #[command(after_help = "Example:\n  afterimage check\n  \
                            afterimage check erp --warning-age 30s --critical-age 5m")]
    Check(CheckArguments),
    /// What happened to groups, newest first
    #[command(after_help = "Example:\n  afterimage events --group erp --limit 20\n  \
                            afterimage events --follow --severity warning")]
    Events(EventsArguments),
    /// List jobs: what is at work, and what ended, also before a restart
    #[command(after_help = "Example:\n  afterimage jobs")]
    Jobs,
    /// One job: an import, a restore, a verification, an adoption
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage job show 0123456789abcdef0123456789abcdef")]
    Job(JobCommand),
    /// Who asked for what, and how it went, newest first
    #[command(after_help = "Example:\n  afterimage audit --limit 20")]
    Audit(AuditArguments),
    /// Hooks: who is told of events
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage hooks list")]
    Hooks(HooksCommand),
    /// Print what attaches a disk to a machine, to be pasted: reconnecting, so that it survives restarts of the gateway
    #[command(after_help = "Example:\n  afterimage attach erp/database --for libvirt\n  \
                            afterimage attach erp/database --for qemu --at 127.0.0.1:10809")]
    Attach {
        /// The disk
        #[arg(value_name = "GROUP/DISK")]
        disk: DiskPath,
        /// What it is attached to: arguments of QEMU, a <disk> of libvirt, a line of a Proxmox VE machine, a load by fio
        #[arg(long = "for", value_name = "PROGRAM", value_enum)]
        consumer: Consumer,
        /// One of the addresses that `status` says the gateway listens on; the first unless given
        #[arg(long, value_name = "ADDRESS")]
        at: Option<String>,
        /// Where the address is served by TLS: the directory, on the machine that attaches it, of ca-cert.pem, client-cert.pem and
        /// client-key.pem
        #[arg(long, value_name = "DIRECTORY", default_value = "/etc/pki/libvirt-nbd")]
        tls_certificates: PathBuf,
    },
    /// Tokens, which say who may ask the gateway over TCP ([api] listen), and what
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage token create monitoring --role read")]
    Token(TokenCommand),
    /// The vault, where deltas and recovery points are kept
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage vault verify erp")]
    Vault(VaultCommand),
    /// The site key, under which the keys of all groups are wrapped
    #[command(subcommand, arg_required_else_help = true)]
    #[command(after_help = "Example:\n  afterimage key export /media/safe/site.key")]
    Key(KeyCommand),
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Show the site key's id, where it is kept, and what each group is sealed under; never the key
    #[command(after_help = "Example:\n  afterimage key show")]
    Show,
    /// Make a new site key, and wrap the keys of all groups under it; what is stored stays as it is
    #[command(after_help = "Example:\n  afterimage key rotate\n  afterimage key rotate --new-group-keys")]
    Rotate {
        /// Give each group a new key as well, for what it seals from its next opening on
        #[arg(long)]
        new_group_keys: bool,
    },
    /// Write the site key to a new file that only its owner can read, or to standard output
    #[command(after_help = "Example:\n  afterimage key export /media/safe/site.key")]
    Export {
        /// The file; it must not exist
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Take a site key that was exported; then `group resume` opens the groups that needed it
    #[command(after_help = "Example:\n  afterimage key import /media/safe/site.key")]
    Import {
        /// The file; - for standard input. What lies in its place is kept beside it
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Debug, Subcommand)]
pub enum VaultCommand {
    /// Read every stored byte, and compare it with its checksum: keys, manifest, deltas, bases
    #[command(after_help = "Example:\n  afterimage vault verify erp\n  afterimage vault verify --rate 100M")]
    Verify {
        /// Only this group's
        group: Option<Name>,
        /// Bytes to read in a second at most; without it, as many as there are
        #[arg(long, value_name = "SIZE", value_parser = rate, allow_hyphen_values = true)]
        rate: Option<ByteRate>,
    },
    /// Give up what is lost in a group's vault: recovery points that need it go, and the newest is made sound from the disks
    ///
    /// The vault is read whole first. Without --yes, it is only said which points would go, and how much would be written
    /// anew. Try to put back an earlier copy of the damaged file before: then nothing has to go.
    #[command(after_help = "Example:\n  afterimage vault repair erp\n  afterimage vault repair erp --yes")]
    Repair {
        /// The group
        group: Name,
        /// Bytes to read in a second at most while the vault is read; without it, as many as there are
        #[arg(long, value_name = "SIZE", value_parser = rate, allow_hyphen_values = true)]
        rate: Option<ByteRate>,
        /// Do it: recovery points that need what is lost go for good
        #[arg(long)]
        yes: bool,
    },
    /// Make a group of a vault whose gateway is gone: images from the newest point, a new journal, all points kept
    ///
    /// It needs the site key that wraps the vault's keys: 'key import' the one that was exported, first. Where something that the
    /// newest point shows cannot be read, it says what, and which file is damaged: try to put an undamaged copy of that in its place.
    #[command(
        after_help = "Example:\n  afterimage vault adopt /mnt/rescued/vault/0123456789abcdef0123456789abcdef\n  \
                      afterimage vault adopt /mnt/rescued/vault/0123456789abcdef0123456789abcdef --accept-loss --yes"
    )]
    Adopt {
        /// The directory of one group's vault: copied, unless it is where this gateway would keep it
        path: PathBuf,
        /// Give up what the newest point shows and nobody can read: zeros from then on. `vault repair` comes next
        #[arg(long)]
        accept_loss: bool,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Consent {
    /// Do it without asking, though it destroys data
    #[arg(long)]
    pub yes: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_command(command: &clap::Command, path: &str, check: &mut impl FnMut(&str, &clap::Command)) {
        let path = format!("{path} {}", command.get_name());
        check(path.trim(), command);
        for subcommand in command.get_subcommands() {
            each_command(subcommand, &path, check);
        }
    }

    #[test]
    fn the_grammar_is_consistent() {
        Arguments::grammar().debug_assert();
    }

    #[test]
    fn options_are_listed_and_taken_only_where_they_mean_something() {
        let mut grammar = Arguments::grammar();
        grammar.build();
        each_command(&grammar, "", &mut |path, command| {
            let help = command.clone().render_long_help().to_string();
            // Clap's own, which takes names of commands only.
            if path.contains(" help") {
                return;
            }
            let starts =
                |names: &[&str]| names.iter().any(|name| path.starts_with(&format!("afterimage {name}")));
            let asks_nobody = starts(&["serve", "demo", "doctor", "journal", "completions", "man"]);
            let is_for_people = starts(&["serve", "demo", "completions", "man"]);
            assert_eq!(help.contains("--socket"), !asks_nobody, "{path}: {help}");
            assert_eq!(help.contains("--json"), !is_for_people, "{path}: {help}");
        });
        for line in [
            "demo --json",
            "--json demo",
            "demo --socket /s",
            "serve --config c --json",
            "--socket /s serve --config c",
            "journal verify --socket /s /j",
            "--socket /s journal inspect /j",
            "serve --config c --token-file /t",
        ] {
            let error = Arguments::of(std::iter::once("afterimage").chain(line.split(' '))).expect_err(line);
            assert!(error.to_string().contains("takes no --"), "{line}: {error}");
        }
        for line in ["status --socket /s --json", "--socket /s --json status"] {
            let given = Arguments::of(std::iter::once("afterimage").chain(line.split(' '))).expect(line);
            let place = given.place(None).expect("a path");
            assert_eq!((place, given.json), (Place::Socket("/s".into()), true), "{line}");
        }
    }

    #[test]
    fn an_empty_variable_is_none() {
        let given = Arguments::of(["afterimage", "status"]).expect("a command");
        for (variable, socket) in [(None, DEFAULT_SOCKET), (Some(""), DEFAULT_SOCKET), (Some("/v"), "/v")] {
            let place = given.place(variable.map(OsString::from)).expect("a path");
            assert_eq!(place, Place::Socket(socket.into()));
        }
    }

    #[test]
    fn every_help_says_what_it_does_and_has_an_example_that_parses() {
        let mut examples = 0;
        each_command(&Arguments::grammar(), "", &mut |path, command| {
            let help = command.clone().render_long_help().to_string();
            assert!(command.get_about().is_some(), "{path} says what it does");
            let (_, text) = help.split_once("Example:\n").unwrap_or_else(|| panic!("{path} has an example"));
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
                assert!(path == "afterimage" || line.starts_with(path), "{path}: {line}");
                let words: Vec<String> = shell_words(line);
                Arguments::of(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
                examples += 1;
            }
        });
        assert!(examples > 25, "{examples}");
    }

    /// Words of a line whose only quotes are double ones around a whole word.
    fn shell_words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        for (index, part) in line.split('"').enumerate() {
            if index % 2 == 1 {
                words.push(part.to_owned());
            } else {
                words.extend(part.split_whitespace().map(str::to_owned));
            }
        }
        words
    }

    #[test]
    fn what_can_not_be_is_refused_with_a_mend() {
        for (line, mend) in [
            ("disk create erp/db", "--size"),
            ("disk create erp/db --size 20G --import x", "cannot be used with"),
            ("disk create erp/db --size 20GB", "20G"),
            ("disk create erp/db --size 100", "`100` is no positive multiple of 512"),
            ("disk create erp/db --size 9000P", "`9000P` is longer than any file"),
            ("disk create erp/db --size 99999999T", "`99999999T` is too large"),
            ("disk create erp/db --size -5", "`-5` is not a size in bytes: write for example 20G"),
            ("disk resize erp/db --size -5G", "`-5G` is not a size in bytes: write for example 20G"),
            ("report erp --last -1h", "`-1h` is not a duration"),
            ("report erp --last 10s", "`10s` is out of range: write a duration from 1m to 366d"),
            ("verify erp --rate -1M", "`-1M` is not a size in bytes"),
            ("policy set erp --interval -1s", "`-1s` is not a duration"),
            ("disk resize erp/db --size 0K", "`0K` is no positive multiple of 512"),
            ("policy set erp --interval 25h", "`25h` is out of range: write a duration from 100ms to 24h"),
            ("disk create erp --size 20G", "GROUP/DISK"),
            ("group create a/b", "letters"),
            ("policy set erp --interval 1ms", "100ms"),
            ("policy set erp --interval soon", "1s"),
            ("policy set erp", "--interval <INTERVAL>|--retain <LADDER>"),
            ("policy set erp --retain 1h", "1h:all,24h:1m,15d:1h"),
            ("policy set erp --interval 1s --dry-run", "--retain"),
            ("point delete erp id:xyz", "hexadecimal"),
            ("point create erp --label \u{7}", "one line"),
            ("failover test erp", "--point"),
            ("failover test erp --point id:xyz", "hexadecimal"),
            ("failover cleanup erp --test 1 --all", "cannot be used with"),
        ] {
            let words = std::iter::once("afterimage").chain(line.split(' '));
            let error = Arguments::of(words).expect_err(line).to_string();
            assert!(error.contains(mend), "{line}: {error}");
        }
    }
}
