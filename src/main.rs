use std::process::ExitCode;
use std::sync::Arc;

use bert_xla::cli::{self, Cli, Console, Exit};
use bert_xla::pjrt::leave;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let line = std::env::args_os().collect::<Vec<_>>();
    let cli = Cli::parse_line(&line).unwrap_or_else(|error| error.exit());
    let console = Arc::new(Console::default());
    match cli::run(cli, &console) {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(stopped) => leave(stopped.code()),
        Err(error) => {
            console.error(&error);
            leave(if error.is_input_error() { 2 } else { 1 })
        }
    }
}
