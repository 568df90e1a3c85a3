//! `pacsvault`: the command line of a pacsvault cluster.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
