//! Memory that was freed, given back to the operating system. It lives here because unsafe code lives here.

/// Gives back whole pages that the C library keeps for what may be wanted next. It holds up who wants memory meanwhile, some
/// milliseconds for each hundred MiB.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it may be called at any moment, on any thread; what is in use stays where it is.
        unsafe { libc::malloc_trim(0) };
    }
}
