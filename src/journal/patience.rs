//! How long a read of the journal that fails is tried again before it is taken for lasting.
//!
//! A device that refuses a read may give the bytes a moment later: a path that fails over, a cable, a drive that remaps. So one
//! refusal says nothing; so many of them, spread over some seconds, say that the bytes are not to be had for now, and what
//! needs them goes on without them, as with those that rotted.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Runtime;

/// How often a read is tried,
pub const READ_ATTEMPTS: u32 = 5;
/// and how far apart.
pub const READ_DELAY: Duration = Duration::from_secs(1);

/// Carries out reads until one succeeds, or as often as is worth while. Only what a device refuses is tried again.
pub async fn patiently<T>(runtime: &Runtime, mut read: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    for _ in 1..READ_ATTEMPTS {
        match read().await {
            Err(error) if is_refusal(&error) => runtime.sleep(READ_DELAY).await,
            result => return result,
        }
    }
    read().await
}

/// Whether a device refused to give bytes that are there.
pub fn is_refusal(error: &Error) -> bool {
    error.kind() == ErrorKind::Io
}
