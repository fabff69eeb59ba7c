//! A template's source, made ready for the parser here.
//!
//! Jinja2 and the parser here read nearly the same language. What they would read differently is either put in other
//! words or refused.

use std::borrow::Cow;

use super::TemplateError;

/// The source with `\n` for every line end, and with [`BLOCK`] in place of `{% generation %}`.
///
/// # Errors
/// [`TemplateError::Syntax`] where a string has an escape that Python reads in another way.
pub(super) fn prepare(source: &str) -> Result<String, TemplateError> {
    let source = unix(source);
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_ref();
    while let Some((before, kind, inside, after)) = next_tag(rest)? {
        out.push_str(before);
        match kind {
            Kind::Comment | Kind::Raw => {
                out.push_str(&rest[before.len()..rest.len() - after.len()]);
            }
            Kind::Code => out.push_str(&code(inside)?),
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// What opens and closes the block that `transformers` marks for training. Like that one it has names of its own.
const BLOCK: (&str, &str) = ("with", "endwith");

#[derive(Clone, Copy)]
enum Kind {
    Code,
    Comment,
    Raw,
}

fn unix(source: &str) -> Cow<'_, str> {
    if source.contains('\r') {
        Cow::Owned(source.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(source)
    }
}

type Tag<'s> = (&'s str, Kind, &'s str, &'s str);

/// The text before the next tag, its kind, the tag with its braces, and what follows.
fn next_tag(source: &str) -> Result<Option<Tag<'_>>, TemplateError> {
    let opens = ["{{", "{%", "{#"];
    let Some(start) = opens.iter().filter_map(|open| source.find(open)).min() else {
        return Ok(None);
    };
    let (before, tag) = source.split_at(start);
    let (kind, length) = if tag.starts_with("{#") {
        (Kind::Comment, tag.find("#}").map(|at| at + 2))
    } else {
        (Kind::Code, code_length(tag))
    };
    let length = length.ok_or_else(|| TemplateError::Syntax("a tag without an end".to_owned()))?;
    let (inside, after) = tag.split_at(length);
    if word(inside) != Some("raw") {
        return Ok(Some((before, kind, inside, after)));
    }
    let mut at = length;
    loop {
        let next = tag[at..].find("{%").map(|found| at + found);
        let next = next.ok_or_else(|| TemplateError::Syntax("raw without an end".to_owned()))?;
        if word(&tag[next..]) == Some("endraw") {
            let end = tag[next..].find("%}").map_or(tag.len(), |end| next + end + 2);
            return Ok(Some((before, Kind::Raw, &tag[..end], &tag[end..])));
        }
        at = next + 2;
    }
}

/// The length of `{{ … }}` or `{% … %}`, whose end does not count inside strings.
fn code_length(tag: &str) -> Option<usize> {
    let end = if tag.starts_with("{{") { "}}" } else { "%}" };
    let mut depth = 0_usize;
    let mut at = 2;
    while at < tag.len() {
        let rest = &tag[at..];
        let first = rest.chars().next()?;
        match first {
            // Jinja2 lets a brace of a dict close before `}}` does.
            _ if depth == 0 && rest.starts_with(end) => return Some(at + 2),
            '\'' | '"' => at += string_length(rest)?,
            '{' => (depth, at) = (depth + 1, at + 1),
            '}' => (depth, at) = (depth.saturating_sub(1), at + 1),
            _ => at += first.len_utf8(),
        }
    }
    None
}

/// The length of the string literal that `code` starts with, quotes included.
fn string_length(code: &str) -> Option<usize> {
    let mut letters = code.char_indices();
    let (_, quote) = letters.next()?;
    while let Some((at, letter)) = letters.next() {
        if letter == '\\' {
            letters.next();
        } else if letter == quote {
            return Some(at + 1);
        }
    }
    None
}

/// The word that a statement starts with.
fn word(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside).trim_start();
    Some(
        &inside[..inside
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(inside.len())],
    )
}

fn code(tag: &str) -> Result<Cow<'_, str>, TemplateError> {
    let mut rest = tag;
    while let Some(quote) = rest.find(['\'', '"']) {
        let length = string_length(&rest[quote..]).unwrap_or(rest.len() - quote);
        check_escapes(&rest[quote..quote + length])?;
        rest = &rest[quote + length..];
    }
    Ok(match word(tag) {
        Some("generation") => Cow::Owned(tag.replacen("generation", BLOCK.0, 1)),
        Some("endgeneration") => Cow::Owned(tag.replacen("endgeneration", BLOCK.1, 1)),
        _ => Cow::Borrowed(tag),
    })
}

fn check_escapes(literal: &str) -> Result<(), TemplateError> {
    let mut letters = literal.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            continue;
        }
        let escaped = letters.next();
        let surrogate = escaped == Some('u') && letters.as_str().starts_with(['d', 'D']);
        if surrogate || matches!(escaped, Some('/' | 'a' | 'v' | 'N' | 'U' | '\n')) {
            return Err(TemplateError::Syntax(format!("the escapes in {literal}")));
        }
    }
    Ok(())
}
