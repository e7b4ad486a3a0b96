//! Printing: tables, JSON, times, colours.
//!
//! Owns how things look on a terminal. It is given text that is already safe to show. Colour carries no meaning alone,
//! and none is used where NO_COLOR or a pipe says so.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anstyle::{AnsiColor, Style};
use guard_evidence::statement::{Part, Style as PartStyle};
use jiff::{SpanRound, Timestamp, Unit, tz::TimeZone};
use serde::Serialize;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::args::Output;
use crate::failure::Failure;

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const RED: Style = AnsiColor::Red.on_default().bold();

/// Prints a line to standard output. A reader that went away ends the command quietly.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    quiet_pipe(writeln!(anstream::stdout(), "{text}"))
}

/// Prints a remark for people to standard error.
pub(crate) fn note(text: &str) {
    // Nowhere left to say that standard error is closed.
    writeln!(anstream::stderr(), "{text}").ok();
}

/// Prints JSON on one line (`compact`) or indented.
pub(crate) fn json<T: Serialize>(value: &T, compact: bool) -> Result<(), Failure> {
    let text = if compact {
        serde_json::to_string(value)?
    } else {
        serde_json::to_string_pretty(value)?
    };
    quiet_pipe(writeln!(io::stdout(), "{text}"))
}

/// Prints exact bytes.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout();
    quiet_pipe(out.write_all(bytes).and_then(|()| out.flush()))
}

fn quiet_pipe(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// `text` in a style; plain where colours are off.
pub(crate) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// The sentence of a card for a terminal.
pub(crate) fn sentence(parts: &[Part]) -> String {
    let mut out = String::new();
    for part in parts {
        match part.style {
            PartStyle::Plain => out.push_str(&part.text),
            PartStyle::Who | PartStyle::Where => out.push_str(&styled(BOLD, &part.text)),
            PartStyle::What => out.push_str(&styled(BOLD, &format!("`{}`", part.text))),
            PartStyle::Danger => out.push_str(&styled(RED, &part.text)),
        }
    }
    out
}

/// Columns of a terminal, `None` if it is not one.
pub(crate) fn columns() -> Option<usize> {
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))
}

/// A table with a heading. The column `grows` is folded in the middle so that rows fit a terminal.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>], grows: usize) -> Result<(), Failure> {
    line(&render(heading, rows, grows, columns()))
}

/// A list as it was asked for: JSON, or a table with a heading, a row for each, whose column `grows` is folded. For people, `nothing`
/// stands for a list without any.
pub(crate) fn list<T: Serialize>(
    form: Output,
    items: &[T],
    nothing: Option<&str>,
    heading: &[&str],
    grows: usize,
    row: impl Fn(&T) -> Vec<String>,
) -> Result<(), Failure> {
    if form == Output::Json {
        return json(&serde_json::json!({ "items": items }), false);
    }
    if items.is_empty()
        && let Some(nothing) = nothing
    {
        note(nothing);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    table(heading, &rows, grows)
}

fn render(heading: &[&str], rows: &[Vec<String>], grows: usize, columns: Option<usize>) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|h| h.width()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    if let (Some(columns), Some(own)) = (columns, widths.get(grows).copied()) {
        let others: usize = widths.iter().sum::<usize>() - own + 2 * (widths.len() - 1);
        widths[grows] = own.min(columns.saturating_sub(others).max(24));
    }
    let mut out = String::new();
    let mut put = |cells: &mut dyn Iterator<Item = String>, last: bool| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            let cell = fold_width(&cell, *width);
            let pad = width.saturating_sub(cell.width());
            let _ = write!(text, "{cell}{}  ", " ".repeat(pad));
        }
        out.push_str(text.trim_end());
        if !last {
            out.push('\n');
        }
    };
    put(&mut heading.iter().map(|h| (*h).to_owned()), rows.is_empty());
    for (n, row) in rows.iter().enumerate() {
        put(&mut row.iter().cloned(), n + 1 == rows.len());
    }
    out
}

/// Folds in the middle by columns on the screen.
fn fold_width(text: &str, most: usize) -> String {
    if text.width() <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub(1);
    let take = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        chars
            .take_while(|c| {
                used += c.width().unwrap_or(0);
                used <= room
            })
            .collect::<String>()
    };
    let head = take(&mut text.chars(), room.div_ceil(2));
    let tail: String = take(&mut text.chars().rev(), room / 2).chars().rev().collect();
    format!("{head}…{tail}")
}

/// `name  value` lines; later lines of a value stand under its first.
pub(crate) fn fields(rows: &[(&str, Vec<String>)]) -> Result<(), Failure> {
    let width = rows.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    for (name, values) in rows {
        for (n, value) in values.iter().enumerate() {
            let name = if n == 0 { *name } else { "" };
            line(format!("{}{}  {value}", styled(DIM, name), " ".repeat(width - name.width())).trim_end())?;
        }
    }
    Ok(())
}

