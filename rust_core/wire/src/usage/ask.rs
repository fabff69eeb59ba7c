//! Usage asked for in the client's place, by an edit of its own JSON.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::prompt::splice::Splice;

const INCLUDE: &str = r#""include_usage":true"#;

/// What a request for a chat or a completion says of its reply, as it says it; each a slice of the document.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes<'a> {
    /// `stream`.
    pub stream: Option<&'a RawValue>,
    /// `stream_options`, as [`present`] reads it: `null` is not nothing, for it is what must be replaced.
    pub stream_options: Option<&'a RawValue>,
    /// `n`.
    pub n: Option<&'a RawValue>,
    /// `prompt`.
    pub prompt: Option<&'a RawValue>,
    /// `prompt_embeds`.
    pub prompt_embeds: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Options<'a> {
    #[serde(borrow, deserialize_with = "present")]
    include_usage: Option<&'a RawValue>,
    #[serde(borrow)]
    continuous_usage_stats: Option<&'a RawValue>,
}

/// A field's value, `null` too, which serde alone would take for a field that is not there.
///
/// # Errors
/// The deserializer's.
pub fn present<'de, D>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error>
where
    D: Deserializer<'de>,
{
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Whether the request now asks for usage where the client did not; its reply then goes through [`Strip`](super::Strip).
///
/// Left alone are a client that asks by itself, one that wants usage in every chunk, one whose options are malformed
/// (the engine says so), and one that gets several choices: vLLM moves `system_fingerprint` from each choice's last
/// event into the one with the usage, and only where that follows at once can it go back without holding up the stream.
///
/// # Cost
/// O(bytes of `stream_options`), and of a prompt that is a list of prompts.
pub fn ask<'a>(splice: &mut Splice<'a>, wishes: &Wishes<'a>) -> bool {
    let Some(stream) = wishes.stream.map(RawValue::get).filter(|raw| *raw == "true") else {
        return false;
    };
    if wishes.many_choices() {
        return false;
    }
    match wishes.stream_options.map(RawValue::get) {
        None => splice.insert_after(stream, format!(r#","stream_options":{{{INCLUDE}}}"#)),
        Some(raw @ "null") => splice.replace_value(raw, format!("{{{INCLUDE}}}")),
        Some(raw) => return ask_in(splice, raw),
    }
    true
}

/// The same, inside options that are there.
fn ask_in<'a>(splice: &mut Splice<'a>, raw: &'a str) -> bool {
    // Serde would take an array for the fields in order.
    if !raw.starts_with('{') {
        return false;
    }
    let Ok(options) = serde_json::from_str::<Options<'a>>(raw) else {
        return false;
    };
    if options.continuous_usage_stats.is_some_and(|raw| raw.get() != "false") {
        return false;
    }
    match options.include_usage.map(RawValue::get) {
        None => splice.insert_first(raw, INCLUDE),
        Some(value @ ("false" | "null")) => splice.replace_value(value, "true".to_owned()),
        // Besides `true`, engines take some words and numbers for it.
        Some(_) => return false,
    }
    true
}

// === impl Wishes ===

impl Wishes<'_> {
    fn many_choices(&self) -> bool {
        let several = self.n.is_some_and(|raw| !matches!(raw.get(), "1" | "null"));
        let embeds = self.prompt_embeds.is_some_and(|raw| raw.get() != "null");
        several || embeds || self.prompt.is_some_and(|raw| is_batch(raw.get()))
    }
}

