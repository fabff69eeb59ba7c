"""Engines come and go while traffic flows."""

import anyio
import pytest
from tests.gateway.conftest import MODEL, simulate
from tests.gateway.process import Gateway
from tests.gateway.upstream import JSON_REPLY, STREAM_HEAD, Line, Upstream, answer_json, chunk, event, whole
from tests.gateway.wait import until

from nebula_router.core import Sim

pytestmark = pytest.mark.anyio

ENGINES = "/admin/engines"


async def test_the_list_tells_all_of_each_engine(gateway: Gateway, sims: list[Sim]) -> None:
    engines = await gateway.engines()
    for sim in sims:
        engine = engines[sim.url.removeprefix("http://")]
        assert (engine["url"], engine["status"], engine["models"]) == (sim.url, "ready", [MODEL])
        assert (engine["block_size"], len(engine["ranks"])) == (16, 1)
        assert engine["version"]


@pytest.mark.parametrize(
    "header",
    [
        ("Origin", "http://127.0.0.1"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "same-origin"),
        ("Sec-Fetch-Site", "cross-site"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("Forwarded", "for=10.0.0.9"),
    ],
    ids=": ".join,
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_web_page_or_a_proxy_needs_the_token(method: str, header: tuple[str, str], gateway: Gateway) -> None:
    before = await gateway.engines()
    reply = await gateway.http.request(method, ENGINES, content=b'{"url": "http://h:1"}', headers=[header])
    assert reply.status_code == 403
    assert "gateway.admin_token" in reply.json()["error"]["message"]
    assert (await gateway.engines()).keys() == before.keys()


async def test_an_address_typed_into_a_browser_is_not_a_web_page(gateway: Gateway) -> None:
    assert (await gateway.http.get(ENGINES, headers={"Sec-Fetch-Site": "none"})).status_code == 200


async def test_an_engine_is_added_drained_resumed_and_removed(gateway: Gateway) -> None:
    upstream = Upstream()
    await upstream.start()
    body = {"model": upstream.model, "prompt": "x"}
    engine = f"{ENGINES}/mine"
    try:
        added = await gateway.http.post(ENGINES, json={"url": upstream.url, "name": "mine", "ranks": 2})
        events = {"events": "auto", "events_replay": None, "events_topic": ""}
        assert (added.status_code, added.json()) == (201, {"url": upstream.url, "name": "mine", "ranks": 2, **events})
        await until("its model", lambda: answers(gateway, f"/v1/models/{upstream.model}"))
        reply = await gateway.http.post("/v1/completions", json=body)
        assert reply.headers["x-nebula-engine"] == "mine"
        assert upstream.seen[0].one("x-data-parallel-rank") in {"0", "1"}

        assert (await gateway.http.post(f"{engine}/drain")).json() == {"name": "mine", "draining": True}
        assert (await gateway.engines())["mine"]["status"] == "draining"
        assert (await gateway.http.post("/v1/completions", json=body)).status_code == 503
        assert (await gateway.http.post(f"{engine}/resume")).json() == {"name": "mine", "draining": False}
        assert (await gateway.http.post("/v1/completions", json=body)).status_code == 200

        assert (await gateway.http.delete(engine)).json() == {"name": "mine", "removed": True}
        assert "mine" not in await gateway.engines()
        assert (await gateway.http.post("/v1/completions", json=body)).status_code == 404
        assert (await gateway.http.get(f"/v1/models/{upstream.model}")).status_code == 404
    finally:
        await gateway.http.delete(engine)
        await upstream.stop()


async def answers(gateway: Gateway, path: str) -> bool:
    return (await gateway.http.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "dictionary"),
        (b"{}", "url"),
        (b'{"url":5}', "url"),
        (b'{"url":"ftp://h:1"}', "http://host:port"),
        (b'{"url":"h:8000"}', "http://host:port"),
        (b'{"url":"http://h:99999"}', "http://host:port"),
        (b'{"url":"http://h:8000/v1"}', "path"),
        (b'{"url":"http://u:p@h:8000"}', "password"),
        (b'{"url":"http://h:8000","ranks":0}', "ranks"),
        (b'{"url":"http://h:8000","name":"a b"}', "name"),
        (b'{"url":"http://h:8000","nmae":"a"}', "nmae"),
    ],
)
async def test_an_engine_that_cannot_be_is_refused(body: bytes, says: str, gateway: Gateway) -> None:
    before = await gateway.engines()
    reply = await gateway.http.post(ENGINES, content=body)
    assert reply.status_code == 400
    assert says in reply.json()["error"]["message"]
    assert (await gateway.engines()).keys() == before.keys()


