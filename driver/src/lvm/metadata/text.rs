//! Parses LVM's configuration text: `key = value` lines and `name { … }` sections.
//!
//! Invariant: any bytes give a document or an error with its line, never a panic; what the document holds is
//! what the text says, in its order. The grammar is LVM's (`libdm/libdm-config.c`), as far as LVM writes it.

use std::borrow::Cow;
use std::fmt;

/// LVM nests six deep; a hostile text must not exhaust the stack.
const DEEPEST: usize = 32;

/// A value to the right of `=`.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// A whole number.
    Integer(i64),
    /// A number with a decimal point.
    Float(f64),
    /// A quoted string. LVM's names, tags and flags are ASCII; a comment or a device's name may not be, and bytes
    /// that are not UTF-8 come as U+FFFD.
    Text(Cow<'a, str>),
    /// `[ … ]`, which LVM does not nest.
    List(Vec<Value<'a>>),
}

/// What stands under a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    /// `key = value`.
    Value(Value<'a>),
    /// `key { … }`.
    Section(Section<'a>),
}

/// One key with what stands under it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a> {
    /// The name.
    pub key: Cow<'a, str>,
    /// Line of the text on which the key stands, from 1.
    pub line: u32,
    /// What stands under it.
    pub node: Node<'a>,
}

/// The keys between two braces, or of the whole text, in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Section<'a> {
    /// All keys; LVM looks at the first of two equal ones.
    pub entries: Vec<Entry<'a>>,
}

/// A text that is not LVM's configuration text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct TextError {
    /// Line of the text, from 1.
    pub line: u32,
    /// What is wrong there.
    pub what: String,
}

impl<'a> Section<'a> {
    /// The first entry of that name.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Entry<'a>> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The sections in it, in order.
    pub fn sections(&self) -> impl Iterator<Item = (&Entry<'a>, &Section<'a>)> {
        self.entries.iter().filter_map(|entry| match &entry.node {
            Node::Section(section) => Some((entry, section)),
            Node::Value(_) => None,
        })
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::List(values) => {
                f.write_str("[")?;
                for (position, value) in values.iter().enumerate() {
                    let comma = if position > 0 { ", " } else { "" };
                    write!(f, "{comma}{value}")?;
                }
                f.write_str("]")
            }
        }
    }
}

/// Parses a whole text.
///
/// # Errors
/// [`TextError`] naming the line at which the text stops being LVM's.
pub fn parse(text: &[u8]) -> Result<Section<'_>, TextError> {
    let mut parser = Parser { text, at: 0, line: 1 };
    parser.section(0)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    line: u32,
}

impl<'a> Parser<'a> {
    fn error(&self, what: impl Into<String>) -> TextError {
        TextError { line: self.line, what: what.into() }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// What stands at the present place, for a message.
    fn found(&self) -> String {
        match self.peek() {
            None => "the end of the text".to_owned(),
            Some(byte) => format!("{:?}", char::from(byte)),
        }
    }

    fn advance(&mut self) {
        if self.peek() == Some(b'\n') {
            self.line = self.line.saturating_add(1);
        }
        self.at += 1;
    }

    /// Goes past white space and comments.
    fn skip_blanks(&mut self) {
        while let Some(byte) = self.peek() {
            if byte == b'#' {
                while self.peek().is_some_and(|byte| byte != b'\n') {
                    self.at += 1;
                }
            } else if is_blank(byte) {
                self.advance();
            } else {
                return;
            }
        }
    }

    /// Entries up to the closing brace, or at depth 0 to the text's end.
    fn section(&mut self, depth: usize) -> Result<Section<'a>, TextError> {
        if depth > DEEPEST {
            return Err(self.error(format!("more than {DEEPEST} sections within one another")));
        }
        let mut section = Section::default();
        loop {
            self.skip_blanks();
            match self.peek() {
                None if depth == 0 => return Ok(section),
                None => return Err(self.error("the text ends within a section: a } is missing")),
                Some(b'}') if depth > 0 => {
                    self.advance();
                    return Ok(section);
                }
                Some(_) => section.entries.push(self.entry(depth)?),
            }
        }
    }

