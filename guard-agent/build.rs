//! Embeds the BPF object that `cargo xtask build` made, or nothing: the agent then says how to get one.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder = PathBuf::from("../target/bpf");
    let object = folder.join("guard.bpf.o");
    println!("cargo::rerun-if-changed=build.rs");
    // The folder too, so that an object that appears later is noticed.
    fs::create_dir_all(&folder)?;
    println!("cargo::rerun-if-changed={}", folder.display());
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = match fs::read(&object) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    fs::write(PathBuf::from(out).join("guard.bpf.o"), bytes)
}
