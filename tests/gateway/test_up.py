"""`nebula up`: a gateway with a fleet of simulated engines in one process, as somebody at a terminal has it."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e.process import free_port
from tests.gateway.conftest import QUICK
from tests.gateway.process import Gateway
from tests.gateway.test_commands import nebula
from tests.gateway.wait import until

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
SOON = (
    *("--restart-backoff-s", "0.05", "--health-interval-s", "0.1", "--heartbeat-s", "0.2"),
    *("--interval-s", "0.2", "--speed", "0"),
)


class Up(Gateway):
    """The command, and the engines that it started."""

    def engines_of_it(self) -> dict[str, psutil.Process]:
        """Its engines' processes, by replica."""
        found = {}
        for child in psutil.Process(self.pid).children():
            with suppress(psutil.NoSuchProcess):  # a zombie is none
                words = child.cmdline()
                if "sim" in words and "--name" in words:
                    found[words[words.index("--name") + 1]] = child
        return found

    async def statuses(self) -> dict[str, str]:
        """What the gateway says of each engine."""
        engines: dict[str, str] = (await self.http.get("/health")).json()["engines"]
        return engines

    async def await_ready(self, *names: str) -> None:
        async def ready() -> bool:
            return await self.statuses() == dict.fromkeys(names, "ready")

        await until(f"engines {names} to be ready", ready)

    async def replicas(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (
            (await self.http.get("/admin/fleet/placements")).raise_for_status().json()["replicas"]
        )
        return rows

    async def ask(self, **more: Any) -> dict[str, Any]:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **more}
        answer: dict[str, Any] = (await self.http.post(CHAT, json=body)).raise_for_status().json()
        return answer

    def interrupt(self) -> None:
        """Presses Ctrl-C."""
        psutil.Process(self.pid).send_signal(signal.SIGINT)


@asynccontextmanager
async def up(folder: Path, *flags: str) -> AsyncIterator[Up]:
    engines = flags if "--engine-config-path" in flags else ("--sim", "2", *flags)
    given = Up(folder, *QUICK, "--vllm-port", str(free_port()), *SOON, *engines, command="up")
    try:
        await given.start()
        yield given
    finally:
        try:
            await given.stop()
        finally:
            print(given.tail())  # noqa: T201 - pytest shows it when the test failed


def gone(processes: dict[str, psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes.values())


async def told(*words: str, to: Up) -> Any:
    """What a command in another terminal says, as JSON."""
    ran = await nebula(*words, "--json", "--url", to.url)
    assert (ran.returncode, ran.stderr) == (0, b"")
    return json.loads(ran.stdout)


async def test_an_engine_that_is_killed_is_back(tmp_path: Path) -> None:
    async with up(tmp_path) as fleet:
        await fleet.await_ready("tiny/0", "tiny/1")
        assert (await fleet.ask())["model"] == "tiny"
        before = fleet.engines_of_it()
        assert set(before) == {"tiny/0", "tiny/1"}
        before["tiny/1"].kill()

        async def back() -> bool:
            now = fleet.engines_of_it().get("tiny/1")
            return now is not None and now.pid != before["tiny/1"].pid

        await until("another engine in its place", back)
        await fleet.await_ready("tiny/0", "tiny/1")
        assert fleet.engines_of_it()["tiny/0"].pid == before["tiny/0"].pid
        assert (await fleet.ask())["model"] == "tiny"


async def test_ctrl_c_lets_streams_finish_and_leaves_no_process(tmp_path: Path) -> None:
    async with up(tmp_path, "--speed", "1", "--decode-us-per-seq", "20000", "--step-base-us", "0") as fleet:
        await fleet.await_ready("tiny/0", "tiny/1")
        engines = fleet.engines_of_it()
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "stream": True}
        async with fleet.http.stream("POST", CHAT, json=body) as reply:
            lines = reply.aiter_lines()
            first = await anext(lines)
            fleet.interrupt()
            rest = [line async for line in lines]
        assert first.startswith("data: {")
        assert [line for line in rest if line][-1] == "data: [DONE]"
        assert await fleet.ended() == 0
        await until("the engines to be gone", lambda: gone(engines))


