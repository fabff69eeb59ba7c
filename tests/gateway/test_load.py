"""What is booked on an engine while it works."""

import json

import anyio
import pytest
from tests.gateway.conftest import OpenGateway
from tests.gateway.process import Gateway
from tests.gateway.raw import connect
from tests.gateway.upstream import Line, Upstream
from tests.gateway.wait import until

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


class Silence:
    """An engine that takes a request and says nothing."""

    def __init__(self) -> None:
        self.here = anyio.Event()

    async def __call__(self, line: Line) -> None:
        self.here.set()
        await line.gone()


async def booked(gateway: Gateway, upstream: Upstream) -> tuple[float | None, float | None]:
    """Requests that run, and tokens that are still to be computed."""
    running = await gateway.metric("nebula_running_requests", engine=upstream.name)
    return running, await gateway.metric("nebula_prefill_tokens", engine=upstream.name)


@pytest.mark.parametrize(("stream", "rate"), [(False, "1e9"), (True, "1e9"), (False, "1")])
async def test_a_reply_that_is_not_streamed_is_taken_for_prefilled_in_time(
    stream: bool,  # noqa: FBT001 - a case of the table
    rate: str,
    open_gateway: OpenGateway,
) -> None:
    silence = Silence()
    upstream = Upstream(answer=silence)
    async with open_gateway("--prefill-tokens-per-second", rate) as gateway, gateway.serving(upstream):
        body = {"model": upstream.model, "messages": [{"role": "user", "content": "x" * 4000}], "stream": stream}
        async with connect(gateway.port) as client:
            await client.post(CHAT, json.dumps(body).encode())
            with anyio.fail_after(10):
                await silence.here.wait()
            if not stream and rate == "1e9":

                async def computed() -> bool:
                    return await booked(gateway, upstream) == (1, 0)

                await until("the prompt to be taken for computed", computed)
            else:
                running, prefill = await booked(gateway, upstream)
                assert running == 1
                assert prefill
                assert prefill > 900
