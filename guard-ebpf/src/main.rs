// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Guard's BPF programs: is the task labelled ▶ is there a verdict ▶ hold ▶ tell the agent.
//!
//! Owns what happens inside a hook; given maps that the agent fills. It must never let a labelled action through
//! without a verdict, and never return a value to user space that user space must not see.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod abi;
mod cgroups;
mod cover;
mod emit;
mod exec;
mod files;
mod hold;
mod identify;
mod kernel;
mod maps;
mod privilege;
mod protect;
mod quota;
mod reach;
mod rules;
mod scope;
mod signals;
mod stay;
mod tasks;
mod tripwire;
mod verdict;

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
