//! `policy`, `point` and `failover`: which recovery points there are, and what is done with one.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::super::values::{interval, label, partition, point, retain, test};
use super::Consent;
use crate::control::model::Policy;
use crate::control::name::{DiskPath, Label, Name};
use crate::control::retain::Retain;
use crate::control::selector::PointSelector;

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Set the time between recovery points, and which of them are kept
    #[command(after_help = "Example:\n  afterimage policy set erp --interval 1s\n  \
                            afterimage policy set erp --retain 1h:all,24h:1m,15d:1h --dry-run")]
    Set {
        /// The group
        group: Name,
        #[command(flatten)]
        policy: PolicyArguments,
        /// Change nothing; say how many points, and at most how many bytes, would go now
        #[arg(long, requires = "retain")]
        dry_run: bool,
    },
}

/// At least one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct PolicyArguments {
    /// Time between points: from 100ms to 24h
    #[arg(long, value_parser = interval, allow_hyphen_values = true)]
    pub interval: Option<Policy>,
    /// Which points are kept: AGE:SPACING,… (units s, m, h, d, w), each rung up to its age; or all, for ever
    #[arg(long, value_name = "LADDER", value_parser = retain, allow_hyphen_values = true)]
    pub retain: Option<Retain>,
}

#[derive(Debug, Subcommand)]
pub enum PointCommand {
    /// Make a recovery point now
    #[command(after_help = "Example:\n  afterimage point create erp --label before-upgrade")]
    Create {
        /// The group
        group: Name,
        /// What to call it; a label that other points have too chooses none of them
        #[arg(long, value_name = "TEXT", value_parser = label, allow_hyphen_values = true)]
        label: Option<Label>,
    },
    /// Keep a recovery point until it is released, whatever the policy says
    #[command(after_help = "Example:\n  afterimage point hold erp before-upgrade")]
    Hold {
        /// The group
        group: Name,
        /// latest, an id's first digits (4 at least), a label, or a time
        #[arg(value_name = "POINT", value_parser = point, allow_hyphen_values = true)]
        point: PointSelector,
    },
    /// Leave a held recovery point to the policy again
    #[command(after_help = "Example:\n  afterimage point release erp before-upgrade")]
    Release {
        /// The group
        group: Name,
        /// latest, an id's first digits (4 at least), a label, or a time
        #[arg(value_name = "POINT", value_parser = point, allow_hyphen_values = true)]
        point: PointSelector,
    },
    /// Delete a recovery point: the next one stays as it is; not the newest, a held one, or one in use
    #[command(after_help = "Example:\n  afterimage point delete erp before-upgrade --yes")]
    Delete {
        /// The group
        group: Name,
        /// latest, an id's first digits (4 at least), a label, or a time
        #[arg(value_name = "POINT", value_parser = point, allow_hyphen_values = true)]
        point: PointSelector,
        #[command(flatten)]
        consent: Consent,
    },
    /// List a group's recovery points, oldest first
    #[command(after_help = "Example:\n  afterimage point list erp --json")]
    List {
        /// The group
        group: Name,
    },
    /// Mount a disk's file system as of a recovery point, read-only, by nbdfuse and a loop device; needs root
    #[command(after_help = "Example:\n  afterimage point mount erp/database --point \"10m ago\" /mnt\n  \
                            afterimage point mount erp/root --point latest --partition 1 /mnt")]
    Mount {
        /// The disk
        #[arg(value_name = "GROUP/DISK")]
        disk: DiskPath,
        #[command(flatten)]
        point: PointArgument,
        /// The partition that holds the file system, where the disk has a partition table
        #[arg(long, value_name = "N", value_parser = partition, allow_hyphen_values = true)]
        partition: Option<u32>,
        /// Where; an existing directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Take down what `point mount` mounted
    #[command(after_help = "Example:\n  afterimage point unmount /mnt")]
    Unmount {
        /// Where it is mounted
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum FailoverCommand {
    /// Serve a recovery point over NBD as GROUP/DISK@test-N, writable; what is written is thrown away at cleanup
    #[command(after_help = "Example:\n  afterimage failover test erp --point latest\n  \
                            afterimage failover test erp --point \"2026-11-21 14:03\" --read-only")]
    Test {
        /// The group
        group: Name,
        #[command(flatten)]
        point: PointArgument,
        /// Refuse writes; nothing is stored for it
        #[arg(long)]
        read_only: bool,
    },
    /// End test failovers and free what they hold
    #[command(after_help = "Example:\n  afterimage failover cleanup erp --test 1\n  \
                            afterimage failover cleanup erp --all --yes")]
    Cleanup {
        /// The group
        group: Name,
        /// Only this one; may be left out if there is only one
        #[arg(long, value_name = "N", conflicts_with = "all", value_parser = test, allow_hyphen_values = true)]
        test: Option<u64>,
        /// All of the group
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        consent: Consent,
    },
    /// List test failovers
    #[command(after_help = "Example:\n  afterimage failover list --json")]
    List {
        /// Only this group's
        group: Option<Name>,
    },
}

#[derive(Debug, Args)]
pub struct PointArgument {
    /// latest, an id's first digits (4 at least), a label, or a time: RFC 3339, "2026-11-21 14:03[:05]" (local; or with UTC
    /// behind it), "10m ago"; the newest point at or before it. A time after the newest point is refused
    #[arg(long, value_name = "latest|ID|LABEL|TIME", value_parser = point, allow_hyphen_values = true)]
    pub point: PointSelector,
}
