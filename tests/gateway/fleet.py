"""Simulated engines behind a gateway of their own, and requests whose cached tokens are held against the prediction."""

import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgpack  # type: ignore[import-untyped]
import zmq
from tests.gateway.conftest import MODEL, OpenGateway, simulate
from tests.gateway.process import Gateway
from tests.gateway.wait import WITHIN_S, until

from nebula_router.core import Sim

BLOCK = 16
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
# A quiet engine is asked soon whether it is only quiet.
SOON = ("--silence-s", "0.2", "--replay-backoff-ms", "20", "--reconnect-ms", "20")
_ANY_PORT = {"enable_kv_cache_events": True, "endpoint": "tcp://*:0", "replay_endpoint": "tcp://*:0"}
_firsts = itertools.count(1)


def publishes(**events: Any) -> dict[str, Any]:
    """The setting of an engine that publishes on free ports."""
    return {"kv_events_config": json.dumps(_ANY_PORT | events)}


@dataclass(frozen=True)
class Answer:
    """A reply, and what the gateway had predicted of it."""

    id: str
    engine: str
    rank: int
    prompt: int
    overlap: int
    cached: int
    choice: dict[str, Any]

    @property
    def exact(self) -> bool:
        """Whether the prediction was right to the token."""
        return self.overlap == self.cached


class Published:
    """What one rank holds by its own word: every batch since its process began, from its replay socket."""

    def __init__(self, endpoint: str) -> None:
        self.blocks: set[Any] = set()
        self.most = 0
        self.next = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(endpoint)

    def read(self) -> None:
        """Takes in what is new."""
        self._socket.send_multipart([b"", self.next.to_bytes(8, "big")])
        while self._socket.poll(int(WITHIN_S * 1000)):
            _, *frames = self._socket.recv_multipart()
            seq = int.from_bytes(frames[-2], "big", signed=True)
            if seq == -1:
                return
            assert seq == self.next, "the engine's buffer is too short for this test"
            self.next = seq + 1
            for event in msgpack.unpackb(frames[-1])[1]:
                self._apply(event)
        raise TimeoutError("the replay does not end")

    def close(self) -> None:
        self._context.destroy(0)

    def _apply(self, event: Any) -> None:
        kind, names = (event["type"], event.get("block_hashes")) if isinstance(event, dict) else (*event, None)[:2]
        if kind == "BlockStored":
            self.blocks |= set(names)
        elif kind == "BlockRemoved":
            self.blocks -= set(names)
        else:
            self.blocks.clear()
        self.most = max(self.most, len(self.blocks))


