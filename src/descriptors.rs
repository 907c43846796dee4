//! File descriptors: this process takes as many as it may have, and clients get half of them.
//!
//! Each group keeps its journal, images and vault open, and the control API needs some, too. Were clients to take them all, no
//! segment could be opened and nobody could ask why.

use std::num::NonZeroUsize;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, Result};

/// Raises the soft limit to the hard one, which is how many there may be then.
pub fn raise_limit() -> Result<usize> {
    let found = getrlimit(Resource::Nofile);
    if found.current != found.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: found.maximum, ..found })
            .map_err(|errno| Error::io("raising the limit on open files", errno.into()))?;
    }
    Ok(found.maximum.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)))
}

/// How many clients there may be at once of `configured`, where there are `descriptors`.
pub fn connections_max(configured: NonZeroUsize, descriptors: usize) -> NonZeroUsize {
    NonZeroUsize::new(descriptors / 2).map_or(NonZeroUsize::MIN, |half| half.min(configured))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_half() {
        let max = |configured, descriptors| {
            connections_max(NonZeroUsize::new(configured).expect("positive"), descriptors).get()
        };
        assert_eq!((max(1024, 1 << 20), max(1024, 1024), max(1024, 1), max(10, 1024)), (1024, 512, 1, 10));
    }
}
