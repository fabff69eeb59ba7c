//! The filter `tojson` as `transformers` defines it: Python's `json.dumps`, with nothing escaped for HTML.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::python;
use super::value::as_float;

/// How `json.dumps` writes.
struct Style {
    ascii: bool,
    /// One level's indent; none keeps all on one line.
    indent: Option<String>,
    item: String,
    key: String,
    sorted: bool,
}

/// The names of the arguments, in order.
const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];

/// `json.dumps(value)`, with spaces after commas and colons.
pub(super) fn dumps(value: &Value) -> Result<String, Error> {
    Style::default().dump(value)
}

/// The filter.
///
/// # Errors
/// What `json.dumps` refuses, and keys that are not strings.
#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments by value")]
pub(super) fn tojson(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    if given.len() > NAMES.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let argument = |at: usize| -> Result<Value, Error> {
        let by_name: Option<Value> = named.get(NAMES[at])?;
        Ok(by_name.or_else(|| given.get(at).cloned()).unwrap_or_default())
    };
    let mut style = Style::new(&argument(1)?, &argument(2)?)?;
    style.ascii = argument(0)?.is_true();
    style.sorted = argument(3)?.is_true();
    named.assert_all_used()?;
    style.dump(value)
}

// === impl Style ===

impl Default for Style {
    fn default() -> Style {
        let (item, key) = (", ".to_owned(), ": ".to_owned());
        Style { ascii: false, indent: None, item, key, sorted: false }
    }
}

impl Style {
    fn new(indent: &Value, separators: &Value) -> Result<Style, Error> {
        let mut style = Style::default();
        if !absent(indent) {
            style.indent = Some(match (indent.as_str(), indent.as_i64()) {
                (Some(text), _) => text.to_owned(),
                (None, Some(width)) => " ".repeat(usize::try_from(width).unwrap_or(0)),
                (None, None) => return Err(refused("tojson: indent must be a number or text")),
            });
            ",".clone_into(&mut style.item);
        }
        if !absent(separators) {
            let pair: Vec<Value> = separators.try_iter()?.collect();
            let [item, key] = pair.as_slice() else {
                return Err(refused("tojson: separators must be two"));
            };
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let (Some(item), Some(key)) = (text(item), text(key)) else {
                return Err(refused("tojson: separators must be text"));
            };
            (style.item, style.key) = (item, key);
        }
        Ok(style)
    }

    fn dump(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(&mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, out: &mut String, value: &Value, level: usize) -> Result<(), Error> {
        if let Some(number) = as_float(value) {
            if !number.is_finite() {
                return Err(refused("tojson: a number that is not finite"));
            }
            out.push_str(&python::float(number));
            return Ok(());
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.quote(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.write_list(out, value, level + 1)?,
            ValueKind::Map => self.write_dict(out, value, level + 1)?,
            kind => return Err(refused(format!("tojson: {kind} is not JSON"))),
        }
        Ok(())
    }

    fn write_list(&self, out: &mut String, value: &Value, level: usize) -> Result<(), Error> {
        out.push('[');
        let mut empty = true;
        for item in value.try_iter()? {
            self.between(out, empty, level);
            self.write(out, &item, level)?;
            empty = false;
        }
        self.close(out, empty, level - 1);
        out.push(']');
        Ok(())
    }

    fn write_dict(&self, out: &mut String, value: &Value, level: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if keys.iter().any(|key| key.as_str().is_none()) {
            return Err(refused("tojson: a key that is not text"));
        }
        if self.sorted {
            keys.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
        out.push('{');
        for (at, key) in keys.iter().enumerate() {
            self.between(out, at == 0, level);
            self.quote(out, key.as_str().unwrap_or_default());
            out.push_str(&self.key);
            self.write(out, &value.get_item(key)?, level)?;
        }
        self.close(out, keys.is_empty(), level - 1);
        out.push('}');
        Ok(())
    }

    fn between(&self, out: &mut String, first: bool, level: usize) {
        if !first {
            out.push_str(&self.item);
        }
        self.close(out, false, level);
    }

    fn close(&self, out: &mut String, empty: bool, level: usize) {
        if let (Some(indent), false) = (&self.indent, empty) {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), level));
        }
    }

    fn quote(&self, out: &mut String, text: &str) {
        out.push('"');
        let mut plain = 0;
        for (at, letter) in text.char_indices() {
            let special = matches!(letter, '"' | '\\' | '\0'..='\x1f');
            let foreign = self.ascii && !matches!(letter, ' '..='~');
            if !(special || foreign) {
                continue;
            }
            out.push_str(&text[plain..at]);
            plain = at + letter.len_utf8();
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                _ => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        // Writing into text does not fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
            }
        }
        out.push_str(&text[plain..]);
        out.push('"');
    }
}

fn absent(value: &Value) -> bool {
    value.is_none() || value.is_undefined()
}

fn refused(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}
