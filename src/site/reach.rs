//! What people have the gateway read and write for them (`disk create --import`, `restore --to`, `vault adopt`) it reaches with its own
//! rights: those of its user, in the sandbox of its unit. A refusal says so, since whoever asked may well have the rights themselves.

use std::io;

use crate::error::{Error, Result};

/// The same outcome; a refusal says whose rights are meant, and what to do.
pub(super) fn explained<T>(outcome: Result<T>) -> Result<T> {
    outcome.map_err(explain)
}

fn explain(error: Error) -> Error {
    match error.io_kind() {
        Some(io::ErrorKind::PermissionDenied) => {
            let user = rustix::process::geteuid().as_raw();
            error.within(&format!("the gateway runs as user {user}, who must be allowed to do this, too"))
        }
        Some(io::ErrorKind::ReadOnlyFilesystem) => error.within(
            "the gateway may not write there: name a directory in its data directory, or, where it runs as afterimage.service, let it by \
             `systemctl edit afterimage`: ReadWritePaths=DIR",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_whose_rights_are_meant_and_nothing_else_changes() {
        let said = |kind: io::ErrorKind| explain(Error::io("creating", kind.into())).to_string();
        assert!(said(io::ErrorKind::PermissionDenied).starts_with("the gateway runs as user "));
        assert!(said(io::ErrorKind::ReadOnlyFilesystem).contains("ReadWritePaths=DIR: creating"));
        assert!(said(io::ErrorKind::NotFound).starts_with("creating"));
    }
}
