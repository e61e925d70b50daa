//! Messages of the D-Bus protocol as bytes, and back. Knows no socket and no service.
//!
//! Source: the D-Bus specification, "Type System" and "Message Protocol". Written little-endian,
//! read in both orders. Whatever a peer sends is bounded: in length, in depth, in what it may claim.

/// The longest message that is read; a list of all units of a large host is a twentieth of it.
pub const LONGEST_MESSAGE: usize = 16 << 20;

/// Containers within containers, as the specification allows for both kinds together.
const DEEPEST: usize = 64;

/// The fixed part of a header, with the length of the fields that follow.
pub const HEAD: usize = 16;

/// A value of the type system.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Byte(u8),
    Bool(bool),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    Str(String),
    Path(String),
    Signature(String),
    /// The index of a file descriptor that came with the message; they are not taken.
    Handle(u32),
    /// The signature of its items, and they.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Entry(Box<Value>, Box<Value>),
    Variant(Box<Value>),
}

impl Value {
    /// A list of strings.
    #[must_use]
    pub fn strings(items: &[&str]) -> Self {
        let items = items.iter().map(|item| Self::Str((*item).to_owned())).collect();
        Self::Array("s".to_owned(), items)
    }

    /// The text of a string, path or signature.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Path(text) | Self::Signature(text) => Some(text),
            Self::Variant(inner) => inner.as_str(),
            _ => None,
        }
    }

    /// The items of an array or the fields of a struct.
    #[must_use]
    pub fn items(&self) -> &[Self] {
        match self {
            Self::Array(_, items) | Self::Struct(items) => items,
            Self::Variant(inner) => inner.items(),
            _ => &[],
        }
    }

    /// The value of this key, in a dictionary with strings as keys.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.items().iter().find_map(|item| match item {
            Self::Entry(name, value) if name.as_str() == Some(key) => Some(&**value),
            _ => None,
        })
    }

    /// Its type, in letters.
    #[must_use]
    pub fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".to_owned(),
            Self::Bool(_) => "b".to_owned(),
            Self::I16(_) => "n".to_owned(),
            Self::U16(_) => "q".to_owned(),
            Self::I32(_) => "i".to_owned(),
            Self::U32(_) => "u".to_owned(),
            Self::I64(_) => "x".to_owned(),
            Self::U64(_) => "t".to_owned(),
            Self::F64(_) => "d".to_owned(),
            Self::Str(_) => "s".to_owned(),
            Self::Path(_) => "o".to_owned(),
            Self::Signature(_) => "g".to_owned(),
            Self::Handle(_) => "h".to_owned(),
            Self::Array(of, _) => format!("a{of}"),
            Self::Struct(fields) => format!("({})", signature_of(fields)),
            Self::Entry(key, value) => format!("{{{}{}}}", key.signature(), value.signature()),
            Self::Variant(_) => "v".to_owned(),
        }
    }
}

fn signature_of(values: &[Value]) -> String {
    values.iter().map(Value::signature).collect()
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Call = 1,
    Return = 2,
    Error = 3,
    Signal = 4,
}

/// A message. Fields that it does not have are empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub kind: Kind,
    pub serial: u32,
    pub reply_to: u32,
    pub path: String,
    pub interface: String,
    pub member: String,
    pub error: String,
    pub destination: String,
    pub sender: String,
    pub body: Vec<Value>,
}

