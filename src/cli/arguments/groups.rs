//! `group` and `disk`: what is protected together.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::super::values::disk_size;
use super::Consent;
use crate::control::name::{DiskPath, Name};
use crate::units::SectorCount;

#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Create an empty group
    #[command(after_help = "Example:\n  afterimage group create erp")]
    Create {
        /// Its name
        group: Name,
        /// Make no recovery points of it, now or later: its disks have journal and image, and nothing to go back to
        #[arg(long)]
        no_points: bool,
    },
    /// List groups
    #[command(after_help = "Example:\n  afterimage group list --json")]
    List,
    /// Show a group with its disks and policy
    #[command(after_help = "Example:\n  afterimage group show erp")]
    Show {
        /// The group
        group: Name,
    },
    /// Make no timed points, and let none go, until `group resume`; guests go on
    #[command(after_help = "Example:\n  afterimage group pause erp")]
    Pause {
        /// The group
        group: Name,
    },
    /// After a pause or a mend: make points again, open a group that could not be opened, clear what is latched
    #[command(after_help = "Example:\n  afterimage group resume erp\n  \
                            afterimage group resume erp --accept-loss --yes")]
    Resume {
        /// The group; its id if its name is not known
        group: Name,
        /// Give up writes that rotted in the journal: their sectors, which `status` names, hold something older from then on. Of a
        /// group that could not be opened for that, all that was written behind them and is not durable
        #[arg(long)]
        accept_loss: bool,
        #[command(flatten)]
        consent: Consent,
    },
    /// Remove a group with its disks and all its recovery points
    #[command(after_help = "Example:\n  afterimage group remove erp --yes")]
    Remove {
        /// The group; its id if its name is not known
        group: Name,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Create a disk, of zeros or with a raw file's content
    #[command(after_help = "Example:\n  afterimage disk create erp/database --size 20G\n  \
                            afterimage disk create erp/log --import /srv/log.raw")]
    Create {
        /// Its names
        #[arg(value_name = "GROUP/DISK")]
        disk: DiskPath,
        #[command(flatten)]
        source: SourceArgument,
    },
    /// List disks
    #[command(after_help = "Example:\n  afterimage disk list erp")]
    List {
        /// Only this group's
        group: Option<Name>,
    },
    /// Give a disk another size; clients see it when they connect anew, recovery points keep the size that they had
    #[command(after_help = "Example:\n  afterimage disk resize erp/database --size 40G\n  \
                            afterimage disk resize erp/log --size 2G --yes-lose-tail")]
    Resize {
        /// The disk
        #[arg(value_name = "GROUP/DISK")]
        disk: DiskPath,
        /// Its new size: bytes with K, M, G, T or P (powers of 1024), a multiple of 512
        #[arg(long, value_parser = disk_size, allow_hyphen_values = true)]
        size: SectorCount,
        /// Let it become smaller, and lose what lies behind its new end; its clients must be disconnected
        #[arg(long)]
        yes_lose_tail: bool,
    },
    /// Remove a disk; recovery points made before keep it
    #[command(after_help = "Example:\n  afterimage disk remove erp/log --yes")]
    Remove {
        /// The disk
        #[arg(value_name = "GROUP/DISK")]
        disk: DiskPath,
        #[command(flatten)]
        consent: Consent,
    },
}

/// Exactly one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SourceArgument {
    /// Its size: bytes with K, M, G, T or P (powers of 1024), a multiple of 512
    #[arg(long, value_parser = disk_size, allow_hyphen_values = true)]
    pub size: Option<SectorCount>,
    /// A raw file to copy; holes stay holes, and a last fraction of a sector is padded with zeros
    #[arg(long, value_name = "FILE")]
    pub import: Option<PathBuf>,
}
