//! Names a file as the kernel does; apart from everything else, so that the decoder of events can be compiled alone.

/// Which file, independent of its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// `super_block.s_dev` in the kernel's encoding, major << 20 | minor.
    pub device: u32,
    pub inode: u64,
    pub generation: u32,
}
