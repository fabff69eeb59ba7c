import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from tests.e2e.client import Ask, chat, chat_streamed, completion, completion_streamed, says
from tests.e2e.engine import Engine
from tests.e2e.engine.engine import CONTEXT, MODEL
from tests.e2e.gateway import ENGINE_HEADER, Gateway

STORY = "The lighthouse keeper counts the ships of the evening and writes their names into a book. " * 8

BROKEN = {
    "empty": b"",
    "cut off": b'{"model": "tiny", "messages": [',
    "not an object": b"[]",
    "model of a wrong type": b'{"model": 7, "messages": [], "prompt": ""}',
    "prompt of a wrong type": b'{"model": "tiny", "messages": "text", "prompt": {}}',
    "not UTF-8": b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}], "prompt": "\xff"}',
}

WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a town.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["unit"],
            "additionalProperties": False,
        },
    },
}


def test_the_models_are_the_engines_own(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    through, own = client.models.list().data, direct.models.list().data
    assert [model.id for model in through] == [model.id for model in own] == [MODEL]
    assert (through[0].model_extra or {})["max_model_len"] == CONTEXT


@pytest.mark.parametrize("ask", [chat, chat_streamed, completion, completion_streamed])
def test_a_reply_is_the_one_the_engine_gives(ask: Ask, client: openai.OpenAI, direct: openai.OpenAI) -> None:
    reply = ask(client, STORY, 48)
    assert reply == ask(direct, STORY, 48)
    assert (reply.finish, reply.completion_tokens) == ("length", 48)
    assert len(reply.text.split()) == 48


@pytest.mark.parametrize("ask", [completion, completion_streamed])
def test_a_prompt_of_token_ids_is_answered_like_its_text(
    ask: Ask, client: openai.OpenAI, engines: tuple[Engine, Engine]
) -> None:
    ids = tokens_of(engines[0].url, {"prompt": STORY})
    reply = ask(client, ids)
    assert reply == ask(client, STORY)
    assert reply.prompt_tokens == len(ids)


def test_several_prompts_and_several_choices_keep_their_order(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "def main():"]
    reply = client.completions.create(model=MODEL, prompt=prompts, n=2, temperature=0.7, seed=7, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert all(choice.finish_reason for choice in reply.choices)


def test_a_stop_word_ends_the_reply(client: openai.OpenAI) -> None:
    word = chat(client, STORY).text.split()[5]
    reply = client.chat.completions.create(
        model=MODEL, messages=says(STORY), temperature=0, max_tokens=32, stop=[f" {word}"]
    )
    assert reply.choices[0].finish_reason == "stop"
    assert word not in (reply.choices[0].message.content or "").split()


def test_a_repeated_prompt_is_served_from_the_cache(client: openai.OpenAI) -> None:
    prompt = f"{uuid.uuid4().hex} {STORY}"
    first, second = chat(client, prompt), chat(client, prompt)
    assert first.cached_tokens == 0
    assert second.cached_tokens >= second.prompt_tokens - 32
    assert first == second


def test_many_users_at_once_each_get_their_own_reply(client: openai.OpenAI, direct: openai.OpenAI) -> None:
    prompts = [f"User {number}: {STORY}" for number in range(16)]
    with ThreadPoolExecutor(len(prompts)) as users:
        replies = list(users.map(lambda prompt: chat_streamed(client, prompt, 16), prompts))
    assert replies == [chat(direct, prompt, 16) for prompt in prompts]


def test_tool_definitions_are_part_of_the_prompt(client: openai.OpenAI, gateway: Gateway) -> None:
    messages = says("How is the weather?")
    reply = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice="auto", temperature=0, max_tokens=8
    )
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(tokens_of(gateway.url, {"messages": messages, "tools": [WEATHER]}))
    assert reply.usage.prompt_tokens > len(tokens_of(gateway.url, {"messages": messages}))


def test_a_tool_call_and_its_result_make_a_conversation(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = says("How is the weather?")
    asked = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=200
    ).choices[0]
    assert asked.finish_reason == "tool_calls"
    (call,) = asked.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["unit"] in {"celsius", "fahrenheit"}
    messages += [
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], temperature=0, max_tokens=16
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content


def test_a_streamed_tool_call_assembles(client: openai.OpenAI) -> None:
    name, arguments, finish = "", "", None
    with client.chat.completions.create(
        model=MODEL,
        messages=says("How is the weather?"),
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_tokens=200,
        stream=True,
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                finish = choice.finish_reason or finish
                for call in choice.delta.tool_calls or []:
                    assert call.function is not None
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
    assert (name, finish) == ("weather", "tool_calls")
    assert json.loads(arguments)["unit"] in {"celsius", "fahrenheit"}


def test_embeddings_of_a_model_that_makes_none_are_the_engines_error(
    client: openai.OpenAI, direct: openai.OpenAI
) -> None:
    with pytest.raises(openai.NotFoundError) as through:
        client.embeddings.create(model=MODEL, input="text")
    with pytest.raises(openai.NotFoundError) as own:
        direct.embeddings.create(model=MODEL, input="text")
    assert through.value.response.content == own.value.response.content


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_not_found(*, stream: bool, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nope") as of_chat:
        client.chat.completions.create(model="nope", messages=says("Hello"), stream=stream)
    with pytest.raises(openai.NotFoundError, match="nope") as of_completion:
        client.completions.create(model="nope", prompt="Hello", stream=stream)
    for refusal in (of_chat, of_completion):
        assert_openai_error(refusal.value.response.json())


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"max_tokens": -1},
        {"max_tokens": CONTEXT + 1},
        {"messages": says(STORY * 60)},
        {"n": 0},
    ],
    ids=["temperature", "max_tokens below 1", "max_tokens too big", "prompt too long", "n"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_parameter_gets_the_engines_own_refusal(
    wrong: dict[str, Any], *, stream: bool, client: openai.OpenAI, direct: openai.OpenAI
) -> None:
    body = {"model": MODEL, "messages": says("Hello"), "max_tokens": 4, "stream": stream, **wrong}
    refusals = []
    for way in (client, direct):
        with pytest.raises(openai.BadRequestError) as refusal:
            way.post("/chat/completions", body=body, cast_to=object)
        refusals.append(refusal.value)
    assert refusals[0].body == refusals[1].body
    assert_openai_error(refusals[0].response.json())


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_broken_body_is_a_bad_request(path: str, content: bytes, gateway: Gateway) -> None:
    refusal = gateway.post(path, content)
    assert refusal.status_code == httpx.codes.BAD_REQUEST
    assert_openai_error(refusal.json())


def test_a_request_id_is_kept_from_end_to_end(client: openai.OpenAI) -> None:
    given = f"e2e-{uuid.uuid4().hex}"
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=says("Hello"), max_tokens=1, extra_headers={"X-Request-Id": given}
    )
    assert raw.headers["x-request-id"] == given
    assert raw.parse().id == f"chatcmpl-{given}"


def test_a_missing_request_id_is_made(client: openai.OpenAI) -> None:
    ids = set()
    for _ in range(2):
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=says("Hello"), max_tokens=1)
        ids.add(raw.headers["x-request-id"])
        assert raw.parse().id == f"chatcmpl-{raw.headers['x-request-id']}"
        assert raw.headers[ENGINE_HEADER]
    assert len(ids) == 2
    assert "" not in ids


def test_an_error_carries_the_request_id_too(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        client.completions.create(model="nope", prompt="Hello", extra_headers={"X-Request-Id": "e2e-error"})
    assert refusal.value.request_id == "e2e-error"


def test_the_gateway_says_that_it_is_well(gateway: Gateway) -> None:
    def get(path: str) -> httpx.Response:
        return httpx.get(gateway.url + path, trust_env=False).raise_for_status()

    assert get("/health").json()["status"] == "healthy"
    assert get("/ready").is_success
    assert get("/version").json()["version"]
    assert get("/metrics").headers["content-type"].startswith(("text/plain", "application/openmetrics-text"))


def tokens_of(url: str, what: dict[str, Any]) -> list[int]:
    answer = httpx.post(f"{url}/tokenize", json={"model": MODEL, **what}, trust_env=False).raise_for_status()
    ids: list[int] = answer.json()["tokens"]
    return ids


def assert_openai_error(body: dict[str, Any]) -> None:
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
