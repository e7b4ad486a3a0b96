//! A pinned map of which only sizes are known: made by another version of Guard.
//!
//! Owns reading and changing entries as bytes; given a path. It must never touch more bytes than the kernel says that a
//! key or a value of this map has.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::maps::{MapData, MapType};

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;

/// The part of `union bpf_attr` for the commands above.
#[repr(C)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    /// Of the value, or of the next key.
    other: u64,
    flags: u64,
}

#[derive(Debug)]
pub(super) struct Pinned {
    map: MapData,
    key: usize,
    value: usize,
    room: usize,
}

impl Pinned {
    /// Opens a hash table or an array whose keys have `key` bytes, and whose values have `value` bytes at least.
    pub(super) fn open(path: &Path, key: usize, value: usize) -> io::Result<Self> {
        let failed = |why: String| io::Error::other(format!("{}: {why}", path.display()));
        let map = MapData::from_pin(path).map_err(|error| failed(error.to_string()))?;
        let info = map.info().map_err(|error| failed(error.to_string()))?;
        match info.map_type() {
            Ok(MapType::Hash | MapType::Array) => {}
            other => return Err(failed(format!("it is a map of type {other:?}"))),
        }
        let (has_key, has_value) = (info.key_size() as usize, info.value_size() as usize);
        if has_key != key || has_value < value {
            return Err(failed(format!(
                "its keys have {has_key} bytes and its values {has_value}; {key} and at least {value} were expected"
            )));
        }
        Ok(Self {
            map,
            key,
            value: has_value,
            room: info.max_entries() as usize,
        })
    }

    /// The keys of one moment, not all of the same one.
    pub(super) fn keys(&self) -> io::Result<HashSet<Vec<u8>>> {
        let mut keys = HashSet::new();
        let mut last: Option<Vec<u8>> = None;
        // An entry that goes away while it is looked at begins the walk anew; it must end all the same.
        for _ in 0..self.room.saturating_mul(4).saturating_add(1) {
            let mut next = vec![0; self.key];
            let before = last.as_ref().map_or(0, |key| key.as_ptr() as u64);
            match self.call(BPF_MAP_GET_NEXT_KEY, before, next.as_mut_ptr() as u64) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
            keys.insert(next.clone());
            last = Some(next);
        }
        Err(io::Error::other("the map changes too fast to be read"))
    }

    /// The value of a key; `None` without one.
    pub(super) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut value = vec![0; self.value];
        self.fits(key, self.key).ok()?;
        self.call(BPF_MAP_LOOKUP_ELEM, key.as_ptr() as u64, value.as_mut_ptr() as u64)
            .ok()?;
        Some(value)
    }

    pub(super) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.fits(key, self.key)?;
        self.fits(value, self.value)?;
        self.call(BPF_MAP_UPDATE_ELEM, key.as_ptr() as u64, value.as_ptr() as u64)
    }

    pub(super) fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.fits(key, self.key)?;
        self.call(BPF_MAP_DELETE_ELEM, key.as_ptr() as u64, 0)
    }

    fn fits(&self, bytes: &[u8], size: usize) -> io::Result<()> {
        if bytes.len() == size {
            Ok(())
        } else {
            Err(io::Error::other(format!("{} bytes for {size}", bytes.len())))
        }
    }

    /// `key` and `other` are addresses of buffers as long as this map's keys and values, or 0 where the command allows it.
    fn call(&self, command: libc::c_int, key: u64, other: u64) -> io::Result<()> {
        let element = Element {
            map: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            reserved: 0,
            key,
            other,
            flags: 0,
        };
        // SAFETY: the kernel reads `element` and, through its addresses, as many bytes as the map's keys and values have;
        // the callers above pass buffers of these lengths that outlive the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const element, size_of::<Element>()) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// Eight bytes of a value, in the machine's order.
pub(super) fn u64_at(value: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(value.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Four bytes of a value.
pub(super) fn u32_at(value: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_beyond_a_value() {
        let value: Vec<u8> = (0..12).collect();
        assert_eq!(u32_at(&value, 8), Some(u32::from_ne_bytes([8, 9, 10, 11])));
        assert_eq!(u64_at(&value, 4), Some(u64::from_ne_bytes([4, 5, 6, 7, 8, 9, 10, 11])));
        assert_eq!(
            (u32_at(&value, 9), u64_at(&value, 5), u64_at(&value, usize::MAX)),
            (None, None, None)
        );
    }
}
