// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Numbers of the kernel's own interface that hooks of several modules look at (include/linux/fs.h, include/uapi/linux/stat.h
//! and magic.h). Those that one module looks at are there.

/// Of the mask that `inode_permission` and `file_permission` are given.
pub const MAY_WRITE: u32 = 2;
pub const MAY_APPEND: u32 = 8;
/// Of `file.f_mode`.
pub const FMODE_WRITE: u32 = 2;
/// Of `inode.i_mode`.
pub const S_IFMT: u16 = 0o170_000;
pub const S_IFREG: u16 = 0o100_000;
pub const S_IFDIR: u16 = 0o040_000;
pub const S_IFCHR: u16 = 0o020_000;
pub const S_IFBLK: u16 = 0o060_000;
/// `super_block.s_magic` of /proc.
pub const PROC_MAGIC: u64 = 0x9fa0;
