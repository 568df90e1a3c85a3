//! Compiles `pacsvault/v1/*.proto` without a `protoc` binary and keeps the descriptor set for gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

/// The files of `pacsvault.v1`; those they import follow by themselves.
const FILES: [&str; 3] = ["pacsvault/v1/archive.proto", "pacsvault/v1/admin.proto", "pacsvault/v1/internal.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=pacsvault");
    let descriptors = protox::compile(FILES, ["."])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Payloads stay `Bytes` from socket to disk; only that field type lets prost hand over a slice without a copy.
    tonic_prost_build::configure().bytes(".").emit_rerun_if_changed(false).compile_fds(descriptors)?;
    Ok(())
}
