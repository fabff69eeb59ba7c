"""Chat requests of all kinds for the templates: most are in order, some are what a template or an engine refuses."""

import json
from typing import Any

from hypothesis import strategies as st

LETTERS = st.characters(exclude_categories=["Cs"])
FRAGMENTS = st.sampled_from(
    [
        "Hello!",
        "  spaces around \n\n",
        "\n<think>\nhmm\n</think>\n\nyes",
        "a</think>b</think>c",
        "<tool_response>x</tool_response>",
        "<|channel|>",
        'it\'s "quoted" \\ and\tTabbed\r\nlines\u2028more\x1c\x85.',
        "{{ not.a.variable }} {% nor a tag %} {# 1 #}",
        "d\u00e9j\u00e0 vu \u4f60\u597d \U0001f600 e\u0301 \u0130\u03a3 \u00df",
        "word word word",
    ]
)
TEXTS = st.one_of(FRAGMENTS, st.text(LETTERS, max_size=20), st.text(st.sampled_from("aeI <>'\n"), max_size=30))
WORDS = st.text(st.sampled_from("abcXYZ_"), min_size=1, max_size=6)
NUMBERS = st.one_of(
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(-9e18, 9e18, allow_nan=False).filter(lambda number: str(number) != "-0.0"),
    st.sampled_from([0, 1, 1.0, 1e16, 1e-05, 0.0001, 123456789.125, 1e-7, 5e17]),
)
PLAIN = st.text(st.sampled_from("ab'\"\\\n\t\u00e9\u4f60\U0001f600 \u00a0\u200b"), max_size=8)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, PLAIN)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
ARGUMENTS = st.one_of(
    st.dictionaries(WORDS, VALUES, max_size=4).map(json.dumps),
    st.dictionaries(WORDS, VALUES, max_size=2).map(lambda given: json.dumps(given, ensure_ascii=False, indent=1)),
    st.sampled_from(
        ["", "{}", "[1]", "not json", '{"a": 1, "b": 2, "a": 3}', "null", '"text"', "{'a': 1}", '{"a": 01}']
    ),
)
SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "integer", "number", "boolean"])},
        optional={
            "description": TEXTS,
            "enum": st.lists(WORDS, min_size=1, max_size=3),
            "default": LEAVES,
            "nullable": st.booleans(),
        },
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array")}, optional={"items": inner, "description": TEXTS}),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(WORDS, inner, max_size=3)},
            optional={"required": st.lists(WORDS, max_size=2)},
        ),
        st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"type": st.just(["string", "null"])}),
    ),
    max_leaves=5,
)
TOOLS = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries(
            {"name": WORDS},
            optional={
                "description": st.one_of(st.none(), TEXTS),
                "parameters": st.one_of(
                    st.fixed_dictionaries(
                        {"type": st.just("object"), "properties": st.dictionaries(WORDS, SCHEMAS, max_size=3)},
                        optional={"required": st.lists(WORDS, max_size=2), "additionalProperties": st.booleans()},
                    ),
                    st.none(),
                ),
                "strict": st.sampled_from([True, False, None]),
                "unknown": VALUES,
            },
        ),
    },
    optional={"type": st.just("function"), "defer_loading": st.booleans(), "unknown": VALUES},
)

PARTS = st.one_of(
    TEXTS,
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}, optional={"cache_control": VALUES}),
    st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text"]), "text": TEXTS}),
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": TEXTS}),
    st.fixed_dictionaries({"type": st.just("refusal"), "refusal": TEXTS}),
)
CONTENTS = st.one_of(TEXTS, TEXTS, TEXTS, st.lists(PARTS, max_size=3))
BILLING = st.sampled_from(["x-anthropic-billing-header: cch=1;\nYou help.", "x-anthropic-billing-header: cch=2;"])
NINE = st.text(st.sampled_from("abc123"), min_size=9, max_size=9)
IDS = st.one_of(NINE, NINE, NINE, WORDS)


