//! Text as Python makes it: `str`, `repr`, `float`, white space, letter case.

use std::cell::Cell;
use std::fmt::{self, Write};

use minijinja::Value;
use minijinja::value::ValueKind;

use super::value::as_float;

thread_local! {
    /// Whether something was written whose form in Python is not known here. `Display` has no other way to say so.
    static INEXACT: Cell<bool> = const { Cell::new(false) };
}

/// Forgets what was written before.
pub(super) fn forget_inexact() {
    INEXACT.set(false);
}

/// Whether all that was written since [`forget_inexact`] is what Python writes.
pub(super) fn is_exact() -> bool {
    !INEXACT.get()
}

/// `repr(value)` of a float.
pub(super) fn float(value: f64) -> String {
    let shortest = format!("{value:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&power) {
        return format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs());
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// `repr` of a dict.
pub(super) fn write_dict<'v>(
    out: &mut dyn Write,
    entries: impl Iterator<Item = (&'v Value, &'v Value)>,
) -> fmt::Result {
    out.write_char('{')?;
    for (at, (key, value)) in entries.enumerate() {
        if at > 0 {
            out.write_str(", ")?;
        }
        write_repr(out, key)?;
        out.write_str(": ")?;
        write_repr(out, value)?;
    }
    out.write_char('}')
}

/// `repr` of a list.
pub(super) fn write_list<'v>(
    out: &mut dyn Write,
    items: impl Iterator<Item = &'v Value>,
) -> fmt::Result {
    out.write_char('[')?;
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.write_str(", ")?;
        }
        write_repr(out, item)?;
    }
    out.write_char(']')
}

fn write_repr(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => write_quoted(out, text),
        None if value.is_undefined() => out.write_str("Undefined"),
        None => out.write_str(&string(value)),
    }
}

/// `str(value)`.
pub(super) fn string(value: &Value) -> String {
    if let Some(number) = as_float(value) {
        return float(number);
    }
    let mut text = String::new();
    // Writing into text does not fail.
    let _ = match (value.kind(), value.try_iter()) {
        (ValueKind::Map, Ok(keys)) => {
            let keys: Vec<Value> = keys.collect();
            let values: Vec<Value> = keys.iter().flat_map(|key| value.get_item(key)).collect();
            write_dict(&mut text, keys.iter().zip(&values))
        }
        (ValueKind::Seq | ValueKind::Iterable, Ok(items)) => {
            let items: Vec<Value> = items.collect();
            write_list(&mut text, items.iter()).map(|()| {
                if value.is_tuple() {
                    let comma = if items.len() == 1 { "," } else { "" };
                    text = format!("({}{comma})", &text[1..text.len() - 1]);
                }
            })
        }
        _ => return value.to_string(),
    };
    text
}

/// `repr` of a string.
fn write_quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for letter in text.chars() {
        match letter {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            _ if letter == quote => write!(out, "\\{letter}")?,
            ' '..='~' => out.write_char(letter)?,
            _ if is_hidden(letter) && u32::from(letter) < 0x100 => {
                write!(out, "\\x{:02x}", u32::from(letter))?;
            }
            _ if is_hidden(letter) => write!(out, "\\u{:04x}", u32::from(letter))?,
            _ => {
                if !is_shown(letter) {
                    INEXACT.set(true);
                }
                out.write_char(letter)?;
            }
        }
    }
    out.write_char(quote)
}

/// Letters that Python escapes; all are below U+10000.
fn is_hidden(letter: char) -> bool {
    matches!(u32::from(letter),
        0..0x20 | 0x7f..=0xa0 | 0xad | 0x1680 | 0x2000..=0x200f | 0x2028..=0x202f | 0x205f..=0x206f | 0x3000
        | 0xe000..=0xf8ff | 0xfeff)
}

/// Letters that every Python shows as they are. What is in neither set depends on its Unicode tables.
fn is_shown(letter: char) -> bool {
    matches!(u32::from(letter),
        0xa1..=0x24f | 0x391..=0x3a1 | 0x3a3..=0x3ff | 0x400..=0x52f | 0x5d0..=0x5ea | 0x620..=0x64a
        | 0x904..=0x939 | 0xe01..=0xe3a | 0x1e00..=0x1eff | 0x2010..=0x2027 | 0x2030..=0x205e | 0x20a0..=0x20bf
        | 0x2100..=0x218b | 0x2190..=0x2426 | 0x2500..=0x2b73 | 0x3001..=0x303f | 0x3041..=0x3096
        | 0x3099..=0x30ff | 0x3400..=0x4db5 | 0x4e00..=0x9fa5 | 0xac00..=0xd7a3 | 0xff01..=0xff5e
        | 0x1f300..=0x1f64f | 0x1f680..=0x1f6c5 | 0x1f910..=0x1f9ff)
}

/// `str.isspace` of one letter.
pub(super) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '\u{1c}'..='\u{1f}')
}

/// `str.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.splitlines()`: the lines without their ends, or with them.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|letter| {
            matches!(letter, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
        });
        let Some(end) = end else {
            lines.push(rest);
            break;
        };
        let length = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { end + length } else { end }]);
        rest = &rest[end + length..];
    }
    lines
}

/// `str.upper()` where the Unicode tables of every Python agree.
pub(super) fn upper(text: &str) -> Option<String> {
    cased(text, str::to_uppercase)
}

/// `str.lower()` where the Unicode tables of every Python agree.
pub(super) fn lower(text: &str) -> Option<String> {
    cased(text, str::to_lowercase)
}

fn cased(text: &str, change: impl Fn(&str) -> String) -> Option<String> {
    let settled = |letter: char| {
        let code = u32::from(letter);
        code < 0x590
            || (0x1e00..0x2000).contains(&code)
            || !(letter.is_lowercase() || letter.is_uppercase())
    };
    (text.is_ascii() || text.chars().all(settled)).then(|| change(text))
}