impl Message {
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        let none = String::new;
        Self {
            kind,
            serial: 0,
            reply_to: 0,
            path: none(),
            interface: none(),
            member: none(),
            error: none(),
            destination: none(),
            sender: none(),
            body: Vec::new(),
        }
    }

    /// The message as it goes over the socket.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.body.iter().for_each(|value| write(&mut body, value));
        let mut fields = Vec::new();
        let mut field = |code: u8, value: Value| {
            fields.push(Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]));
        };
        let text = |value: &str| Value::Str(value.to_owned());
        if !self.path.is_empty() {
            field(1, Value::Path(self.path.clone()));
        }
        for (code, value) in [(2, &self.interface), (3, &self.member), (4, &self.error)] {
            if !value.is_empty() {
                field(code, text(value));
            }
        }
        if self.reply_to != 0 {
            field(5, Value::U32(self.reply_to));
        }
        for (code, value) in [(6, &self.destination), (7, &self.sender)] {
            if !value.is_empty() {
                field(code, text(value));
            }
        }
        if !self.body.is_empty() {
            field(8, Value::Signature(signature_of(&self.body)));
        }
        let mut bytes = vec![b'l', self.kind as u8, 0, 1];
        write(&mut bytes, &Value::U32(length(&body)));
        write(&mut bytes, &Value::U32(self.serial));
        write(&mut bytes, &Value::Array("(yv)".to_owned(), fields));
        pad(&mut bytes, 8);
        bytes.extend_from_slice(&body);
        bytes
    }

    /// How long the message is that begins with these bytes.
    ///
    /// # Errors
    /// When they are not the head of a message, or of one that is too long.
    pub fn whole_length(head: &[u8; HEAD]) -> Result<usize, String> {
        let mut reader = Reader::new(head)?;
        reader.at = 4;
        let body = reader.length()?;
        reader.at = 12;
        let fields = reader.length()?;
        let whole = (HEAD + fields).next_multiple_of(8) + body;
        if whole > LONGEST_MESSAGE {
            return Err(format!("a message of {whole} bytes is too long"));
        }
        Ok(whole)
    }

    /// Reads one whole message. `None`: of a kind that this version of the protocol does not have.
    ///
    /// # Errors
    /// When the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, String> {
        let mut reader = Reader::new(bytes)?;
        let kind = match bytes.get(1) {
            Some(1) => Kind::Call,
            Some(2) => Kind::Return,
            Some(3) => Kind::Error,
            Some(4) => Kind::Signal,
            _ => return Ok(None),
        };
        let mut message = Self::new(kind);
        reader.at = 8;
        message.serial = reader.u32()?;
        let fields = reader.value("a(yv)", 0)?;
        let mut signature = String::new();
        for field in fields.items() {
            let [Value::Byte(code), value] = field.items() else { continue };
            let text = || value.as_str().unwrap_or_default().to_owned();
            match (code, value) {
                (1, _) => message.path = text(),
                (2, _) => message.interface = text(),
                (3, _) => message.member = text(),
                (4, _) => message.error = text(),
                (5, Value::Variant(inner)) => {
                    if let Value::U32(serial) = **inner {
                        message.reply_to = serial;
                    }
                }
                (6, _) => message.destination = text(),
                (7, _) => message.sender = text(),
                (8, _) => signature = text(),
                _ => {}
            }
        }
        reader.align(8)?;
        // Alignment is counted from the start of the body, which is a multiple of eight.
        let mut rest = signature.as_str();
        while !rest.is_empty() {
            let (one, more) = split(rest)?;
            message.body.push(reader.value(one, 0)?);
            rest = more;
        }
        Ok(Some(message))
    }
}