    fn entry(&mut self, depth: usize) -> Result<Entry<'a>, TextError> {
        let line = self.line;
        let key = self.key()?;
        self.skip_blanks();
        let node = match self.peek() {
            Some(b'=') => {
                self.advance();
                self.skip_blanks();
                Node::Value(self.value()?)
            }
            Some(b'{') => {
                self.advance();
                Node::Section(self.section(depth + 1)?)
            }
            _ => {
                let found = self.found();
                return Err(self.error(format!("expected = or {{ after {key:?}, found {found}")));
            }
        };
        Ok(Entry { key, line, node })
    }

    fn key(&mut self) -> Result<Cow<'a, str>, TextError> {
        if let Some(quote @ (b'"' | b'\'')) = self.peek() {
            return self.quoted(quote);
        }
        let start = self.at;
        while self.peek().is_some_and(is_key_byte) {
            self.at += 1;
        }
        if self.at == start {
            let found = self.found();
            return Err(self.error(format!("expected a name, found {found}")));
        }
        Ok(String::from_utf8_lossy(&self.text[start..self.at]))
    }

    fn value(&mut self) -> Result<Value<'a>, TextError> {
        if self.peek() != Some(b'[') {
            return self.simple_value();
        }
        self.advance();
        let mut values = Vec::new();
        loop {
            self.skip_blanks();
            if self.peek() == Some(b']') {
                break;
            }
            values.push(self.simple_value()?);
            self.skip_blanks();
            match self.peek() {
                Some(b',') => self.advance(),
                Some(b']') => break,
                _ => {
                    let found = self.found();
                    return Err(self.error(format!("expected , or ] in a list, found {found}")));
                }
            }
        }
        self.advance();
        Ok(Value::List(values))
    }

    fn simple_value(&mut self) -> Result<Value<'a>, TextError> {
        match self.peek() {
            Some(quote @ (b'"' | b'\'')) => self.quoted(quote).map(Value::Text),
            Some(b'0'..=b'9' | b'-' | b'+' | b'.') => self.number(),
            _ => {
                let found = self.found();
                Err(self.error(format!("expected a number or a quoted string, found {found}")))
            }
        }
    }

    fn number(&mut self) -> Result<Value<'a>, TextError> {
        let start = self.at;
        self.at += 1;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit() || byte == b'.') {
            self.at += 1;
        }
        let written = String::from_utf8_lossy(&self.text[start..self.at]);
        let number = if written.contains('.') {
            written.parse().ok().map(Value::Float)
        } else {
            written.parse().ok().map(Value::Integer)
        };
        number.ok_or_else(|| self.error(format!("{written:?} is no number, or too large a one")))
    }

    /// A string: between " marks a backslash takes the next byte as it is, between ' marks nothing does.
    fn quoted(&mut self, quote: u8) -> Result<Cow<'a, str>, TextError> {
        let opened = self.line;
        self.advance();
        let start = self.at;
        // Only a string with an escape is copied.
        let mut unescaped: Option<Vec<u8>> = None;
        loop {
            let Some(mut byte) = self.peek() else {
                return Err(TextError { line: opened, what: "a quoted string has no end".to_owned() });
            };
            if byte == quote {
                break;
            }
            if byte == b'\\' && quote == b'"' {
                let so_far = self.text[start..self.at].to_vec();
                let copy = unescaped.get_or_insert(so_far);
                self.at += 1;
                let Some(&escaped) = self.text.get(self.at) else {
                    continue;
                };
                byte = escaped;
                copy.push(byte);
            } else if let Some(copy) = &mut unescaped {
                copy.push(byte);
            }
            if byte == b'\n' {
                self.line = self.line.saturating_add(1);
            }
            self.at += 1;
        }
        let raw = &self.text[start..self.at];
        self.advance();
        Ok(match unescaped {
            None => String::from_utf8_lossy(raw),
            Some(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        })
    }
}

/// White space in LVM's eyes, and the NUL that ends a text on disk.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0)
}

