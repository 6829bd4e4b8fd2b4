//! `interop tour` and `interop load N`; what they do is in ../../README.md.

mod calls;
mod connection;
mod load;
mod service_config;
mod shown;
mod structs;
mod tour;

use std::error::Error;
use std::process::ExitCode;

use serde_json::{Value, json};

/// The stubs that build.rs writes.
mod stubs {
    tonic::include_proto!("recall.v1");
}

enum Command {
    Tour,
    Load(usize),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some(command) = command() else {
        eprintln!("usage: interop tour | load N");
        return ExitCode::from(2);
    };
    match run(command).await {
        Ok(seen) => {
            println!("{seen}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Option<Command> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tour"] => Some(Command::Tour),
        ["load", calls] => calls.parse().ok().map(Command::Load),
        _ => None,
    }
}

async fn run(command: Command) -> Result<Value, Box<dyn Error>> {
    let mut recalld = connection::connect()?;
    match command {
        Command::Tour => tour::tour(&mut recalld).await,
        Command::Load(calls) => Ok(json!({ "acknowledged": load::load(&recalld.memory, calls).await? })),
    }
}
