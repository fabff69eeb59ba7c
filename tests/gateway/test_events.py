"""KV events that do not arrive as they were sent, and engines that start over: the index finds back to what is true."""

import anyio
import httpx
import pytest
from tests.gateway.conftest import MODEL, OpenGateway, fault
from tests.gateway.fleet import BLOCK, COMPLETION, SOON, Fleet, Talk, name, opened, play, publishes, talks, unheard_of
from tests.gateway.process import client
from tests.gateway.wait import until

pytestmark = pytest.mark.anyio


async def counts(fleet: Fleet, of: str) -> list[int]:
    return [rank["events"][of] for rank in await fleet.each_rank()]


@pytest.mark.parametrize(
    ("kind", "seen", "seed"),
    [("drop_events", "gaps", 1), ("duplicate_events", "duplicates", 3), ("reorder_events", "gaps", 5)],
)
async def test_batches_that_do_not_come_as_they_were_sent(
    kind: str, seen: str, seed: int, open_gateway: OpenGateway
) -> None:
    async with opened(open_gateway, *SOON, **publishes(), seed=seed) as fleet:
        users = talks(12)
        await play(fleet, users, 1)
        for sim in fleet.sims:
            await fault(sim.url, kind, share=0.4)
        # Nothing waits for the index here: it is behind, and wrong.
        for user in users * 2:
            await user.go_on(fleet)
        for sim in fleet.sims:
            await fault(sim.url, "none")
        await fleet.settle()
        answers = await play(fleet, users, 1)
        assert [answer for answer in answers if not answer.exact] == []
        assert all(count > 0 for count in await counts(fleet, seen))
        assert await counts(fleet, "losses") == await counts(fleet, "orphans") == [0, 0]
        # The first one is that of the admission.
        assert kind == "duplicate_events" or all(count > 1 for count in await counts(fleet, "replays"))


async def test_what_is_lost_and_not_replayed_is_forgotten_and_learned_anew(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, *SOON, count=1, **publishes(replay_endpoint=None)) as fleet:
        [url] = [sim.url for sim in fleet.sims]
        known = Talk.ids(*unheard_of(6 * BLOCK))
        await known.go_on(fleet)
        await until("its blocks", lambda: holds(fleet, 6))
        await fault(url, "drop_events", count=1)
        await Talk.ids(*unheard_of(BLOCK)).go_on(fleet)
        await Talk.ids(*unheard_of(3 * BLOCK)).go_on(fleet)
        await until("what came after the loss", lambda: holds(fleet, 3))
        assert (await counts(fleet, "gaps"), await counts(fleet, "losses")) == ([1], [1])
        answer = await known.go_on(fleet)
        # Too little is predicted, never too much.
        assert (answer.overlap, answer.cached) == (0, 6 * BLOCK)
        [rank] = await fleet.each_rank()
        assert (rank["prediction"]["credit"], rank["prediction"]["error_mean"] < 0) == (1.0, True)


async def holds(fleet: Fleet, blocks: int) -> bool:
    return await counts(fleet, "blocks") == [blocks]


async def restart(url: str, down_ms: int = 0) -> None:
    async with client(url) as http:
        (await http.post("/sim/restart", json={"down_ms": down_ms})).raise_for_status()


@pytest.mark.parametrize("overtakes", [False, True])
async def test_an_engine_that_starts_over_is_another_one(open_gateway: OpenGateway, *, overtakes: bool) -> None:
    # Nobody probes it meanwhile: its events alone tell, and late where it is to reach the numbers that it had.
    flags = (*SOON, "--probe-interval-ms", "600000", "--reconnect-ms", "700" if overtakes else "20")
    async with opened(open_gateway, *flags, **publishes()) as fleet:
        users = talks(8)
        await play(fleet, users, 2)
        before = await counts(fleet, "last_seq")
        url = fleet.sims[0].url
        await restart(url)
        await until("it to be back", lambda: is_up(url))
        async with client(url) as http:
            for _ in range(before[0] + 5 if overtakes else 0):
                body = {"model": MODEL, "prompt": unheard_of(BLOCK), "max_tokens": 1}
                (await http.post(COMPLETION, json=body)).raise_for_status()
        fleet.listen()
        await fleet.settle()
        assert await counts(fleet, "generation") == [1, 0]
        assert ((await counts(fleet, "last_seq"))[0] or 0) > before[0] or not overtakes
        answers = await play(fleet, users, 2)
        assert [answer for answer in answers if not answer.exact] == []


async def test_an_engine_that_was_down_is_learned_anew(open_gateway: OpenGateway) -> None:
    async with opened(open_gateway, *SOON, **publishes()) as fleet:
        users = talks(8)
        await play(fleet, users, 2)
        gone = name(fleet.sims[0])
        await restart(fleet.sims[0].url, 600)
        await until("it to be down", lambda: has_status(fleet, gone, "down"))
        assert (await fleet.workers())[gone]["ranks"][0]["events"]["blocks"] == 0
        await until("it to be back", lambda: has_status(fleet, gone, "ready"))
        fleet.listen()
        await fleet.settle()
        answers = await play(fleet, users, 2)
        assert [answer for answer in answers if not answer.exact] == []
        assert {answer.engine for answer in answers} == {name(sim) for sim in fleet.sims}


async def has_status(fleet: Fleet, engine: str, status: str) -> bool:
    return bool((await fleet.workers())[engine]["status"] == status)


async def is_up(url: str) -> bool:
    async with client(url) as http:
        try:
            return (await http.get("/health")).status_code == 200
        except httpx.TransportError:
            return False


async def test_a_flood_is_taken_in_and_never_believed_beyond_the_cache(open_gateway: OpenGateway) -> None:
    kv_blocks = 200
    # Queues so short that most of it is lost on the way.
    flags = (*SOON, "--receive-batches", "2", "--held-batches", "2")
    settings = publishes(hwm=2) | {"kv_blocks": kv_blocks, "max_model_len": 512}
    async with opened(open_gateway, *flags, count=1, **settings) as fleet:
        most = 0
        await fault(fleet.sims[0].url, "drop_events", share=0.2)

        async def user() -> None:
            for _ in range(25):
                await Talk.ids(*unheard_of(9 * BLOCK)).go_on(fleet)

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(user)
            for _ in range(40):
                most = max(most, *await counts(fleet, "blocks"))
        await fault(fleet.sims[0].url, "none")
        await fleet.settle()
        assert kv_blocks / 2 < most < kv_blocks
        assert min(await counts(fleet, "gaps")) > 0
        users = talks(4)
        for one in users * 2:
            assert (await one.go_on(fleet)).exact
            await fleet.settle()