def shuffled(message: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.permutations(list(message)).map(lambda keys: {key: message[key] for key in keys})


CALLS = st.fixed_dictionaries(
    {
        "id": IDS,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": WORDS, "arguments": ARGUMENTS}, optional={"unknown": VALUES}),
    },
    optional={"index": st.integers(0, 3)},
).flatmap(shuffled)

SYSTEM = st.fixed_dictionaries({"role": st.just("system"), "content": st.one_of(CONTENTS, BILLING)})
DEVELOPER = st.fixed_dictionaries({"role": st.just("developer"), "content": CONTENTS})
USER = st.fixed_dictionaries(
    {"role": st.just("user"), "content": CONTENTS}, optional={"name": WORDS, "unknown": VALUES}
).flatmap(shuffled)
ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": CONTENTS},
    optional={"reasoning_content": st.one_of(st.none(), TEXTS), "reasoning": TEXTS, "refusal": st.none()},
).flatmap(shuffled)
CALLING = st.fixed_dictionaries(
    {"role": st.just("assistant"), "tool_calls": st.lists(CALLS, max_size=2)},
    optional={"content": st.one_of(st.none(), CONTENTS), "reasoning_content": TEXTS},
).flatmap(shuffled)
RESULT = st.fixed_dictionaries(
    {"role": st.just("tool"), "content": CONTENTS}, optional={"tool_call_id": IDS, "name": WORDS}
)
CUSTOM = st.fixed_dictionaries({"role": WORDS, "content": CONTENTS}, optional={"task": WORDS})


def orderly(*turns: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Perhaps a system message, some of the turns, and a question."""
    return st.builds(
        lambda head, turns, last: head + [message for turn in turns for message in turn] + last,
        st.lists(SYSTEM, max_size=1),
        st.lists(st.one_of(*turns), max_size=3),
        st.lists(USER, min_size=1, max_size=1),
    )


TALKS = orderly(st.tuples(USER, ANSWER))
WORKS = orderly(
    st.tuples(USER, CALLING, RESULT, ANSWER), st.tuples(USER, CALLING, RESULT, RESULT, CALLING, RESULT, ANSWER)
)
DISORDERLY = st.lists(st.one_of(SYSTEM, DEVELOPER, USER, ANSWER, CALLING, RESULT, CUSTOM), min_size=1, max_size=6)

ARGUMENTS_BY_NAME = st.fixed_dictionaries(
    {},
    optional={
        "enable_thinking": st.one_of(st.booleans(), st.none()),
        "tools_in_user_message": st.booleans(),
        "builtin_tools": st.lists(WORDS, max_size=2),
        "date_string": st.sampled_from(["1 May 2025", "auto"]),
        "model_identity": TEXTS,
        "bos_token": st.just("<other>"),
        "reasoning_effort": st.just("high"),
        "documents": st.lists(st.dictionaries(WORDS, VALUES, max_size=2), max_size=2),
        "unheard_of": VALUES,
        "add_generation_prompt": st.booleans(),
    },
)

ENDINGS = st.sampled_from(
    [
        {},
        {},
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
        {"continue_final_message": True},
    ]
)


def request(messages: list[Any], ending: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": messages, **ending, **fields}


REQUESTS = st.builds(
    request,
    st.one_of(TALKS, WORKS, DISORDERLY),
    ENDINGS,
    st.fixed_dictionaries(
        {},
        optional={
            "tools": st.lists(TOOLS, min_size=1, max_size=2),
            "tool_choice": st.just("none"),
            "chat_template_kwargs": ARGUMENTS_BY_NAME,
            "reasoning_effort": st.sampled_from(["none", "low", "medium", None]),
            "documents": st.lists(st.fixed_dictionaries({"title": PLAIN, "text": PLAIN}), min_size=1, max_size=2),
            "temperature": st.just(0.5),
        },
    ),
)
