//! Filters and tests of Jinja2 where the ones of the template engine would differ from them.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::value::{List, as_float};
use super::{method, python};

/// `soft_str(value)`: text stays as it is.
fn text(value: &Value) -> std::borrow::Cow<'_, str> {
    match value.as_str() {
        Some(text) => text.into(),
        None => python::string(value).into(),
    }
}

pub(super) fn trim(value: &Value, letters: Option<String>) -> Value {
    let whole = text(value);
    let trimmed = match letters {
        None => python::strip(&whole),
        Some(letters) => whole.trim_matches(|letter| letters.contains(letter)),
    };
    if value.as_str().is_some_and(|text| text.len() == trimmed.len()) {
        return value.clone();
    }
    trimmed.into()
}

pub(super) fn string(value: &Value) -> Value {
    if value.as_str().is_some() { value.clone() } else { python::string(value).into() }
}

pub(super) fn upper(value: &Value) -> Result<String, Error> {
    python::upper(&text(value)).ok_or_else(|| unclear("upper"))
}

pub(super) fn lower(value: &Value) -> Result<String, Error> {
    python::lower(&text(value)).ok_or_else(|| unclear("lower"))
}

pub(super) fn capitalize(value: &Value) -> Result<String, Error> {
    let text = text(value);
    if text.is_ascii() { Ok(method::capitalized(&text)) } else { Err(unclear("capitalize")) }
}

/// Each word that follows a space, a hyphen or an opening bracket starts with a capital.
pub(super) fn title(value: &Value) -> Result<String, Error> {
    let text = text(value);
    if !text.is_ascii() {
        return Err(unclear("title"));
    }
    let mut starts = true;
    let mut change = |letter: char| {
        let changed =
            if starts { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() };
        starts = python::is_space(letter) || matches!(letter, '-' | '(' | '{' | '[' | '<');
        changed
    };
    Ok(text.chars().map(&mut change).collect())
}

#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments by value")]
pub(super) fn replace(
    value: &Value,
    old: Value,
    new: Value,
    count: Option<i64>,
) -> Result<String, Error> {
    let (whole, old, new) = (text(value), text(&old), text(&new));
    match count.map(usize::try_from) {
        None => Ok(whole.replace(&*old, &new)),
        Some(Ok(count)) => Ok(whole.replacen(&*old, &new, count)),
        Some(Err(_)) => Err(unclear("replace")),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments by value")]
pub(super) fn join(
    value: &Value,
    between: Option<Value>,
    attribute: Option<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let named_between: Option<Value> = named.get("d")?;
    let named_attribute: Option<Value> = named.get("attribute")?;
    named.assert_all_used()?;
    if attribute.or(named_attribute).is_some() {
        return Err(unclear("join with an attribute"));
    }
    let between = between.or(named_between).unwrap_or_else(|| "".into());
    let mut joined = String::new();
    for (at, item) in value.try_iter()?.enumerate() {
        if at > 0 {
            joined.push_str(&text(&between));
        }
        joined.push_str(&text(&item));
    }
    Ok(joined)
}

pub(super) fn list(value: &Value) -> Result<Value, Error> {
    if value.is_none() {
        return Err(unclear("list"));
    }
    Ok(List(value.try_iter()?.collect()).into())
}

pub(super) fn items(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(List(Vec::new()).into()),
        ValueKind::Map => pairs(value).map(|pairs| List(pairs).into()),
        _ => Err(unclear("items")),
    }
}

/// The pairs of a dict in the order of its keys, whatever their case.
#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments by value")]
pub(super) fn dictsort(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    if value.kind() != ValueKind::Map || !given.is_empty() {
        return Err(unclear("dictsort"));
    }
    named.assert_all_used()?;
    let key = |pair: &Value| {
        let key = pair.get_item_by_index(0).ok()?;
        python::lower(key.as_str()?)
    };
    let mut keyed = Vec::new();
    for pair in pairs(value)? {
        keyed.push((key(&pair).ok_or_else(|| unclear("dictsort"))?, pair));
    }
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(List(keyed.into_iter().map(|(_, pair)| pair).collect()).into())
}

fn pairs(value: &Value) -> Result<Vec<Value>, Error> {
    let pair = |key: Value| Ok(Tuple::from([key.clone(), value.get_item(&key)?]).into());
    value.try_iter()?.map(pair).collect()
}

/// Lines after the first get `width` spaces; empty ones only with `blank`.
#[expect(clippy::needless_pass_by_value, reason = "filters take their arguments by value")]
pub(super) fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let named_width: Option<Value> = named.get("width")?;
    let named_first: Option<bool> = named.get("first")?;
    let named_blank: Option<bool> = named.get("blank")?;
    named.assert_all_used()?;
    let width = width.or(named_width).unwrap_or_else(|| 4.into());
    let step = match (width.as_str(), width.as_usize()) {
        (Some(text), _) => text.to_owned(),
        (None, Some(width)) => " ".repeat(width),
        (None, None) => return Err(unclear("indent")),
    };
    // Jinja2 adds a line end before it takes the lines apart.
    let whole = text(value).into_owned() + "\n";
    let lines = python::lines(&whole, false);
    let mut out = String::new();
    if first.or(named_first).unwrap_or(false) {
        out.push_str(&step);
    }
    for (at, line) in lines.iter().enumerate() {
        if at > 0 {
            out.push('\n');
            if !line.is_empty() || blank.or(named_blank).unwrap_or(false) {
                out.push_str(&step);
            }
        }
        out.push_str(line);
    }
    Ok(out)
}

pub(super) fn int(value: Value) -> Result<Value, Error> {
    if value.is_integer() {
        return Ok(value);
    }
    let digits = value.as_str().map(python::strip).ok_or_else(|| unclear("int"))?;
    let plain = digits.strip_prefix(['-', '+']).unwrap_or(digits);
    if plain.is_empty() || plain.len() > 18 || !plain.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(unclear("int"));
    }
    digits.parse::<i64>().map(Value::from).map_err(|_| unclear("int"))
}

// === tests ===

pub(super) fn is_number(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Number | ValueKind::Bool) || as_float(value).is_some()
}

pub(super) fn is_float(value: &Value) -> bool {
    as_float(value).is_some()
}

/// Whatever has a length and items: text and dicts too.
pub(super) fn is_sequence(value: &Value) -> bool {
    is_iterable(value)
}

pub(super) fn is_iterable(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    matches!(value.kind(), String | Seq | Map | Iterable | Undefined)
}

pub(super) fn is_callable(value: &Value) -> Result<bool, Error> {
    match value.kind() {
        ValueKind::Plain | ValueKind::Undefined => Err(unclear("callable")),
        _ => Ok(false),
    }
}

fn unclear(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("what {what} makes of this is Python's to say"))
}
