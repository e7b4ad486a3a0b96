//! The programs that ask about changes of files, and the space that is free of questions.
//!
//! Owns the list of programs and what a directory's entry in FREE is. It must never name a directory that it was not told to.

use guard_common::FreeKey;
use guard_common::protect::FileId;

use super::api::LabelId;
use super::load::Attach;

/// Program and where it is attached; optional ones where kernels differ.
pub(super) const PROGRAMS: [(&str, Attach); 22] = [
    // First: what takes away comes before what remembers.
    ("guard_files_free", Attach::Lsm("file_free_security")),
    ("guard_files_open", Attach::Lsm("file_open")),
    ("guard_files_mknod", Attach::Lsm("path_mknod")),
    ("guard_files_unlink", Attach::Lsm("path_unlink")),
    ("guard_files_rmdir", Attach::Lsm("path_rmdir")),
    ("guard_files_mkdir", Attach::Lsm("path_mkdir")),
    ("guard_files_symlink", Attach::Lsm("path_symlink")),
    ("guard_files_link", Attach::Lsm("path_link")),
    ("guard_files_rename", Attach::Lsm("path_rename")),
    ("guard_files_write", Attach::Lsm("file_permission")),
    ("guard_files_map", Attach::Lsm("mmap_file")),
    ("guard_files_protect", Attach::Lsm("file_mprotect")),
    // Until 6.1 ftruncate(2) is seen by path_truncate.
    ("guard_files_ftruncate", Attach::LsmIfThere("file_truncate")),
    ("guard_files_truncate", Attach::Lsm("path_truncate")),
    ("guard_files_chmod", Attach::Lsm("path_chmod")),
    ("guard_files_chown", Attach::Lsm("path_chown")),
    ("guard_files_setxattr", Attach::Lsm("inode_setxattr")),
    ("guard_files_removexattr", Attach::Lsm("inode_removexattr")),
    // Until 6.1 access control lists are attributes.
    ("guard_files_set_acl", Attach::LsmIfThere("inode_set_acl")),
    ("guard_files_remove_acl", Attach::LsmIfThere("inode_remove_acl")),
    ("guard_files_queue", Attach::Lsm("inode_create")),
    ("guard_files_queue_gone", Attach::Lsm("inode_unlink")),
];

/// The entry of a directory that is free for a label; for every label without one.
#[must_use]
pub fn free(label: Option<LabelId>, directory: FileId) -> FreeKey {
    FreeKey {
        directory,
        label: label.map_or(0, |label| label.0),
        reserved: 0,
    }
}
