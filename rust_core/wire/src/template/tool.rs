//! Tools that a request offers, and calls of them in its history, in the shape that templates see.

use minijinja::Value;

use super::request::{dict, list, text};
use super::value::{Dict, Json, List};
use super::{TemplateError, unclear};

/// The tools as vLLM's `ChatCompletionToolsParam` dumps them: in its order, with its defaults, without other fields.
pub(super) fn offered(value: &Value) -> Result<List, TemplateError> {
    let tools = list(value, "tools")?;
    if tools.0.is_empty() {
        return Err(unclear("tools"));
    }
    tools.0.iter().map(tool).collect::<Result<_, _>>().map(List)
}

fn tool(value: &Value) -> Result<Value, TemplateError> {
    let given = dict(value, "tools")?;
    let kind = given.get("type").map_or(Some("function"), Value::as_str);
    if kind != Some("function") {
        return Err(unclear("tools.type"));
    }
    let function = dict(given.get("function").ok_or_else(|| unclear("tools"))?, "tools.function")?;
    let name = text(function, "name", "tools.function")?.clone();
    let description = function.get("description").cloned().unwrap_or(Value::from(()));
    let parameters = function.get("parameters").cloned().unwrap_or(Value::from(()));
    if !(description.is_none() || description.as_str().is_some()) {
        return Err(unclear("tools.function.description"));
    }
    if !(parameters.is_none() || Dict::of(&parameters).is_some()) {
        return Err(unclear("tools.function.parameters"));
    }
    let mut dump =
        Dict::from([("name", name), ("description", description), ("parameters", parameters)]);
    if let Some(strict) = flag(function, "strict")? {
        dump.insert("strict", strict);
    }
    let deferred = flag(given, "defer_loading")?;
    if let Some(deferred) = flag(function, "defer_loading")?.or_else(|| deferred.clone()) {
        dump.insert("defer_loading", deferred);
    }
    let mut tool = Dict::from([("type", Value::from("function")), ("function", dump.into())]);
    if let Some(deferred) = deferred {
        tool.insert("defer_loading", deferred);
    }
    Ok(tool.into())
}

fn flag(dict: &Dict, key: &str) -> Result<Option<Value>, TemplateError> {
    match dict.some(key) {
        Some(value) if value.kind() != minijinja::value::ValueKind::Bool => {
            Err(unclear(format!("tools.{key}")))
        }
        flag => Ok(flag.cloned()),
    }
}

/// The calls of an assistant's message, with their arguments as objects; none where there are none.
pub(super) fn called(value: &Value) -> Result<Option<Value>, TemplateError> {
    let calls = list(value, "tool_calls")?;
    if calls.0.is_empty() {
        return Ok(None);
    }
    let calls = calls.0.iter().map(call).collect::<Result<_, _>>()?;
    Ok(Some(List(calls).into()))
}

/// Validation puts the known fields first, in its own order; others follow in theirs.
fn call(value: &Value) -> Result<Value, TemplateError> {
    let given = dict(value, "tool_calls")?;
    let function =
        given.get("function").ok_or_else(|| unclear("tool_calls")).and_then(|function| {
            let function = dict(function, "tool_calls.function")?;
            let name = text(function, "name", "tool_calls.function")?.clone();
            let arguments = text(function, "arguments", "tool_calls.function")?;
            let arguments = arguments.as_str().unwrap_or_default();
            let known = [("arguments", read_arguments(arguments)?), ("name", name)];
            Ok(with_others(Dict::from(known), function))
        })?;
    let kind = text(given, "type", "tool_calls")?.clone();
    if kind.as_str() != Some("function") || given.get("custom").is_some() {
        return Err(unclear("tool_calls.type"));
    }
    let id = text(given, "id", "tool_calls")?.clone();
    let known = [("id", id), ("function", function), ("type", kind)];
    Ok(with_others(Dict::from(known), given))
}

fn with_others(mut known: Dict, given: &Dict) -> Value {
    for (key, value) in given.entries() {
        let key = key.as_str().unwrap_or_default();
        if known.get(key).is_none() {
            known.insert(key, value.clone());
        }
    }
    known.into()
}

/// Arguments that are not an object are taken for none.
fn read_arguments(json: &str) -> Result<Value, TemplateError> {
    match serde_json::from_str(json) {
        Ok(Json(arguments)) if Dict::of(&arguments).is_some() => Ok(arguments),
        // Python reads these, and the parser here does not.
        Err(cause) if !cause.is_syntax() && !cause.is_eof() => Err(unclear("tool_calls")),
        Err(_) if ["NaN", "Infinity", "\\ud", "\\uD"].iter().any(|odd| json.contains(odd)) => {
            Err(unclear("tool_calls"))
        }
        Err(cause) if !is_plainly_wrong(&cause) => Err(unclear("tool_calls")),
        Ok(_) | Err(_) => Ok(Dict::default().into()),
    }
}

/// Whether Python's parser finds fault with it too: numbers and nesting have other limits there.
fn is_plainly_wrong(cause: &serde_json::Error) -> bool {
    let cause = cause.to_string();
    !cause.starts_with("number out of range") && !cause.starts_with("recursion limit")
}
