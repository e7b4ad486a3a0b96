//! Reads structure layouts from the kernel's BTF.
//!
//! Owns the parse of one BTF blob; given its bytes, which are checked as if anybody had written them. It must never
//! guess: a member that is missing, a bit field, of another width or different in two structures of one name is an
//! error that names it.

use std::collections::HashMap;

const MAGIC: u16 = 0xeb9f;
/// vmlinux has about 130,000 types.
const MAX_TYPES: usize = 4_000_000;
/// How deep anonymous members and type aliases are followed.
const MAX_DEPTH: usize = 16;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BtfError {
    #[error("the kernel's type information (BTF) is malformed: {0}")]
    Malformed(&'static str),
    #[error("this kernel's BTF has no `struct {0}`")]
    NoStruct(String),
    #[error("this kernel's `struct {0}` has no member `{1}`")]
    NoMember(String, String),
    #[error("`struct {0}` occurs more than once in this kernel's BTF, with `{1}` at different places")]
    Ambiguous(String, String),
    #[error("`{1}` of this kernel's `struct {0}` is {2} bytes wide, {3} were expected")]
    Width(String, String, u64, u64),
    #[error("`{1}` of this kernel's `struct {0}` is a bit field")]
    BitField(String, String),
}

#[derive(Clone, Copy)]
enum Type {
    Sized(u64),
    Alias(u32),
    Pointer,
    Array {
        element: u32,
        count: u32,
    },
    /// Members: index of the first in `Btf::members`, and how many.
    Composite {
        size: u32,
        first: u32,
        count: u32,
        bits: bool,
    },
    Other,
}

#[derive(Clone, Copy)]
struct Member {
    name: u32,
    kind: u32,
    offset: u32,
}

/// Parsed type information.
pub(crate) struct Btf<'a> {
    strings: &'a [u8],
    types: Vec<Type>,
    members: Vec<Member>,
    structs: HashMap<&'a [u8], Vec<u32>>,
    functions: HashMap<&'a [u8], u32>,
}

impl std::fmt::Debug for Btf<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Btf")
            .field("types", &self.types.len())
            .finish_non_exhaustive()
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn word(&mut self) -> Result<u32, BtfError> {
        let (head, rest) = self
            .bytes
            .split_first_chunk::<4>()
            .ok_or(BtfError::Malformed("it ends within a type"))?;
        self.bytes = rest;
        Ok(u32::from_le_bytes(*head))
    }

    fn skip(&mut self, bytes: usize) -> Result<(), BtfError> {
        self.bytes = self
            .bytes
            .get(bytes..)
            .ok_or(BtfError::Malformed("it ends within a type"))?;
        Ok(())
    }
}

fn section(bytes: &[u8], header: usize, offset: u32, length: u32) -> Result<&[u8], BtfError> {
    let start = header
        .checked_add(offset as usize)
        .ok_or(BtfError::Malformed("a section offset"))?;
    let end = start
        .checked_add(length as usize)
        .ok_or(BtfError::Malformed("a section length"))?;
    bytes
        .get(start..end)
        .ok_or(BtfError::Malformed("a section outside the file"))
}

