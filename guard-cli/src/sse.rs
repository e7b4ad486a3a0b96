//! Server-sent events, as far as the console uses them: `event:` and `data:` lines, a blank line ends one.
//!
//! Owns the parser. It is given bytes as they come. It must never keep more than one event of bounded size.

/// Most bytes of one event.
const EVENT_BYTES: usize = 1 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) data: String,
}

/// Splits a stream of bytes into events.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
    event: Event,
    size: usize,
}

/// An event is larger than this program reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Parser {
    /// Takes the next bytes and gives the events that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLarge> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            self.size += line.len();
            if line.is_empty() {
                self.size = 0;
                let event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    events.push(event);
                }
            } else if let Some((field, value)) = line.split_once(':') {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "event" => value.clone_into(&mut self.event.name),
                    "data" => {
                        if !self.event.data.is_empty() {
                            self.event.data.push('\n');
                        }
                        self.event.data.push_str(value);
                    }
                    // Comments (an empty field), ids and retry times are not used.
                    _ => {}
                }
            }
        }
        if self.size + self.buffer.len() > EVENT_BYTES {
            Err(TooLarge)
        } else {
            Ok(events)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_however_the_bytes_are_cut() {
        let stream = b": hello\n\nevent: request\ndata: {\"a\":\ndata: 1}\n\nretry: 5\ndata:x\r\n\r\nevent: none\n\n";
        let expected = [
            Event {
                name: "request".to_owned(),
                data: "{\"a\":\n1}".to_owned(),
            },
            Event {
                name: String::new(),
                data: "x".to_owned(),
            },
        ];
        for size in 1..stream.len() {
            let mut parser = Parser::default();
            let mut seen = Vec::new();
            for chunk in stream.chunks(size) {
                seen.extend(parser.push(chunk).unwrap());
            }
            assert_eq!(seen, expected, "{size}");
        }
    }

    #[test]
    fn a_flood_is_refused() {
        let mut parser = Parser::default();
        assert_eq!(parser.push(&vec![b'x'; EVENT_BYTES + 1]), Err(TooLarge));
        let mut parser = Parser::default();
        let line = format!("data: {}\n", "x".repeat(1000));
        assert!((0..2000).any(|_| parser.push(line.as_bytes()).is_err()));
    }
}