/// A UTC time of the API as the local time, for people.
pub(crate) fn local(time: &str) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => time
            .to_zoned(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => guard_evidence::text::defuse(time),
    }
}

/// From one time to another (or to now), in a few characters: `12s`, `3m04s`, `2h05m`, `3d04h`.
pub(crate) fn span(from: &str, to: Option<&str>) -> String {
    let (Ok(from), Ok(to)) = (
        from.parse::<Timestamp>(),
        to.map_or_else(|| Ok(Timestamp::now()), str::parse),
    ) else {
        return "?".to_owned();
    };
    seconds(to.duration_since(from).as_secs())
}

/// A number of seconds in a few characters.
pub(crate) fn seconds(seconds: i64) -> String {
    let s = seconds.max(0);
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

/// Milliseconds as people say them: `0.4 s`, `41 s`, `3 min 4 s`.
pub(crate) fn after(ms: u64) -> String {
    if ms < 10_000 {
        return format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    }
    let s = ms / 1000;
    if s < 60 {
        format!("{s} s")
    } else {
        seconds(i64::try_from(s).unwrap_or(i64::MAX))
    }
}

/// Seconds of a duration as people write it: `90`, `30m`, `2h`, `1d`.
pub(crate) fn parse_seconds(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds);
    }
    let span: jiff::Span = text.parse().ok()?;
    let round = SpanRound::new()
        .largest(Unit::Second)
        .smallest(Unit::Second)
        .days_are_24_hours();
    u64::try_from(span.round(round).ok()?.get_seconds()).ok()
}

/// A time as people give it, as the API takes it: RFC 3339, or a local date or date and time.
pub(crate) fn parse_time(text: &str) -> Result<String, Failure> {
    let zoned = |dt: jiff::civil::DateTime| dt.to_zoned(TimeZone::system()).ok().map(|z| z.timestamp());
    let time = text
        .parse::<Timestamp>()
        .ok()
        .or_else(|| text.parse::<jiff::civil::DateTime>().ok().and_then(zoned))
        .or_else(|| {
            text.parse::<jiff::civil::Date>()
                .ok()
                .and_then(|d| zoned(d.at(0, 0, 0, 0)))
        });
    time.map(|t| t.to_string()).ok_or_else(|| {
        Failure::usage(format!(
            "`{}` is not a time: write 2026-11-21, 2026-11-21T10:00 or 2026-11-21T10:00:00Z",
            guard_evidence::text::visible(text)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_fold_in_the_middle() {
        let rows = vec![
            vec![
                "01J…Q7".to_owned(),
                "git push --force origin main".to_owned(),
                "x".to_owned(),
            ],
            vec![
                "01J…R2".to_owned(),
                format!("rm {} --danger", "漢字".repeat(30)),
                "y".to_owned(),
            ],
        ];
        let text = render(&["ID", "WHAT", "ASKS"], &rows, 1, Some(50));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|l| l.width() <= 50), "{text}");
        assert!(lines[2].contains("rm ") && lines[2].contains("--danger"), "{text}");
        assert_eq!(render(&["A"], &[], 0, None), "A");
        let wide = render(&["ID", "WHAT", "ASKS"], &rows, 1, None);
        assert!(wide.contains(&"漢字".repeat(30)), "a pipe gets everything");
    }

    #[test]
    fn spans() {
        assert_eq!(span("2026-11-21T10:00:00Z", Some("2026-11-21T10:03:04Z")), "3m04s");
        assert_eq!(span("2026-11-21T10:00:00Z", Some("2026-11-21T09:03:04Z")), "0s");
        assert_eq!(span("x", None), "?");
        assert_eq!(
            (seconds(12), seconds(7500), seconds(100_000)),
            ("12s".into(), "2h05m".into(), "1d03h".into())
        );
        assert_eq!(
            (after(420), after(41_300), after(184_000)),
            ("0.4 s".into(), "41 s".into(), "3m04s".into())
        );
    }

    #[test]
    fn durations_and_times_of_people() {
        for (text, expected) in [("90", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400), ("1h30m", 5400)] {
            assert_eq!(parse_seconds(text), Some(expected), "{text}");
        }
        for bad in ["", "x", "-5m", "1 fortnight"] {
            assert_eq!(parse_seconds(bad), None, "{bad}");
        }
        assert_eq!(parse_time("2026-11-21T10:00:00Z").unwrap(), "2026-11-21T10:00:00Z");
        assert!(parse_time("2026-11-21").unwrap().ends_with('Z'));
        assert!(parse_time("yesterday").is_err());
    }
}