impl<'a> Btf<'a> {
    /// Parses a little-endian BTF blob, as /sys/kernel/btf/vmlinux has it.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let mut reader = Reader { bytes };
        let first = reader.word()?;
        if first.to_le_bytes()[..2] != MAGIC.to_le_bytes() {
            return Err(BtfError::Malformed("no BTF magic"));
        }
        let header = reader.word()? as usize;
        let (type_offset, type_length) = (reader.word()?, reader.word()?);
        let (string_offset, string_length) = (reader.word()?, reader.word()?);
        let mut btf = Self {
            strings: section(bytes, header, string_offset, string_length)?,
            types: vec![Type::Sized(0)],
            members: Vec::new(),
            structs: HashMap::new(),
            functions: HashMap::new(),
        };
        let mut reader = Reader {
            bytes: section(bytes, header, type_offset, type_length)?,
        };
        while !reader.bytes.is_empty() {
            if btf.types.len() >= MAX_TYPES {
                return Err(BtfError::Malformed("too many types"));
            }
            btf.one(&mut reader)?;
        }
        Ok(btf)
    }

    fn one(&mut self, reader: &mut Reader<'_>) -> Result<(), BtfError> {
        let (name, info, size) = (reader.word()?, reader.word()?, reader.word()?);
        let count = (info & 0xffff) as usize;
        let id = u32::try_from(self.types.len()).map_err(|_| BtfError::Malformed("too many types"))?;
        let kind = match (info >> 24) & 0x1f {
            1 => {
                reader.skip(4)?;
                Type::Sized(u64::from(size))
            }
            2 => Type::Pointer,
            3 => {
                let (element, _index, count) = (reader.word()?, reader.word()?, reader.word()?);
                Type::Array { element, count }
            }
            code @ (4 | 5) => {
                let first = u32::try_from(self.members.len()).map_err(|_| BtfError::Malformed("too many members"))?;
                for _ in 0..count {
                    let member = Member {
                        name: reader.word()?,
                        kind: reader.word()?,
                        offset: reader.word()?,
                    };
                    self.members.push(member);
                }
                if code == 4 && name != 0 {
                    let text = self.string(name)?;
                    self.structs.entry(text).or_default().push(id);
                }
                Type::Composite {
                    size,
                    first,
                    count: info & 0xffff,
                    bits: info >> 31 == 1,
                }
            }
            6 => {
                reader.skip(count * 8)?;
                Type::Sized(u64::from(size))
            }
            7 => Type::Other,
            8..=11 | 18 => Type::Alias(size),
            12 => {
                let text = self.string(name)?;
                self.functions.insert(text, id);
                Type::Other
            }
            13 => {
                reader.skip(count * 8)?;
                Type::Other
            }
            14 | 17 => {
                reader.skip(4)?;
                Type::Other
            }
            15 => {
                reader.skip(count * 12)?;
                Type::Other
            }
            16 => Type::Sized(u64::from(size)),
            19 => {
                reader.skip(count * 12)?;
                Type::Sized(u64::from(size))
            }
            _ => return Err(BtfError::Malformed("a kind of type that is not known")),
        };
        self.types.push(kind);
        Ok(())
    }

    fn string(&self, offset: u32) -> Result<&'a [u8], BtfError> {
        let rest = self
            .strings
            .get(offset as usize..)
            .ok_or(BtfError::Malformed("a name outside the strings"))?;
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(BtfError::Malformed("a name without end"))?;
        Ok(&rest[..end])
    }

    fn kind(&self, id: u32) -> Result<Type, BtfError> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            match self.types.get(id as usize) {
                Some(Type::Alias(to)) => id = *to,
                Some(other) => return Ok(*other),
                None => return Err(BtfError::Malformed("a type id outside the table")),
            }
        }
        Err(BtfError::Malformed("type aliases without end"))
    }

    fn width(&self, id: u32, depth: usize) -> Result<u64, BtfError> {
        if depth > MAX_DEPTH {
            return Err(BtfError::Malformed("arrays without end"));
        }
        Ok(match self.kind(id)? {
            Type::Sized(size) => size,
            Type::Pointer => 8,
            Type::Array { element, count } => self.width(element, depth + 1)?.saturating_mul(u64::from(count)),
            Type::Composite { size, .. } => u64::from(size),
            Type::Alias(_) | Type::Other => 0,
        })
    }

    /// The kernel has a function of this name that programs can attach to.
    #[must_use]
    pub(crate) fn has_function(&self, name: &str) -> bool {
        self.functions.contains_key(name.as_bytes())
    }

    /// Bytes of `struct name`.
    pub(crate) fn size_of(&self, name: &str) -> Result<u32, BtfError> {
        let ids = self
            .structs
            .get(name.as_bytes())
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))?;
        let mut found = None;
        for id in ids {
            if let Type::Composite { size, .. } = self.kind(*id)? {
                if found.is_some_and(|before| before != size) {
                    return Err(BtfError::Ambiguous(name.to_owned(), "its size".to_owned()));
                }
                found = Some(size);
            }
        }
        found.ok_or_else(|| BtfError::NoStruct(name.to_owned()))
    }

    /// Offset in bytes of a member, also inside unnamed structs and unions. `width` is how many bytes the programs read
    /// there; 0 for a member that is only entered.
    pub(crate) fn offset(&self, name: &str, member: &str, width: u64) -> Result<u32, BtfError> {
        let missing = || BtfError::NoMember(name.to_owned(), member.to_owned());
        let ids = self
            .structs
            .get(name.as_bytes())
            .ok_or_else(|| BtfError::NoStruct(name.to_owned()))?;
        let mut found: Option<(u32, u32)> = None;
        for id in ids {
            match self.find(*id, member.as_bytes(), 0)? {
                Some(here) => {
                    if found.is_some_and(|before| before.0 != here.0) {
                        return Err(BtfError::Ambiguous(name.to_owned(), member.to_owned()));
                    }
                    found = Some(here);
                }
                None if ids.len() > 1 => return Err(BtfError::Ambiguous(name.to_owned(), member.to_owned())),
                None => return Err(missing()),
            }
        }
        let (bits, kind) = found.ok_or_else(missing)?;
        if bits == u32::MAX || bits % 8 != 0 {
            return Err(BtfError::BitField(name.to_owned(), member.to_owned()));
        }
        let actual = self.width(kind, 0)?;
        if width != 0 && actual != width {
            return Err(BtfError::Width(name.to_owned(), member.to_owned(), actual, width));
        }
        Ok(bits / 8)
    }

    /// Offset in bits and type of a member; `u32::MAX` for a bit field.
    fn find(&self, id: u32, member: &[u8], depth: usize) -> Result<Option<(u32, u32)>, BtfError> {
        let Type::Composite { first, count, bits, .. } = self.kind(id)? else {
            return Ok(None);
        };
        if depth > MAX_DEPTH {
            return Err(BtfError::Malformed("structures without end"));
        }
        let members = self
            .members
            .get(first as usize..(first as usize).saturating_add(count as usize))
            .ok_or(BtfError::Malformed("members outside the table"))?;
        for found in members {
            let (offset, field) = if bits {
                (found.offset & 0x00ff_ffff, found.offset >> 24)
            } else {
                (found.offset, 0)
            };
            if found.name == 0 {
                if let Some((inner, kind)) = self.find(found.kind, member, depth + 1)? {
                    let sum = inner.checked_add(offset).ok_or(BtfError::Malformed("an offset"))?;
                    return Ok(Some((if inner == u32::MAX { inner } else { sum }, kind)));
                }
            } else if self.string(found.name)? == member {
                return Ok(Some((if field == 0 { offset } else { u32::MAX }, found.kind)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A blob of `types` words and strings.
    fn blob(types: &[u32], strings: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (types_length, strings_length) = (
            u32::try_from(types.len() * 4).unwrap(),
            u32::try_from(strings.len()).unwrap(),
        );
        for word in [0x0001_eb9f, 24, 0, types_length, types_length, strings_length] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in types {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(strings);
        bytes
    }

    // "\0int\0s\0a\0b\0"
    const STRINGS: &[u8] = b"\0int\0s\0a\0b\0";
    const INT: [u32; 4] = [1, 1 << 24, 4, 32];

    #[test]
    fn members_inside_unnamed_unions_are_found() {
        // 1 int; 2 union { int a; int b; } unnamed; 3 struct s { int a0?; union at bit 32 }
        let mut types = INT.to_vec();
        types.extend([0, (5 << 24) | 1, 4, 9, 1, 0]);
        types.extend([5, (4 << 24) | 2, 8, 7, 1, 0, 0, 2, 32]);
        let bytes = blob(&types, STRINGS);
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("s", "a", 4), Ok(0));
        assert_eq!(btf.offset("s", "b", 4), Ok(4));
        assert_eq!(btf.size_of("s"), Ok(8));
        assert_eq!(
            btf.offset("s", "b", 8),
            Err(BtfError::Width("s".into(), "b".into(), 4, 8))
        );
        assert_eq!(btf.offset("s", "c", 4), Err(BtfError::NoMember("s".into(), "c".into())));
        assert_eq!(btf.offset("t", "a", 4), Err(BtfError::NoStruct("t".into())));
    }

    #[test]
    fn two_structures_that_differ_are_ambiguous_and_bit_fields_are_refused() {
        let mut types = INT.to_vec();
        types.extend([5, (4 << 24) | 1, 8, 7, 1, 0]);
        types.extend([5, (4 << 24) | 1, 8, 7, 1, 32]);
        let bytes = blob(&types, STRINGS);
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(
            btf.offset("s", "a", 4),
            Err(BtfError::Ambiguous("s".into(), "a".into()))
        );

        let mut types = INT.to_vec();
        types.extend([5, (1 << 31) | (4 << 24) | 1, 8, 7, 1, (3 << 24) | 8]);
        let bytes = blob(&types, STRINGS);
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("s", "a", 0), Err(BtfError::BitField("s".into(), "a".into())));
    }

    #[test]
    fn damaged_bytes_are_errors() {
        let mut types = INT.to_vec();
        types.extend([5, (4 << 24) | 1, 8, 7, 1, 0]);
        let bytes = blob(&types, STRINGS);
        for length in 0..bytes.len() {
            // The shorter ones are refused; none may panic.
            assert!(Btf::parse(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                if let Ok(btf) = Btf::parse(&damaged) {
                    let _ = btf.offset("s", "a", 4);
                    let _ = btf.size_of("s");
                }
            }
        }
    }
}
