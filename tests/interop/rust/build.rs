//! Writes the stubs. protox reads protos in Rust, so that no protoc is needed.

use std::error::Error;

const PROTOS: &str = "../../../protos";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTOS}/recall/v1");
    let files = ["admin", "memory", "session", "user"].map(|name| format!("recall/v1/{name}.proto"));
    tonic_prost_build::configure().build_server(false).compile_fds(protox::compile(files, [PROTOS])?)?;
    Ok(())
}
