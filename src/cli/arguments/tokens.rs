//! `token`: who may ask the gateway over TCP.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use super::super::values::duration;
use crate::control::model::Role;
use crate::control::name::Name;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print its text: this once
    #[command(after_help = "Example:\n  afterimage token create monitoring --role read\n  \
                            afterimage token create deployment --role admin --expires 90d")]
    Create {
        /// What to call it, here and in the audit trail
        name: Name,
        /// What it is good for
        #[arg(long, value_enum)]
        role: RoleArgument,
        /// For how long it is good; without it, until it is revoked
        #[arg(long, value_name = "TIME", value_parser = duration, allow_hyphen_values = true)]
        expires: Option<Duration>,
    },
    /// List tokens; never their texts
    #[command(after_help = "Example:\n  afterimage token list")]
    List,
    /// Have a token be good for nothing any more, at once
    #[command(after_help = "Example:\n  afterimage token revoke monitoring")]
    Revoke {
        /// Its name
        name: Name,
    },
}

/// A role, as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RoleArgument {
    /// To look at everything, and change nothing
    Read,
    /// Everything
    Admin,
}

impl From<RoleArgument> for Role {
    fn from(argument: RoleArgument) -> Role {
        match argument {
            RoleArgument::Read => Role::Read,
            RoleArgument::Admin => Role::Admin,
        }
    }
}