/// Whether a prompt is a list of several prompts; a list of token ids is one prompt.
fn is_batch(prompt: &str) -> bool {
    let Some(items) = prompt.strip_prefix('[') else {
        return false;
    };
    !items.trim_start().starts_with(|first: char| first.is_ascii_digit())
        && serde_json::from_str::<[&RawValue; 1]>(prompt).is_err()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Body<'a> {
        #[serde(borrow)]
        stream: Option<&'a RawValue>,
        #[serde(borrow, deserialize_with = "present")]
        stream_options: Option<&'a RawValue>,
        #[serde(borrow)]
        n: Option<&'a RawValue>,
        #[serde(borrow)]
        prompt: Option<&'a RawValue>,
        #[serde(borrow)]
        prompt_embeds: Option<&'a RawValue>,
    }

    /// The body that asks; `None` where it is left alone.
    fn asked(json: &str) -> Option<String> {
        let Body { stream, stream_options, n, prompt, prompt_embeds } =
            serde_json::from_str(json).unwrap();
        let mut splice = Splice::new(json);
        let asks = ask(&mut splice, &Wishes { stream, stream_options, n, prompt, prompt_embeds });
        let edited = splice.finish();
        assert_eq!(asks, edited.is_some());
        edited
    }

    fn asked_with(options: &str) -> Option<String> {
        let head = r#"{"stream":true,"stream_options":"#;
        let edited = asked(&format!("{head}{options}}}"))?;
        Some(edited.strip_prefix(head).unwrap().strip_suffix('}').unwrap().to_owned())
    }

    #[test]
    fn a_client_that_did_not_ask_is_asked_for() {
        assert_eq!(
            asked(r#"{ "stream" : true , "n":1.50}"#),
            None,
            "a number that the engine refuses is the engine's to refuse"
        );
        assert_eq!(
            asked(r#"{ "stream" : true , "n" : 1, "x":1e3}"#).unwrap(),
            r#"{ "stream" : true,"stream_options":{"include_usage":true} , "n" : 1, "x":1e3}"#
        );
        assert_eq!(asked_with("null").unwrap(), r#"{"include_usage":true}"#);
        assert_eq!(asked_with("{}").unwrap(), r#"{"include_usage":true}"#);
        assert_eq!(asked_with("{ }").unwrap(), r#"{"include_usage":true }"#);
        assert_eq!(asked_with(r#"{ "x":1}"#).unwrap(), r#"{"include_usage":true, "x":1}"#);
        assert_eq!(
            asked_with(r#"{"include_usage" : false}"#).unwrap(),
            r#"{"include_usage" : true}"#
        );
        assert_eq!(
            asked_with(r#"{"continuous_usage_stats":false,"include_usage":null}"#).unwrap(),
            r#"{"continuous_usage_stats":false,"include_usage":true}"#
        );
        let null = r#"{"continuous_usage_stats":null}"#;
        assert_eq!(
            asked_with(null).unwrap(),
            r#"{"include_usage":true,"continuous_usage_stats":null}"#
        );
    }

    #[test]
    fn what_asks_by_itself_or_is_malformed_is_left_alone() {
        for options in [
            r#"{"include_usage":true}"#,
            r#"{"include_usage":1}"#,
            r#"{"include_usage":"yes"}"#,
            r#"{"continuous_usage_stats":true}"#,
            r#"{"include_usage":false,"continuous_usage_stats":1}"#,
            r#"{"include_usage":false,"include_usage":true}"#,
            "[]",
            "5",
            "true",
            "\"x\"",
        ] {
            assert_eq!(asked_with(options), None, "{options}");
        }
        for stream in ["false", "null", "1", "\"true\""] {
            assert_eq!(asked(&format!(r#"{{"stream":{stream}}}"#)), None, "{stream}");
        }
        assert_eq!(asked("{}"), None);
    }

    #[test]
    fn several_choices_are_left_alone_and_a_list_of_one_prompt_is_not() {
        let asks = |field: &str| asked(&format!(r#"{{"stream":true,{field}}}"#)).is_some();
        assert!(!asks(r#""n":2"#));
        assert!(!asks(r#""prompt":["a", "b"]"#));
        assert!(!asks(r#""prompt":[ [1,2], [3]]"#));
        assert!(!asks(r#""prompt":null,"prompt_embeds":["a"]"#));
        assert!(asks(r#""n":null,"prompt":"[a]","prompt_embeds":null"#));
        assert!(asks(r#""prompt":["a, b"]"#));
        assert!(asks(r#""prompt":[ [1,2] ]"#));
        assert!(asks(r#""prompt":[ 1,2]"#));
    }

    proptest! {
        /// Whatever stands around it, the same document asks, and no other field changes.
        #[test]
        fn the_rest_of_the_document_is_as_it_was(
            text in "[a-z\"\\\\{}:,é ]{0,20}",
            options in prop_oneof![
                Just(""),
                Just("null"),
                Just("{}"),
                Just("{ \n}"),
                Just(r#"{"include_usage":null}"#),
                Just(r#"{"extra": [1], "include_usage" :false}"#),
            ],
            first: bool,
            spaced: bool,
        ) {
            let gap = if spaced { " \n" } else { "" };
            let text = serde_json::to_string(&text).unwrap();
            let mut fields = vec![format!(r#""stream"{gap}:{gap}true"#), format!(r#""prompt"{gap}:{gap}{text}"#)];
            if !options.is_empty() {
                fields.insert(usize::from(first), format!(r#""stream_options"{gap}:{gap}{options}"#));
            }
            let body = format!("{{{gap}{}{gap}}}", fields.join(&format!("{gap},{gap}")));
            let sent: serde_json::Value = serde_json::from_str(&asked(&body).unwrap()).unwrap();
            let mut expected: serde_json::Value = serde_json::from_str(&body).unwrap();
            let options = &mut expected["stream_options"];
            if options.is_null() {
                *options = serde_json::json!({});
            }
            options["include_usage"] = true.into();
            prop_assert_eq!(sent, expected);
        }
    }
}
