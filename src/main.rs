//! The binary: see the library's documentation.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: whatever speaks TLS later finds the one provider. Nobody else can have set another before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    stagepost::cli::main()
}