async def test_a_name_or_an_address_that_is_taken_is_refused(gateway: Gateway, sims: list[Sim]) -> None:
    name = sims[0].url.removeprefix("http://")
    for body in ({"url": "http://other:1", "name": name}, {"url": sims[0].url, "name": "another"}):
        reply = await gateway.http.post(ENGINES, json=body)
        assert reply.status_code == 409
        assert reply.json()["error"]["type"] == "ConflictError"
        assert name in reply.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/drain"), ("POST", "/resume")])
async def test_an_engine_that_is_not_there(method: str, path: str, gateway: Gateway, sims: list[Sim]) -> None:
    reply = await gateway.http.request(method, f"{ENGINES}/nobody{path}")
    assert reply.status_code == 404
    assert sims[0].url.removeprefix("http://") in reply.json()["error"]["message"]


async def test_every_name_that_can_be_added_can_be_removed(gateway: Gateway) -> None:
    for name in ("a/b", "a%b", "drain", "a/drain", "http://h:1"):
        (await gateway.http.post(ENGINES, json={"url": "http://127.0.0.1:9", "name": name})).raise_for_status()
        path = f"{ENGINES}/{name.replace('%', '%25')}"
        assert (await gateway.http.post(f"{path}/drain")).status_code == 200, name
        assert (await gateway.http.delete(path)).json() == {"name": name, "removed": True}


async def test_no_request_fails_while_engines_come_and_go(gateway: Gateway, sims: list[Sim]) -> None:
    statuses: list[int] = []
    over = anyio.Event()

    async def user(number: int) -> None:
        while not over.is_set():
            body = {"model": MODEL, "prompt": f"{number} {len(statuses)}" * 20, "max_tokens": 5}
            statuses.append((await gateway.http.post("/v1/completions", json=body)).status_code)

    home = sims[0].url.removeprefix("http://")
    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(user, number)
        for _ in range(3):
            (await gateway.http.post(f"{ENGINES}/{home}/drain")).raise_for_status()
            guest = simulate()
            (await gateway.http.post(ENGINES, json={"url": guest.url, "name": "guest"})).raise_for_status()
            await until("the guest to serve", lambda: served(gateway, "guest"))
            (await gateway.http.post(f"{ENGINES}/{home}/resume")).raise_for_status()
            (await gateway.http.post(f"{ENGINES}/guest/drain")).raise_for_status()
            await until("the guest to be done", lambda: idle(gateway, "guest"))
            (await gateway.http.delete(f"{ENGINES}/guest")).raise_for_status()
            guest.stop()
        over.set()
    assert set(statuses) == {200}


async def served(gateway: Gateway, engine: str) -> bool:
    return bool(await gateway.metric("nebula_requests_total", engine=engine, status="200"))


async def idle(gateway: Gateway, engine: str) -> bool:
    return await gateway.metric("nebula_running_requests", engine=engine) == 0


@pytest.mark.parametrize("first", [(), (STREAM_HEAD, chunk(event(a=1)))], ids=["before a byte", "in a stream"])
async def test_what_a_removed_engine_has_goes_on(first: tuple[bytes, ...], gateway: Gateway) -> None:
    here, removed, upstream = anyio.Event(), anyio.Event(), Upstream()
    contents = []

    async def waits(line: Line) -> None:
        await line.send(*first)
        here.set()
        await removed.wait()
        await line.send(*((chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n") if first else (whole(JSON_REPLY),)))

    async def one() -> None:
        contents.append(
            (await gateway.http.post("/v1/completions", json={"model": upstream.model, "prompt": "x"})).content
        )

    upstream.answer = waits
    async with gateway.serving(upstream), anyio.create_task_group() as group:
        group.start_soon(one)
        await here.wait()
        (await gateway.http.delete(f"{ENGINES}/{upstream.name}")).raise_for_status()
        removed.set()
    assert contents == [event(a=1) + b"data: [DONE]\n\n" if first else JSON_REPLY]
    upstream.answer = answer_json
