//! Build, virtual machines, tests and demonstration of Guard.
//!
//! `cargo xtask …` is the command; the library is for tests that need a virtual machine:
//!
//! ```no_run
//! use xtask::vm::{Vm, VmOptions};
//!
//! # fn main() -> anyhow::Result<()> {
//! let vm = Vm::boot(&VmOptions::bare())?;               // cold once, then from a snapshot in about a second
//! vm.put("target/debug/helper", "/mnt/helper")?;           // a file of the host
//! let output = vm.sh("uname -r; /mnt/helper")?;         // status, stdout, stderr
//! assert_eq!(output.status, 0, "{output}");
//! let mut long = vm.start_command(&["sleep", "60"])?; // several commands run at once
//! long.kill()?;
//! # Ok(()) }
//! ```
//!
//! `xtask::vm::guard::boot` gives a guest with Guard installed, set up and enforcing.
//! Given the tree, the cache and the machine's tools. Never loads BPF programs on the machine itself.
#![forbid(unsafe_code)]

pub mod bench;
pub mod build;
pub mod demo;
pub mod escape;
pub mod full;
pub mod fuzz;
pub mod install;
pub mod kernel_tests;
pub mod kernels;
pub mod paths;
pub mod run;
pub mod setup;
pub mod stage;
pub mod test;
pub mod vm;
