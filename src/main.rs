//! The `afterimage` program: see [`afterimage::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    afterimage::cli::main()
}