@dataclass
class Fleet:
    """A gateway and its engines."""

    gateway: Gateway
    sims: list[Sim]
    published: list[Published] = field(default_factory=list)

    async def workers(self) -> dict[str, dict[str, Any]]:
        """What `GET /workers` says, by engine."""
        listed = (await self.gateway.http.get("/workers")).raise_for_status().json()["workers"]
        return {worker["name"]: worker for worker in listed}

    async def each_rank(self) -> list[dict[str, Any]]:
        """The same, rank by rank, in the order of the engines here."""
        workers = await self.workers()
        return [rank for sim in self.sims for rank in workers[name(sim)]["ranks"]]

    async def settle(self) -> None:
        """Returns once the index has every batch that any engine published."""

        async def same() -> bool:
            for rank in self.published:
                rank.read()
            told = [rank["events"] for rank in await self.each_rank() if rank["events"]]
            have = [(events["last_seq"], events["blocks"]) for events in told]
            rest = all(events["connected"] and not events["replaying"] for events in told)
            return rest and have == [
                (rank.next - 1 if rank.next else None, len(rank.blocks)) for rank in self.published
            ]

        await until("the index to hold what the engines hold", same)

    def listen(self) -> None:
        """Reads from now on what each engine has published since its process began."""
        self.close()
        for sim in self.sims:
            told = httpx.get(f"{sim.url}/kv_event_sources", trust_env=False).json().values()
            self.published += [Published(rank["replay_endpoint"]) for rank in told if rank["replay_endpoint"]]

    def close(self) -> None:
        """Reads no more of it."""
        while self.published:
            self.published.pop().close()

    async def ask(self, path: str, body: dict[str, Any], **headers: str) -> Answer:
        """One request, and how it went."""
        body = {"model": MODEL, "max_tokens": 8} | body
        headers["x-nebula-debug"] = "1"
        reply = (await self.gateway.http.post(path, json=body, headers=headers)).raise_for_status()
        usage, debug = reply.json()["usage"], reply.headers
        return Answer(
            id=debug["x-request-id"],
            engine=debug["x-nebula-engine"],
            rank=int(debug["x-nebula-rank"]),
            prompt=usage["prompt_tokens"],
            overlap=int(debug["x-nebula-overlap-tokens"]),
            cached=(usage["prompt_tokens_details"] or {}).get("cached_tokens", 0),
            choice=reply.json()["choices"][0],
        )

    async def explain(self, body: dict[str, Any], **headers: str) -> dict[str, Any]:
        """What would be chosen."""
        reply = await self.gateway.http.post("/route/explain", json={"model": MODEL} | body, headers=headers)
        document: dict[str, Any] = reply.raise_for_status().json()
        return document

    async def decisions(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The latest decisions, the newest first."""
        params = {} if limit is None else {"limit": str(limit)}
        reply = (await self.gateway.http.get("/route/decisions", params=params)).raise_for_status()
        decisions: list[dict[str, Any]] = reply.json()["decisions"]
        return decisions

    async def decision(self, request_id: str) -> dict[str, Any]:
        """The decision of one request, once that has ended in the gateway too."""
        found: list[dict[str, Any]] = []

        async def ended() -> bool:
            found[:] = [decision for decision in await self.decisions() if decision["id"] == request_id]
            return bool(found)

        await until(f"the decision of {request_id}", ended)
        [decision] = found
        return decision

    async def logged(self, text: str) -> None:
        """Returns once a line of the log has `text`: lines are written by a thread of their own."""
        await until(f"the log to say {text!r}", lambda: any(text in line for line in self.gateway.lines()))


@dataclass
class Talk:
    """A conversation: a chat, or a completion by token ids that goes on from its reply."""

    body: dict[str, Any]
    path: str = CHAT
    answers: list[Answer] = field(default_factory=list)

    @classmethod
    def chat(cls, user: int, group: int = 0, **more: Any) -> "Talk":
        system, opening = f"You are terse in group {group}. " * 12, f"user {user}: " + "a long story " * 10
        messages = [{"role": "system", "content": system}, {"role": "user", "content": opening}]
        return cls({"messages": messages, **more})

    @classmethod
    def ids(cls, *first: int, **more: Any) -> "Talk":
        return cls({"prompt": list(first), "return_token_ids": True, **more}, COMPLETION)

    async def go_on(self, fleet: Fleet, **headers: str) -> Answer:
        """Says its next part, and keeps the reply for the part after it."""
        answer = await fleet.ask(self.path, self.body, **headers)
        self.answers.append(answer)
        if self.path == CHAT:
            more = [answer.choice["message"], {"role": "user", "content": f"turn {len(self.answers)}: go on"}]
            messages = [{key: part[key] for key in ("role", "content")} for part in more]
            self.body = self.body | {"messages": [*self.body["messages"], *messages]}
        else:
            self.body = self.body | {"prompt": [*self.body["prompt"], *answer.choice["token_ids"], *unheard_of(11)]}
        return answer


def unheard_of(count: int) -> list[int]:
    """Token ids that nobody has sent so far."""
    first = next(_firsts) * 10_000
    return list(range(first, first + count))


def talks(users: int) -> list[Talk]:
    """Chats and completions by ids, without and with a salt; those of one kind and group begin alike."""
    groups = [unheard_of(5 * BLOCK) for _ in range(2)]
    kinds: list[Callable[[int, int], Talk]] = [
        Talk.chat,
        lambda user, group: Talk.ids(*groups[group], user),
        lambda user, group: Talk.ids(*groups[group], user, cache_salt="pepper"),
        lambda user, group: Talk.chat(user, group, cache_salt="pepper"),
    ]
    return [kinds[user % len(kinds)](user, user // len(kinds) % len(groups)) for user in range(users)]


async def play(fleet: Fleet, users: Sequence[Talk], turns: int) -> list[Answer]:
    """Lets all of them talk, and the index take in what became of each turn before the next one."""
    answers = []
    for _ in range(turns):
        answers += [await user.go_on(fleet) for user in users]
        await fleet.settle()
    return answers


def name(sim: Sim) -> str:
    """What the gateway calls an engine."""
    return sim.url.removeprefix("http://")


@asynccontextmanager
async def opened(
    open_gateway: OpenGateway, *flags: str, count: int = 2, ranks: int = 1, **settings: Any
) -> AsyncIterator[Fleet]:
    """A gateway and its engines, once it knows all of them."""
    source = settings.pop("source", "engine" if "kv_events_config" in settings else "text")
    with ExitStack() as stack:
        common = {"speed": 0, "data_parallel_size": ranks} | settings
        sims = [simulate(**common | {"seed": common.get("seed", 0) + at}) for at in range(count)]
        for sim in sims:
            stack.callback(sim.stop)
        async with open_gateway("--seed", "1", *flags) as gateway:
            fleet = Fleet(gateway, sims)
            stack.callback(fleet.close)
            fleet.listen()
            for sim in sims:
                body = {"url": sim.url, "ranks": ranks}
                (await gateway.http.post("/admin/engines", json=body)).raise_for_status()

            async def known() -> bool:
                workers = (await fleet.workers()).values()
                keys = [(worker["status"], (worker["key"] or {}).get("source")) for worker in workers]
                told = [rank["events"] for rank in await fleet.each_rank()]
                followed = source == "text" or all(events and events["connected"] for events in told)
                return followed and keys == [("ready", source)] * count

            await until("the engines to be known", known)
            yield fleet
            await gateway.await_rest()