async def test_engines_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    async with up(tmp_path) as fleet:
        await fleet.await_ready("tiny/0", "tiny/1")
        engines = fleet.engines_of_it()
        psutil.Process(fleet.pid).kill()
        assert await fleet.ended() == -signal.SIGKILL
        await until("the engines to be gone", lambda: gone(engines))


async def test_it_is_asked_and_changed_from_another_terminal(tmp_path: Path) -> None:
    async with up(tmp_path) as fleet:
        status = await told("status", to=fleet)
        assert (status["ready"], status["wanted"], status["problems"]) == (2, 2, [])
        assert [node["node_id"] for node in status["nodes"]] == ["local"]
        refused = await nebula("scale", "tiny", "3", "--url", fleet.url)
        assert refused.returncode == 3
        assert b"stays as it is: there is no room for 3 replicas" in refused.stdout
        await told("scale", "tiny", "1", to=fleet)
        await fleet.await_ready("tiny/0")
        await until("one engine", lambda: set(fleet.engines_of_it()) == {"tiny/0"})
        await told("unload", "tiny", to=fleet)
        await fleet.await_ready()
        await until("no engine", lambda: not fleet.engines_of_it())

        async def is_empty() -> bool:
            return await fleet.replicas() == []

        await until("nothing to be left of it", is_empty)


async def test_a_drained_replica_is_replaced_where_there_is_room(tmp_path: Path) -> None:
    async with up(tmp_path, "--gpus", "fake:3x80GiB") as fleet:
        done = await told("drain", "tiny", "0", to=fleet)
        assert done["text"].startswith("tiny/0 gets no new requests")
        await fleet.await_ready("tiny/1", "tiny/2")
        await until("the drained engine to end", lambda: set(fleet.engines_of_it()) == {"tiny/1", "tiny/2"})

        async def is_rid_of_it() -> bool:
            return [row["replica_id"] for row in await fleet.replicas()] == [1, 2]

        await until("the plan to be rid of it", is_rid_of_it)


async def test_flags_of_simulated_engines_reach_each(tmp_path: Path) -> None:
    async with up(tmp_path, "--max-num-queued-reqs", "0", "--max-model-len", "123") as fleet:
        words = [process.cmdline() for process in fleet.engines_of_it().values()]
        assert len(words) == 2
        for command in words:
            assert command[command.index("--max-num-queued-reqs") + 1] == "0"
        assert {command[command.index("--seed") + 1] for command in words} == {"0", "1"}
        cards = (await fleet.http.get("/v1/models")).json()["data"]
        assert [card["max_model_len"] for card in cards if card["id"] == "tiny"] == [123]


async def test_models_of_files_are_placed_on_the_machines_gpus(tmp_path: Path) -> None:
    files = []
    for name in ("qwen", "llama"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"model: org/{name}-7B\nmax-model-len: 4096\ntensor-parallel-size: 1\n")
        files += ["--engine-config-path", str(file)]
    async with up(tmp_path, *files, "--engine-type", "sim", "--gpus", "fake:2x24GiB") as fleet:
        await fleet.await_ready("qwen/0", "llama/0")
        for name, model in (("llama", "org/llama-7B"), ("qwen", "org/qwen-7B"), ("org/qwen-7B", "org/qwen-7B")):
            assert (await fleet.ask(model=name))["model"] == model
        assert sorted(tuple(row["gpus"]) for row in await fleet.replicas()) == [(0,), (1,)]


async def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "big.yaml"
    file.write_text("model: org/big-70B\n")
    flags = ("--gpus", "fake:1x24GiB", "--state-dir", str(tmp_path / "state"), "--listen", f"127.0.0.1:{free_port()}")
    ran = await nebula("up", "--engine-config-path", str(file), *flags)
    assert ran.returncode == 3, ran.stderr
    assert b"replica 0 has no place" in ran.stdout
    assert b"curl" not in ran.stdout
