use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use xxhash_rust::xxh3::xxh3_128;

use super::{ChatRequest, ChatTemplate, ContentFormat, MediaKey, SpecialTokens, TemplateError};

const TEXT: &str = "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}";
const PARTS: &str = "{% for m in messages %}[{{ m.role }}: {% for part in m.content %}\
    {% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}]{% endfor %}";

fn compile(source: &str) -> ChatTemplate {
    let tokens = SpecialTokens::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let time = "2024-02-03T12:04:05Z".parse::<Timestamp>().unwrap();
    let noon = move || time.to_zoned_datetime(TimeZone::UTC);
    ChatTemplate::with_clock(source, &tokens, Arc::new(noon)).unwrap()
}

fn render(source: &str, body: &str) -> Result<String, TemplateError> {
    let request = ChatRequest::parse(body)?;
    compile(source).render(&request).map(|rendered| rendered.text)
}

/// What an expression gives where `v` is a JSON value.
fn evaluated(expression: &str, v: &str) -> Result<String, TemplateError> {
    let body = format!(r#"{{"messages": [], "chat_template_kwargs": {{"v": {v}}}}}"#);
    render(&format!("{{{{ {expression} }}}}"), &body)
}

fn shows(expression: &str, v: &str, text: &str) {
    assert_eq!(evaluated(expression, v).unwrap(), text, "{expression} of {v}");
}

#[test]
fn a_conversation_is_rendered_with_tokens_and_arguments() {
    let template =
        "{{ bos_token }}{{ messages[0].content }}{{ tools }}{{ color }}{{ add_generation_prompt }}";
    let body = r#"{"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"color": "red"}}"#;
    assert_eq!(render(template, body).unwrap(), "<s>hiNoneredTrue");
}

#[test]
fn values_are_written_as_python_writes_them() {
    shows(
        "v",
        "[1, 1.0, 1e16, 1e-05, true, null, \"it's\"]",
        r#"[1, 1.0, 1e+16, 1e-05, True, None, "it's"]"#,
    );
    shows("v ~ ''", r#"{"a": [0.0001, "\n\u00a0\u00e9"]}"#, r"{'a': [0.0001, '\n\xa0é']}");
    shows("'x' ~ v", "1e17", "x1e+17");
    shows("v", "6.283283208478556e-15", "6.283283208478556e-15");
    shows("v | string | length", "false", "5");
}

#[test]
fn a_number_that_python_may_keep_in_another_way_is_the_engines_to_read() {
    for number in ["12345678901234567890123", "-0", "1e300"] {
        assert!(matches!(evaluated("v", number), Err(TemplateError::Request(_))), "{number}");
    }
}

#[test]
fn letters_that_python_may_or_may_not_escape_are_refused_where_they_are_quoted() {
    assert!(evaluated("v", "[\"\u{1f9ff}\"]").is_ok());
    assert!(matches!(evaluated("v", "[\"\u{11f5a}\"]"), Err(TemplateError::Refused(_))));
    assert!(evaluated("v", "\"\u{11f5a}\"").is_ok());
}

#[test]
fn tojson_is_pythons() {
    let v = r#"{"b": ["\u00e9<&>\u007f", 1.0, 1e16], "a": {}}"#;
    shows("v | tojson", v, "{\"b\": [\"é<&>\u{7f}\", 1.0, 1e+16], \"a\": {}}");
    shows(
        "v | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true)",
        v,
        r#"{"a":{},"b":["\u00e9<&>\u007f",1.0,1e+16]}"#,
    );
    shows(
        "v | tojson(indent=2)",
        "[1, [], {\"a\": [2]}]",
        "[\n  1,\n  [],\n  {\n    \"a\": [\n      2\n    ]\n  }\n]",
    );
    assert!(evaluated("v.missing | tojson", "{}").is_err());
}

#[test]
fn text_has_pythons_methods() {
    shows("v.strip() ~ '|' ~ v | trim", r#""\u001c a\u0085""#, "a|a");
    shows("v.split(none, 1)", r#"" a  b c ""#, "['a', 'b c ']");
    shows("v.rsplit('/', 1)", r#""a/b/c""#, "['a/b', 'c']");
    shows("v.splitlines()", r#""a\r\nb\u2028c\n""#, "['a', 'b', 'c']");
    shows("v.title() ~ v | title", r#""they're up-to""#, "They'Re Up-ToThey're Up-To");
    shows("v[::-1] ~ v[-2:]", r#""abc""#, "cbabc");
    assert!(evaluated("v.title()", r#""\u00e9t\u00e9""#).is_err());
}

#[test]
fn the_clock_is_read_where_the_template_asks() {
    shows("strftime_now('%d %b %Y %H:%M, %-d %A')", "0", "03 Feb 2024 12:04, 3 Saturday");
    assert!(evaluated("strftime_now('%c')", "0").is_err());
}

#[test]
fn what_would_differ_without_an_error_is_refused_when_it_is_compiled() {
    for source in [
        "{{ messages.items }}",
        "{{ messages[0].items() }}",
        "{% set users = messages | selectattr('role') %}",
        "{% if messages | map('upper') %}{% endif %}",
        "{% set x = v | safe %}",
        "{% include 'other' %}",
        "{% macro m() %}{{ varargs }}{% endmacro %}",
        r"{{ '\a' }}",
        "{% for m in messages %}{% continue %}{% else %}none{% endfor %}",
        "{% set a %}{% if v %}{% set b = 1 %}{% endif %}{% endset %}{{ b }}",
        "{% with a = 1, b = a %}{% endwith %}",
        "{% macro m(a, b='b') %}{% endmacro %}{{ m(1, v) }}",
        "{{ unfinished",
        "{% for %}",
    ] {
        let compiled = ChatTemplate::compile(source, &SpecialTokens::new());
        assert!(matches!(compiled, Err(TemplateError::Syntax(_))), "{source}");
    }
}

#[test]
fn an_argument_that_jinja2_would_not_find_is_refused() {
    let template = "{% for m in messages %}{{ color }}{% endfor %}{% set color = 'red' %}";
    let body = r#"{"messages": [], "chat_template_kwargs": {"color": "blue"}}"#;
    assert!(matches!(render(template, body), Err(TemplateError::Refused(_))));
    let without = r#"{"messages": []}"#;
    assert_eq!(render(template, without).unwrap(), "");
    let read_before = format!("{{{{ color }}}}{template}");
    assert_eq!(render(&read_before, body).unwrap(), "blue");
}

#[test]
fn generation_blocks_have_names_of_their_own() {
    let template = "{% set x = 1 %}{%- generation -%} {% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}\
        {% raw %}{% generation %}{% endraw %}{# {% generation %} #}";
    assert_eq!(render(template, r#"{"messages": []}"#).unwrap(), "21{% generation %}");
}

#[test]
fn an_own_template_is_told_apart() {
    for body in [
        r#"{"messages": [], "chat_template": "x"}"#,
        r#"{"messages": [], "chat_template_kwargs": {"chat_template": "x"}}"#,
    ] {
        assert!(matches!(ChatRequest::parse(body), Err(TemplateError::OwnTemplate)));
    }
}

#[test]
fn an_error_never_shows_the_prompt() {
    let template = "{{ raise_exception('no ' + messages[0].content) }}";
    let body = r#"{"messages": [{"role": "user", "content": "secret"}]}"#;
    assert!(!render(template, body).unwrap_err().to_string().contains("secret"));
    let wrong = r#"{"messages": [{"role": "user", "content": "secret"}], "reasoning_effort": {"secret": 1}}"#;
    assert!(!ChatRequest::parse(wrong).unwrap_err().to_string().contains("secret"));
}

#[test]
fn tools_keep_vllms_order_and_defaults() {
    let body = r#"{"messages": [], "tool_choice": "none", "tools": [{"x": 1, "function":
        {"parameters": {"b": 1, "a": 2}, "name": "f", "y": 2}}]}"#;
    let template = "{{ tools | tojson }}";
    let text = r#"[{"type": "function", "function": {"name": "f", "description": null, "parameters": {"b": 1, "a": 2}}}]"#;
    assert_eq!(render(template, body).unwrap(), text);
    let without = ChatRequest::parse(body).unwrap().without_unchosen_tools();
    assert_eq!(compile(template).render(&without).unwrap().text, "null");
}

#[test]
fn calls_get_their_arguments_as_objects() {
    let body = |arguments: &str| {
        format!(
            r#"{{"messages": [{{"role": "assistant", "tool_calls": [{{"type": "function", "id": "1",
            "function": {{"name": "f", "arguments": {arguments}}}}}]}}]}}"#
        )
    };
    let template = "{{ messages[0].tool_calls[0].function.arguments }}";
    assert_eq!(render(template, &body(r#""{\"a\": 1}""#)).unwrap(), "{'a': 1}");
    assert_eq!(render(template, &body(r#""broken""#)).unwrap(), "{}");
    assert!(render(template, &body(r#""{\"a\": NaN}""#)).is_err());
    assert!(render(template, &body("{}")).is_err());
}

#[test]
fn developers_become_the_one_system_message_where_they_are_unknown() {
    let body = r#"{"messages": [{"role": "user", "content": "u"}, {"role": "developer", "content": "d"}]}"#;
    assert_eq!(render(TEXT, body).unwrap(), "[system: d][user: u]");
    let knowing = TEXT.to_owned() + "{# 'developer' #}";
    assert_eq!(render(&knowing, body).unwrap(), "[user: u][developer: d]");
}

#[test]
fn the_last_message_stays_open_where_it_is_continued() {
    let body = |content: &str| {
        format!(
            r#"{{"messages": [{{"role": "assistant", "content": "{content}"}}],
            "add_generation_prompt": false, "continue_final_message": true}}"#
        )
    };
    assert_eq!(render(TEXT, &body("so far ")).unwrap(), "[assistant: so far ");
    let trimming = TEXT.replace("content", "content | trim");
    assert_eq!(render(&trimming, &body("so far ")).unwrap(), "[assistant: so far");
    assert!(render("{{ messages | length }}", &body("content")).is_err());
}

#[test]
fn a_prompt_is_exact_up_to_its_first_medium() {
    let body = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [
        {"type": "text", "text": "see "}, {"type": "image_url", "image_url": {"url": "http://x"}},
        {"type": "text", "text": "and"}, {"type": "image_url", "image_url": {"url": "y"}, "uuid": "id"}]}]}"#;
    let request = ChatRequest::parse(body).unwrap();
    let parts = compile(PARTS).render(&request).unwrap();
    assert_eq!(parts.text, "[system: s][user: see <image>and<image>]");
    assert_eq!(&parts.text[..parts.exact_prefix], "[system: s][user: see ");
    let media = [MediaKey::Content(xxh3_128(b"http://x")), MediaKey::Uuid("id".to_owned())];
    assert_eq!(parts.media, media);

    // vLLM puts the marks of media before a message's text.
    let text = compile(TEXT).render(&request).unwrap();
    assert_eq!(text.text, "[system: s][user: see \nand]");
    assert_eq!(&text.text[..text.exact_prefix], "[system: s][user: ");
    assert_eq!(text.media, media);
}

#[test]
fn a_medium_that_changes_what_is_before_it_ends_the_exact_part_there() {
    let counting = "{{ messages[0].content | length }} parts: ".to_owned() + PARTS;
    let body = r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}"#;
    let rendered = compile(&counting).render(&ChatRequest::parse(body).unwrap()).unwrap();
    assert_eq!(rendered.exact_prefix, 0);
    assert!(matches!(render("{{ messages | length }}", body), Err(TemplateError::Refused(_))));
}

#[test]
fn the_form_of_a_message_is_detected() {
    assert_eq!(compile(TEXT).content_format(), ContentFormat::Text);
    assert_eq!(compile(PARTS).content_format(), ContentFormat::Parts);
}