fn write(out: &mut Vec<u8>, value: &Value) {
    pad(out, alignment(&value.signature()));
    match value {
        Value::Byte(byte) => out.push(*byte),
        Value::Bool(yes) => out.extend_from_slice(&u32::from(*yes).to_le_bytes()),
        Value::I16(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::U16(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I32(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::U32(number) | Value::Handle(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::I64(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::U64(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::F64(number) => out.extend_from_slice(&number.to_le_bytes()),
        Value::Str(text) | Value::Path(text) => {
            out.extend_from_slice(&length(text.as_bytes()).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
            out.push(0);
        }
        Value::Signature(text) => write_signature(out, text),
        Value::Array(of, items) => {
            let at = out.len();
            out.extend_from_slice(&[0; 4]);
            pad(out, alignment(of));
            let begin = out.len();
            items.iter().for_each(|item| write(out, item));
            let bytes = length(&out[begin..]).to_le_bytes();
            out[at..at + 4].copy_from_slice(&bytes);
        }
        Value::Struct(fields) => fields.iter().for_each(|field| write(out, field)),
        Value::Entry(key, value) => {
            write(out, key);
            write(out, value);
        }
        Value::Variant(inner) => {
            write_signature(out, &inner.signature());
            write(out, inner);
        }
    }
}

fn write_signature(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'n' | b'q') => 2,
        Some(b'b' | b'i' | b'u' | b's' | b'o' | b'a' | b'h') => 4,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 1,
    }
}

/// The first complete type of a signature, and the rest.
fn split(signature: &str) -> Result<(&str, &str), String> {
    let bytes = signature.as_bytes();
    let mut at = 0;
    while bytes.get(at) == Some(&b'a') {
        at += 1;
    }
    let mut open = 0_usize;
    loop {
        match bytes.get(at) {
            Some(b'(' | b'{') => open += 1,
            Some(b')' | b'}') if open > 0 => open -= 1,
            Some(letter) if letter.is_ascii_alphabetic() => {}
            _ => return Err(format!("{signature:?} is not a signature")),
        }
        at += 1;
        if open == 0 {
            return Ok(signature.split_at(at));
        }
    }
}

/// Reads values; every read is checked against the end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    big: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, String> {
        let big = match bytes.first() {
            Some(b'l') => false,
            Some(b'B') => true,
            _ => return Err("this is not a message of D-Bus".to_owned()),
        };
        Ok(Self { bytes, at: 0, big })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.align(N)?;
        let taken = self.bytes.get(self.at..self.at + N).and_then(|part| part.try_into().ok());
        let mut taken: [u8; N] = taken.ok_or("the message ends too early")?;
        self.at += N;
        if self.big {
            taken.reverse();
        }
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take().map(u32::from_le_bytes)
    }

    fn length(&mut self) -> Result<usize, String> {
        let length = self.u32()? as usize;
        if length > LONGEST_MESSAGE {
            Err("a part of the message is too long".to_owned())
        } else {
            Ok(length)
        }
    }

    fn align(&mut self, to: usize) -> Result<(), String> {
        self.at = self.at.next_multiple_of(to);
        if self.at > self.bytes.len() { Err("the message ends too early".to_owned()) } else { Ok(()) }
    }

    fn text(&mut self, length: usize) -> Result<String, String> {
        let text = self.bytes.get(self.at..self.at + length).ok_or("the message ends too early")?;
        self.at += length + 1;
        String::from_utf8(text.to_vec()).map_err(|_| "a text is not UTF-8".to_owned())
    }

    fn value(&mut self, signature: &str, depth: usize) -> Result<Value, String> {
        if depth > DEEPEST {
            return Err("a value is nested too deeply".to_owned());
        }
        let inner = signature.get(1..signature.len().saturating_sub(1)).unwrap_or_default();
        Ok(match signature.as_bytes().first() {
            Some(b'y') => Value::Byte(u8::from_le_bytes(self.take()?)),
            Some(b'b') => Value::Bool(self.u32()? != 0),
            Some(b'n') => Value::I16(i16::from_le_bytes(self.take()?)),
            Some(b'q') => Value::U16(u16::from_le_bytes(self.take()?)),
            Some(b'i') => Value::I32(i32::from_le_bytes(self.take()?)),
            Some(b'u') => Value::U32(self.u32()?),
            Some(b'h') => Value::Handle(self.u32()?),
            Some(b'x') => Value::I64(i64::from_le_bytes(self.take()?)),
            Some(b't') => Value::U64(u64::from_le_bytes(self.take()?)),
            Some(b'd') => Value::F64(f64::from_le_bytes(self.take()?)),
            Some(b's') => Value::Str(self.length().and_then(|length| self.text(length))?),
            Some(b'o') => Value::Path(self.length().and_then(|length| self.text(length))?),
            Some(b'g') => Value::Signature(self.signature()?),
            Some(b'v') => {
                let signature = self.signature()?;
                let (one, rest) = split(&signature)?;
                if !rest.is_empty() {
                    return Err(format!("a variant of {signature:?} holds more than one value"));
                }
                Value::Variant(Box::new(self.value(one, depth + 1)?))
            }
            // Of nothing, any number would fit into an array.
            Some(b'(') if inner.is_empty() => return Err("an empty struct is not a type".to_owned()),
            Some(b'(') => {
                self.align(8)?;
                Value::Struct(self.values(inner, depth)?)
            }
            Some(b'{') => {
                self.align(8)?;
                let [key, value] = <[Value; 2]>::try_from(self.values(inner, depth)?)
                    .map_err(|_| "an entry of a dictionary has two parts")?;
                Value::Entry(Box::new(key), Box::new(value))
            }
            Some(b'a') => self.array(&signature[1..], depth)?,
            _ => return Err(format!("{signature:?} is not a type")),
        })
    }

    fn signature(&mut self) -> Result<String, String> {
        let [length] = self.take()?;
        self.text(usize::from(length))
    }

    fn values(&mut self, mut signature: &str, depth: usize) -> Result<Vec<Value>, String> {
        let mut values = Vec::new();
        while !signature.is_empty() {
            let (one, rest) = split(signature)?;
            values.push(self.value(one, depth + 1)?);
            signature = rest;
        }
        Ok(values)
    }

    fn array(&mut self, of: &str, depth: usize) -> Result<Value, String> {
        let length = self.length()?;
        self.align(alignment(of))?;
        let end = self.at + length;
        if end > self.bytes.len() {
            return Err("an array is longer than its message".to_owned());
        }
        let mut items = Vec::new();
        while self.at < end {
            items.push(self.value(of, depth + 1)?);
        }
        if self.at != end {
            return Err("the items of an array do not fit its length".to_owned());
        }
        Ok(Value::Array(of.to_owned(), items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Message {
        let mut message = Message::new(Kind::Call);
        message.serial = 7;
        message.path = "/org/freedesktop/systemd1".to_owned();
        message.interface = "org.freedesktop.systemd1.Manager".to_owned();
        message.member = "Sample".to_owned();
        message.destination = "org.freedesktop.systemd1".to_owned();
        let unit = Value::Struct(vec![
            Value::Str("a.service".to_owned()),
            Value::U32(1),
            Value::Path("/x".to_owned()),
            Value::U64(1 << 40),
        ]);
        let entry = Value::Entry(
            Box::new(Value::Str("Key".to_owned())),
            Box::new(Value::Variant(Box::new(Value::Array("y".to_owned(), vec![Value::Byte(9)])))),
        );
        message.body = vec![
            Value::Array("(suot)".to_owned(), vec![unit.clone(), unit]),
            Value::Bool(true),
            Value::strings(&["x", "yy"]),
            Value::Array("{sv}".to_owned(), vec![entry]),
            Value::Array("(suot)".to_owned(), Vec::new()),
            Value::I16(-3),
            Value::F64(0.5),
        ];
        message
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = sample().encode();
        let head: &[u8; HEAD] = bytes[..HEAD].try_into().unwrap();
        assert_eq!(Message::whole_length(head), Ok(bytes.len()));
        let read = Message::decode(&bytes).unwrap().unwrap();
        assert_eq!(read, sample());
        assert_eq!(read.body[3].get("Key").unwrap().items().len(), 1);
    }

    #[test]
    fn no_damage_reads_beyond_the_end_or_panics() {
        let bytes = sample().encode();
        for end in 0..bytes.len() {
            let cut = Message::decode(&bytes[..end]);
            assert!(!matches!(cut, Ok(Some(_))), "cut at {end}: {cut:?}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff, b'a', b'(', b'v'] {
                let mut broken = bytes.clone();
                broken[at] = value;
                let _ = Message::decode(&broken);
            }
        }
    }

    #[test]
    fn a_value_cannot_be_nested_for_ever() {
        let mut value = Value::Byte(1);
        for _ in 0..100 {
            value = Value::Variant(Box::new(value));
        }
        let mut message = sample();
        message.body = vec![value];
        assert!(Message::decode(&message.encode()).unwrap_err().contains("nested"));
    }
}
