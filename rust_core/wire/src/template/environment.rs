//! The names that a template can use: those of `transformers`, and nothing that behaves differently.

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, filters, functions, tests};

use super::{Clock, date, filter, json, method, python};

/// The syntax of `transformers`: a tag on a line of its own leaves no line.
pub(super) fn syntax() -> SyntaxConfig {
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    // Only delimiters can be wrong.
    syntax.build().unwrap_or_default()
}

/// An environment without a template.
pub(super) fn environment(clock: Clock) -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_syntax(syntax());
    env.set_unknown_method_callback(method::call);
    env.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => Ok(out.write_str(text)?),
        None => Ok(out.write_str(&python::string(value))?),
    });
    add_filters(&mut env);
    add_tests(&mut env);
    env.add_function("namespace", functions::namespace);
    env.add_function("range", functions::range);
    env.add_function("dict", functions::dict);
    env.add_function("raise_exception", |_: Value| -> Result<Value, Error> {
        // The text may repeat a part of the prompt.
        Err(Error::new(ErrorKind::InvalidOperation, "the template refuses the conversation"))
    });
    env.add_function("strftime_now", move |format: &str| {
        date::strftime(format, &Arc::as_ref(&clock)())
    });
    env
}

fn add_filters(env: &mut Environment<'static>) {
    env.add_filter("abs", filters::abs);
    env.add_filter("capitalize", filter::capitalize);
    env.add_filter("count", filters::length);
    env.add_filter("d", filters::default);
    env.add_filter("default", filters::default);
    env.add_filter("dictsort", filter::dictsort);
    env.add_filter("first", filters::first);
    env.add_filter("indent", filter::indent);
    env.add_filter("int", filter::int);
    env.add_filter("items", filter::items);
    env.add_filter("join", filter::join);
    env.add_filter("last", filters::last);
    env.add_filter("length", filters::length);
    env.add_filter("list", filter::list);
    env.add_filter("lower", filter::lower);
    env.add_filter("map", filters::map);
    env.add_filter("reject", filters::reject);
    env.add_filter("rejectattr", filters::rejectattr);
    env.add_filter("replace", filter::replace);
    env.add_filter("reverse", filters::reverse);
    env.add_filter("safe", filter::string);
    env.add_filter("select", filters::select);
    env.add_filter("selectattr", filters::selectattr);
    env.add_filter("string", filter::string);
    env.add_filter("title", filter::title);
    env.add_filter("tojson", json::tojson);
    env.add_filter("trim", filter::trim);
    env.add_filter("upper", filter::upper);
}

fn add_tests(env: &mut Environment<'static>) {
    env.add_test("boolean", tests::is_boolean);
    env.add_test("callable", filter::is_callable);
    env.add_test("defined", tests::is_defined);
    env.add_test("divisibleby", tests::is_divisibleby);
    env.add_test("even", tests::is_even);
    env.add_test("false", tests::is_false);
    env.add_test("float", filter::is_float);
    env.add_test("in", tests::is_in);
    env.add_test("integer", tests::is_integer);
    env.add_test("iterable", filter::is_iterable);
    env.add_test("mapping", tests::is_mapping);
    env.add_test("none", tests::is_none);
    env.add_test("number", filter::is_number);
    env.add_test("odd", tests::is_odd);
    env.add_test("sequence", filter::is_sequence);
    env.add_test("string", tests::is_string);
    env.add_test("true", tests::is_true);
    env.add_test("undefined", tests::is_undefined);
    for name in ["eq", "equalto", "=="] {
        env.add_test(name, tests::is_eq);
    }
    for name in ["ne", "!="] {
        env.add_test(name, tests::is_ne);
    }
    for name in ["lt", "lessthan", "<"] {
        env.add_test(name, tests::is_lt);
    }
    for name in ["gt", "greaterthan", ">"] {
        env.add_test(name, tests::is_gt);
    }
    for name in ["le", "<="] {
        env.add_test(name, tests::is_le);
    }
    for name in ["ge", ">="] {
        env.add_test(name, tests::is_ge);
    }
}
