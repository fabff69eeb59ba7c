//! Edits of the client's own JSON: values replaced, fields added and removed, every other byte as it was sent.

use std::ops::Range;

/// A set of edits of one JSON document.
#[derive(Clone)]
pub struct Splice<'a> {
    json: &'a str,
    edits: Vec<(Range<usize>, String)>,
}

impl<'a> Splice<'a> {
    /// No edit of `json` yet.
    #[must_use]
    pub fn new(json: &'a str) -> Splice<'a> {
        Splice { json, edits: Vec::new() }
    }

    /// Puts `with` in the place of `value`, which must be a slice of the document.
    pub fn replace_value(&mut self, value: &'a str, with: String) {
        let span = self.span(value);
        self.edits.push((span, with));
    }

    /// Puts `text` behind `value`, a slice of the document.
    pub fn insert_after(&mut self, value: &'a str, text: String) {
        let at = self.span(value).end;
        self.edits.push((at..at, text));
    }

    /// Makes `field` the first of `object`, a slice of the document from its brace on.
    pub fn insert_first(&mut self, object: &'a str, field: &str) {
        let at = self.span(object).start + 1;
        let empty = object[1..].trim_start().starts_with('}');
        let comma = if empty { "" } else { "," };
        self.edits.push((at..at, format!("{field}{comma}")));
    }

    /// Removes the object field whose value is `value`, a slice of the document, with its key and one comma.
    pub fn remove_field(&mut self, value: &'a str) {
        let span = self.span(value);
        // Before the value stand the key's closing quote and the colon; keys that matter here hold no escaped quote.
        let key_end = self.json[..span.start].rfind('"').unwrap_or(0);
        let key_start = self.json[..key_end].rfind('"').unwrap_or(0);
        let before = self.json[..key_start].trim_end();
        let after = &self.json[span.end..];
        let range = if before.ends_with(',') {
            before.len() - 1..span.end
        } else {
            let gap = after.len() - after.trim_start().len();
            let comma = usize::from(after[gap..].starts_with(','));
            key_start..span.end + if comma == 1 { gap + 1 } else { 0 }
        };
        self.edits.push((range, String::new()));
    }

    /// The edited document; `None` if nothing changed.
    #[must_use]
    pub fn finish(mut self) -> Option<String> {
        if self.edits.is_empty() {
            return None;
        }
        // What is put before a cut goes first.
        self.edits.sort_by_key(|(range, _)| (range.start, range.end));
        let mut out = String::with_capacity(self.json.len());
        let mut from = 0;
        for (range, with) in &self.edits {
            out.push_str(&self.json[from..range.start]);
            out.push_str(with);
            from = range.end;
        }
        out.push_str(&self.json[from..]);
        Some(out)
    }

    fn span(&self, part: &str) -> Range<usize> {
        let start = part.as_ptr().addr() - self.json.as_ptr().addr();
        start..start + part.len()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Deserialize)]
    struct Doc<'a> {
        #[serde(borrow)]
        x: &'a RawValue,
    }

    fn without_x(json: &str) -> String {
        let doc: Doc<'_> = serde_json::from_str(json).unwrap();
        let mut splice = Splice::new(json);
        splice.remove_field(doc.x.get());
        splice.finish().unwrap()
    }

    #[test]
    fn a_field_goes_wherever_it_stands() {
        assert_eq!(without_x(r#"{"x": {"a":[1,2]}, "b":1}"#), r#"{ "b":1}"#);
        assert_eq!(without_x(r#"{"a":1.50 , "x" : null}"#), r#"{"a":1.50 }"#);
        assert_eq!(without_x(r#"{"a":1,"x":"}","b":2}"#), r#"{"a":1,"b":2}"#);
        assert_eq!(without_x(r#"{"x":1}"#), "{}");
        assert_eq!(without_x(r#"{"a":"\"","\u0078":1}"#), r#"{"a":"\""}"#);
    }

    #[test]
    fn a_field_is_added_beside_one_that_goes() {
        for (json, edited) in [
            (r#"{"on":true,"x":1,"b":2}"#, r#"{"on":true,"y":2,"b":2}"#),
            (r#"{"x":1,"on":true}"#, r#"{"on":true,"y":2}"#),
        ] {
            let doc: Doc<'_> = serde_json::from_str(json).unwrap();
            let mut splice = Splice::new(json);
            splice.remove_field(doc.x.get());
            let on = json.find("true").unwrap();
            splice.insert_after(&json[on..on + 4], r#","y":2"#.to_owned());
            assert_eq!(splice.finish().unwrap(), edited);
        }
    }

    #[test]
    fn a_value_is_replaced_and_no_other_byte_changes() {
        let json = r#"{"x":"small", "n":1e3}"#;
        let doc: Doc<'_> = serde_json::from_str(json).unwrap();
        let mut splice = Splice::new(json);
        splice.replace_value(doc.x.get(), r#""large""#.to_owned());
        assert_eq!(splice.finish().unwrap(), r#"{"x":"large", "n":1e3}"#);
    }
}
