//! Methods of Python's `str`, `dict` and `list` that templates call.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::python;
use super::value::List;

/// The callback for methods that a value does not have by itself.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => of_text(state, value, text, method, args),
        (ValueKind::Map, _) => of_dict(state, value, method, args),
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Views are lists here, which are as long and as true as they are.
fn of_dict(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = pycompat::unknown_method_callback(state, value, method, args)?;
    match method {
        "items" | "keys" | "values" => Ok(List(found.try_iter()?.collect()).into()),
        _ => Ok(found),
    }
}

fn of_text(
    state: &mut State<'_, '_>,
    value: &Value,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(stripped) = stripped(text, method, args)? {
        return Ok(if stripped.len() == text.len() { value.clone() } else { stripped.into() });
    }
    match method {
        "split" | "rsplit" => split(text, method == "rsplit", args),
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(args)?;
            Ok(texts(python::lines(text, keep_ends.unwrap_or(false))))
        }
        "partition" | "rpartition" => partition(text, method, args),
        "upper" | "lower" => {
            let () = from_args(args)?;
            let changed = if method == "upper" { python::upper(text) } else { python::lower(text) };
            changed.map(Value::from).ok_or_else(|| unclear(method))
        }
        "removeprefix" | "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            let rest = if method == "removeprefix" {
                text.strip_prefix(part)
            } else {
                text.strip_suffix(part)
            };
            Ok(rest.unwrap_or(text).into())
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            let items: Vec<Value> = values.try_iter()?.collect();
            let items: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            items.map(|items| items.join(text).into()).ok_or_else(|| unclear(method))
        }
        "format" if !is_plain_format(text, args) => Err(unclear(method)),
        // These ask for a letter's class, or change it by its place.
        "capitalize" | "isalnum" | "isalpha" | "isdigit" | "islower" | "isnumeric" | "isspace"
        | "isupper" | "title"
            if !text.is_ascii() =>
        {
            Err(unclear(method))
        }
        "isspace" => Ok((!text.is_empty() && text.chars().all(python::is_space)).into()),
        "title" => Ok(title(text).into()),
        "capitalize" => Ok(capitalized(text).into()),
        "count" | "endswith" | "find" | "format" | "isalnum" | "isalpha" | "isascii"
        | "isdigit" | "islower" | "isnumeric" | "isupper" | "replace" | "rfind" | "startswith" => {
            pycompat::unknown_method_callback(state, value, method, args)
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn stripped<'t>(text: &'t str, method: &str, args: &[Value]) -> Result<Option<&'t str>, Error> {
    if !matches!(method, "strip" | "lstrip" | "rstrip") {
        return Ok(None);
    }
    let (letters,): (Option<&str>,) = from_args(args)?;
    let gone = |letter: char| match letters {
        Some(letters) => letters.contains(letter),
        None => python::is_space(letter),
    };
    Ok(Some(match method {
        "strip" => text.trim_matches(gone),
        "lstrip" => text.trim_start_matches(gone),
        _ => text.trim_end_matches(gone),
    }))
}

fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX - 1);
    let Some(separator) = separator else {
        return if from_end { Err(unclear("rsplit")) } else { Ok(texts(words(text, most))) };
    };
    if separator.is_empty() {
        return Err(unclear("split"));
    }
    if !from_end {
        return Ok(texts(text.splitn(most + 1, separator).collect()));
    }
    let mut parts: Vec<&str> = text.rsplitn(most + 1, separator).collect();
    parts.reverse();
    Ok(texts(parts))
}

/// `str.split(None, most)`.
fn words(text: &str, most: usize) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(python::is_space);
    while !rest.is_empty() {
        let end = rest.find(python::is_space).filter(|_| words.len() < most);
        let Some(end) = end else {
            // The last part keeps the spaces within and after it.
            words.push(rest);
            break;
        };
        words.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(python::is_space);
    }
    words
}

fn partition(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(unclear(method));
    }
    let parts = match method {
        "partition" => text.split_once(separator).map(|(a, b)| [a, separator, b]),
        _ => text.rsplit_once(separator).map(|(a, b)| [a, separator, b]),
    };
    let whole = if method == "partition" { [text, "", ""] } else { ["", "", text] };
    Ok(Tuple::from(parts.unwrap_or(whole).map(Value::from)).into())
}

fn texts(parts: Vec<&str>) -> Value {
    List(parts.into_iter().map(Value::from).collect()).into()
}

/// Whether the format only has places, and they only take text and integers.
fn is_plain_format(text: &str, args: &[Value]) -> bool {
    let plain = args.iter().all(|arg| arg.as_str().is_some() || arg.is_integer());
    plain && !text.contains([':', '!', '.', '[']) && !text.contains("{{") && !text.contains("}}")
}

/// `str.title()` of ASCII.
fn title(text: &str) -> String {
    let mut within = false;
    let mut change = |letter: char| {
        let changed =
            if within { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() };
        within = letter.is_ascii_alphabetic();
        changed
    };
    text.chars().map(&mut change).collect()
}

/// `str.capitalize()` of ASCII.
pub(super) fn capitalized(text: &str) -> String {
    let mut changed = text.to_ascii_lowercase();
    if let Some(first) = changed.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    changed
}

fn unclear(method: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("what {method} makes of this is Python's to say"),
    )
}
