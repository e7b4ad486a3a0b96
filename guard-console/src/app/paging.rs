//! Pages of lists that are short enough to be read as a whole: accounts, hosts, labels, keys, sessions.
//!
//! Owns order and cursors. A cursor is the place of the last one that was seen, not a count, so that what comes or goes
//! meanwhile neither hides nor repeats anything else.

use guard_proto::rest::Page;
use schemars::JsonSchema;
use serde::Deserialize;
use ulid::Ulid;

use super::requests::{MAX_PAGE, PAGE};
use super::{Error, Result};

/// No place is longer.
const CURSOR_BYTES: usize = 300;

/// Which page of a list somebody asks for.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Most items of a page, 50 when left out; more than 200 is 200.
    pub limit: Option<u64>,
    /// `next` of the page before.
    pub cursor: Option<String>,
}

/// A cursor that is an id.
pub(super) fn ulid_cursor(cursor: Option<&str>) -> Result<Option<&str>> {
    let cursor = cursor.filter(|id| !id.is_empty());
    if cursor.is_some_and(|id| Ulid::from_string(id).is_err()) {
        return Err(foreign());
    }
    Ok(cursor)
}

fn foreign() -> Error {
    Error::Invalid("cursor: not one that this console gave out".to_owned())
}

impl Asked {
    /// By name, which no two share.
    pub fn by_name<T>(&self, mut items: Vec<T>, name: impl Fn(&T) -> &str) -> Result<Page<T>> {
        let cursor = self.cursor()?;
        items.sort_by(|a, b| name(a).cmp(name(b)));
        items.retain(|item| cursor.is_none_or(|seen| name(item) > seen));
        Ok(self.cut(items, |item| name(item).to_owned()))
    }

    /// Newest first, by a place that sorts like the time and that no two share.
    pub fn newest_first<T>(&self, mut items: Vec<T>, place: impl Fn(&T) -> String) -> Result<Page<T>> {
        let cursor = self.cursor()?;
        items.sort_by_cached_key(|item| std::cmp::Reverse(place(item)));
        items.retain(|item| cursor.is_none_or(|seen| *place(item) < *seen));
        Ok(self.cut(items, place))
    }

    fn cursor(&self) -> Result<Option<&str>> {
        let cursor = self.cursor.as_deref().filter(|cursor| !cursor.is_empty());
        if cursor.is_some_and(|cursor| cursor.len() > CURSOR_BYTES) {
            return Err(foreign());
        }
        Ok(cursor)
    }

    fn cut<T>(&self, mut items: Vec<T>, place: impl Fn(&T) -> String) -> Page<T> {
        let limit = usize::try_from(self.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE)).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(place);
        Page { items, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(limit: u64, cursor: Option<String>) -> Asked {
        Asked {
            limit: Some(limit),
            cursor,
        }
    }

    #[test]
    fn what_comes_and_goes_hides_nothing() {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let first = asked(2, None).by_name(all(&["d", "a", "c"]), |n| n).unwrap();
        assert_eq!((first.items, first.next.as_deref()), (all(&["a", "c"]), Some("c")));
        // `b` came, `c` went: the rest is what was not seen and lies behind.
        let rest = asked(2, first.next).by_name(all(&["a", "b", "d", "e"]), |n| n).unwrap();
        assert_eq!((rest.items, rest.next), (all(&["d", "e"]), None));
        let newest = asked(1, None)
            .newest_first(all(&["1", "3", "2"]), Clone::clone)
            .unwrap();
        assert_eq!((newest.items, newest.next.as_deref()), (all(&["3"]), Some("3")));
        let older = asked(9, newest.next)
            .newest_first(all(&["4", "1", "3", "2"]), Clone::clone)
            .unwrap();
        assert_eq!((older.items, older.next), (all(&["2", "1"]), None));
        assert_eq!(asked(0, None).by_name(all(&["a", "b"]), |n| n).unwrap().items.len(), 1);
        assert!(asked(1, Some("x".repeat(301))).by_name(all(&["a"]), |n| n).is_err());
    }
}
