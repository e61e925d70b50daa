//! Server-sent events: the wire format, read piece by piece.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>, as far as an API needs it.

/// The most that one event may hold, in bytes: a stream that exceeds it is not ours.
const MOST: usize = 1 << 20;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub id: Option<String>,
    pub event: Option<String>,
    pub data: String,
}

/// Takes bytes in whatever pieces they come, gives whole events.
#[derive(Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
    after_cr: bool,
    current: Message,
    has_data: bool,
}

/// The stream is not one of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent sent an event larger than 1 MiB")]
pub struct TooLarge;

impl Decoder {
    /// The events that `bytes` complete.
    ///
    /// # Errors
    /// When an event exceeds the limit.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Message>, TooLarge> {
        let mut out = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' if self.after_cr => {}
                b'\n' | b'\r' => out.extend(self.end_line()),
                _ => self.line.push(byte),
            }
            self.after_cr = byte == b'\r';
            if self.line.len() + self.current.data.len() > MOST {
                return Err(TooLarge);
            }
        }
        Ok(out)
    }

    fn end_line(&mut self) -> Option<Message> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        if line.is_empty() {
            let message = std::mem::take(&mut self.current);
            return std::mem::take(&mut self.has_data).then_some(message);
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.has_data {
                    self.current.data.push('\n');
                }
                self.current.data.push_str(value);
                self.has_data = true;
            }
            "id" => self.current.id = Some(value.to_owned()),
            "event" => self.current.event = Some(value.to_owned()),
            // Comments (an empty field) keep the connection alive; the rest is not for us.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b": hello\n\nid: 1\nevent: log\ndata: {\"a\":1}\n\nid: 2\r\ndata: x\r\ndata: y\r\n\r\n";

    #[test]
    fn any_cut_of_the_bytes_gives_the_same_events() {
        let whole = Decoder::default().feed(STREAM).expect("small");
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0].data, "{\"a\":1}");
        assert_eq!(whole[1], Message { id: Some("2".into()), event: None, data: "x\ny".into() });
        for cut in 0..STREAM.len() {
            let mut decoder = Decoder::default();
            let mut events = decoder.feed(&STREAM[..cut]).expect("small");
            events.extend(decoder.feed(&STREAM[cut..]).expect("small"));
            assert_eq!(events, whole, "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut decoder = Decoder::default();
        let piece = vec![b'x'; 64 * 1024];
        assert!((0..20).any(|_| decoder.feed(&piece).is_err()));
    }
}