fn is_key_byte(byte: u8) -> bool {
    !is_blank(byte) && !matches!(byte, b'#' | b'=' | b'{' | b'}' | b'[' | b']' | b',' | b'"' | b'\'')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn render(section: &Section<'_>, out: &mut String) {
        for entry in &section.entries {
            match &entry.node {
                Node::Value(value) => out.push_str(&format!("{} = {}\n", entry.key, rendered(value))),
                Node::Section(inner) => {
                    out.push_str(&format!("{} {{ # a comment = {{\n", entry.key));
                    render(inner, out);
                    out.push_str("}\n");
                }
            }
        }
    }

    fn rendered(value: &Value<'_>) -> String {
        match value {
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::Text(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            Value::List(values) => format!("[{}]", values.iter().map(rendered).collect::<Vec<_>>().join(",\n\t")),
        }
    }

    fn value() -> impl Strategy<Value = Value<'static>> {
        let simple = prop_oneof![
            any::<i64>().prop_map(Value::Integer),
            (-1_000_000_i32..1_000_000).prop_map(|number| Value::Float(f64::from(number) / 64.0)),
            any::<String>().prop_map(|text| Value::Text(text.into())),
        ];
        simple
            .clone()
            .prop_recursive(1, 8, 8, move |_| proptest::collection::vec(simple.clone(), 0..8).prop_map(Value::List))
    }

    fn section() -> impl Strategy<Value = Section<'static>> {
        let key = "[a-zA-Z0-9_.+-]{1,8}";
        let leaf = (key, value()).prop_map(|(key, value)| Entry { key: key.into(), line: 0, node: Node::Value(value) });
        let flat = proptest::collection::vec(leaf, 0..6).prop_map(|entries| Section { entries });
        flat.prop_recursive(4, 40, 4, move |inner| {
            let entry = (key, inner).prop_map(|(key, section)| Entry {
                key: key.into(),
                line: 0,
                node: Node::Section(section),
            });
            proptest::collection::vec(entry, 0..4).prop_map(|entries| Section { entries })
        })
    }

    /// The same without lines, which rendering does not keep.
    fn without_lines(section: Section<'_>) -> Section<'_> {
        let entries = section.entries.into_iter().map(|entry| Entry {
            line: 0,
            node: match entry.node {
                Node::Section(inner) => Node::Section(without_lines(inner)),
                value => value,
            },
            ..entry
        });
        Section { entries: entries.collect() }
    }

    #[test]
    fn lines_and_comments_are_counted() {
        let text = b"# one\na {\n  b = [\"x\\\"y\", -2,\n 3.5] # c\n}\n\nd=1";
        let document = parse(text).unwrap();
        let (entry, inner) = document.sections().next().unwrap();
        assert_eq!((entry.key.as_ref(), entry.line), ("a", 2));
        let list = vec![Value::Text("x\"y".into()), Value::Integer(-2), Value::Float(3.5)];
        assert_eq!(inner.get("b").unwrap().node, Node::Value(Value::List(list)));
        assert_eq!(document.get("d").unwrap().line, 7);
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, line, what) in [
            ("a {\nb = 1\n", 3, "a } is missing"),
            ("a = \"x\ny", 1, "has no end"),
            ("a = \"x\\", 1, "has no end"),
            ("a\n= [1, 2\n3]", 3, "expected , or ]"),
            ("a = {", 1, "expected a number or a quoted string, found '{'"),
            ("}", 1, "expected a name"),
            ("a 1", 1, "expected = or {"),
            ("a = 99999999999999999999", 1, "too large"),
            ("a = 1.2.3", 1, "is no number"),
            ("a = -", 1, "is no number"),
            ("\n\na =", 3, "found the end of the text"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.line, line, "{text:?}: {error}");
            assert!(error.what.contains(what), "{text:?}: {error}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_a_crash() {
        let deep = "a{".repeat(100_000);
        assert!(parse(deep.as_bytes()).unwrap_err().what.contains("within one another"));
    }

    #[test]
    fn bytes_that_are_not_utf8_do_no_harm() {
        let document = parse(b"a = \"x\xffy\"").unwrap();
        assert_eq!(document.get("a").unwrap().node, Node::Value(Value::Text("x\u{fffd}y".into())));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(section in section()) {
            let mut text = String::new();
            render(&section, &mut text);
            let parsed = parse(text.as_bytes());
            prop_assert_eq!(parsed.map(without_lines), Ok(section), "{}", text);
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_sequence_of_tokens_gives_an_answer(tokens in proptest::collection::vec("[a{}=#\\[\\],\"'\\\\\n0.-]", 0..60)) {
            let _ = parse(tokens.concat().as_bytes());
        }
    }
}
