"""The `openai` client works unchanged."""

from collections.abc import AsyncIterator

import openai
import pytest
from tests.gateway.conftest import MODEL
from tests.gateway.process import Gateway
from tests.gateway.upstream import STREAM_HEAD, Line, Upstream, answer, chunk, event

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=20, http_client=http
    ) as opened:
        yield opened


async def test_chat_streamed_and_not_say_the_same(client: openai.AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=20
    )
    assert whole.usage is not None
    assert whole.choices[0].message.content
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [part async for part in stream]
    text = "".join(part.choices[0].delta.content or "" for part in chunks if part.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


async def test_completions_streamed_and_not_say_the_same(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="short", prompt="Hello", max_tokens=20)
    stream = await client.completions.create(model="short", prompt="Hello", max_tokens=20, stream=True)
    parts = [part.choices[0].text async for part in stream]
    assert "".join(parts) == whole.choices[0].text
    by_ids = await client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=3)
    assert by_ids.usage is not None
    assert (by_ids.usage.prompt_tokens, by_ids.usage.completion_tokens) == (3, 3)


async def test_models(client: openai.AsyncOpenAI) -> None:
    ids = [model.id async for model in await client.models.list()]
    assert {MODEL, "short"} <= set(ids)
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody")


async def test_an_engine_that_cannot_embed_says_so_itself(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.embeddings.create(model=MODEL, input="x")
    assert refused.value.response.json() == {"detail": "Not Found"}


async def test_errors_have_the_types_that_users_catch(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nobody"):
        await client.chat.completions.create(model="nobody", messages=[])
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model=MODEL, messages="x")  # type: ignore[arg-type]
    assert refused.value.param == "messages"
    assert refused.value.type == "BadRequestError"


async def test_the_id_of_a_request_is_known_to_the_user(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=[], max_tokens=1)
    assert raw.request_id
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="nobody", messages=[])
    assert refused.value.request_id


async def test_a_stream_that_breaks_is_an_error_and_no_short_reply(
    client: openai.AsyncOpenAI, upstream: Upstream
) -> None:
    async def dies(line: Line) -> None:
        await answer(STREAM_HEAD, chunk(event(choices=[])))(line)
        line.cut()

    upstream.answer = dies
    stream = await client.chat.completions.create(model=upstream.model, messages=[], stream=True)
    with pytest.raises(openai.APIError, match="broke off") as broken:
        [part async for part in stream]
    assert not isinstance(broken.value, openai.APIConnectionError)
