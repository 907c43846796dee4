//! A limit on the length of files (`ulimit -f`, LimitFSIZE=) is an error of the write that meets it.
//!
//! The kernel says it twice: EFBIG to who writes, and SIGXFSZ to the process, which ends it unless it listens. It lives here because
//! unsafe code lives here.

use std::ffi::c_int;

use rustix::process::{Resource, getrlimit};

/// Has writes beyond the limit fail instead of ending the process. What the process executes is not concerned: a handler goes with the
/// program, where "ignored" would be inherited.
pub fn survive() {
    extern "C" fn heard(_signal: c_int) {}
    let handler: extern "C" fn(c_int) = heard;
    // SAFETY: the handler does nothing, so it may run at any moment, on any thread.
    unsafe { libc::signal(libc::SIGXFSZ, handler as libc::sighandler_t) };
}

/// The bytes that a file of this process may have, if that is limited.
pub fn bytes() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}
