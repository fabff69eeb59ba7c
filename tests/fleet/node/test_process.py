import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from tests.fleet.node.machine import WITHIN_S, is_alive, kill, until

from nebula_router.fleet.engine.engine_log import tail, turn_over
from nebula_router.fleet.engine.process import Process, ProcessId, boot

pytestmark = pytest.mark.anyio


def start(folder: Path, script: str) -> Process:
    return Process.start(("sh", "-c", script), {"PATH": os.environ["PATH"]}, folder / "log")


async def test_it_has_a_session_of_its_own_and_writes_to_its_log(tmp_path: Path) -> None:
    process = start(tmp_path, "echo out; echo err >&2; exit 7")
    assert await process.wait(WITHIN_S) == "exit status 7"
    assert (tmp_path / "log").read_text() == "out\nerr\n"
    assert await process.finish() == "exit status 7"
    again = start(tmp_path, "echo more; kill -TERM $$")
    assert await again.wait(WITHIN_S) == "killed by SIGTERM"
    assert (tmp_path / "log").read_text() == "out\nerr\nmore\n"
    assert await again.finish() == "killed by SIGTERM"
    assert again.id.stat() is None  # it was waited for


async def test_signals_reach_it_as_if_nobody_had_changed_them(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process = start(tmp_path, "grep -E 'SigBlk|SigIgn' /proc/self/status")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGINT, before)
    await process.wait(WITHIN_S)
    masks = {line.split()[0]: int(line.split()[1], 16) for line in (tmp_path / "log").read_text().splitlines()}
    assert masks["SigBlk:"] == 0
    assert not masks["SigIgn:"] & 1 << (signal.SIGINT - 1)
    await process.finish()


async def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Process.start((str(tmp_path / "none"),), {}, tmp_path / "log")


async def test_it_gets_time_to_end_by_itself(tmp_path: Path) -> None:
    process = start(tmp_path, "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done")
    await until("it to be up", lambda: "up" in (tmp_path / "log").read_text())
    assert await process.stop(WITHIN_S) == "exit status 3"
    assert (tmp_path / "log").read_text().endswith("bye\n")


@pytest.mark.parametrize("hurries", [False, True])
async def test_what_does_not_end_by_itself_is_killed_with_all_it_started(tmp_path: Path, hurries: bool) -> None:  # noqa: FBT001
    script = "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & echo $!; while :; do sleep 1; done"
    process = start(tmp_path, script)
    child = int(await until("its child", lambda: (tmp_path / "log").read_text().strip()))
    hurry = asyncio.Event()
    if hurries:
        hurry.set()
    assert await process.stop(WITHIN_S if hurries else 0.1, hurry) == "killed by SIGKILL"
    assert not is_alive(process.id.pid)
    assert not is_alive(child)


async def test_what_it_leaves_behind_goes_with_it(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep 600 & echo $!; kill -KILL $$")
    assert await process.wait(WITHIN_S) == "killed by SIGKILL"
    child = int((tmp_path / "log").read_text())
    assert is_alive(child)
    assert await process.finish() == "killed by SIGKILL"
    assert not is_alive(child)


async def test_another_process_takes_it_over(tmp_path: Path) -> None:
    script = f"""
import os, sys
from pathlib import Path
from nebula_router.fleet.engine.process import Process
process = Process.start(("sleep", "600"), dict(os.environ), Path({str(tmp_path / "log")!r}))
print(process.id.pid, process.id.start, process.id.boot)
"""
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await starter.communicate()
    pid, began, booted = out.decode().split()
    found = Process(ProcessId(int(pid), int(began), booted))
    assert found.id.is_alive
    assert found.ended() is None
    assert await found.stop(WITHIN_S) == "ended"
    assert not is_alive(int(pid))


async def test_a_number_that_is_anothers_now_is_left_alone(tmp_path: Path) -> None:
    process = start(tmp_path, "exec sleep 600")
    own = process.id
    for other in (ProcessId(own.pid, own.start + 1, own.boot), ProcessId(own.pid, own.start, "another boot")):
        assert not other.is_alive
        await Process(other).finish()
        assert process.ended() is None
    assert own.boot == boot()
    kill(own.pid)
    await process.finish()


async def test_it_is_seen_who_listens_on_a_port(tmp_path: Path) -> None:
    serve = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    command = f'{sys.executable} -c "{serve}; time.sleep(600)" & wait'
    first, second = start(tmp_path, command), None
    try:
        port = int(await until("its port", lambda: (tmp_path / "log").read_text().strip()))
        second = start(tmp_path, "sleep 600")
        assert first.listens(port) is True
        assert second.listens(port) is False
        assert first.listens(1) is None
    finally:
        await first.finish()
        if second is not None:
            await second.finish()
    assert first.listens(port) is None


def test_a_log_is_turned_over_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    assert not turn_over(log, 10, 2)
    for text in ("first text", "second text", "third text"):
        with log.open("a") as file:
            file.write(f"{text}\n")
            file.flush()
            assert turn_over(log, 10, 2)
            file.write("x")  # whoever holds it open writes on at its beginning
        assert log.read_text() == "x"
    assert (tmp_path / "engine.log.1").read_text() == "xthird text\n"
    assert (tmp_path / "engine.log.2").read_text() == "xsecond text\n"
    assert len(list(tmp_path.iterdir())) == 3
    log.write_text("a longer text")
    assert turn_over(log, 10, 0)
    assert log.read_text() == ""


def test_the_last_lines_are_those_that_say_something(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    assert tail(log, 3) == []
    log.write_bytes(b"old\n" + b"\x1b[31mred\x1b[0m\n\n\xff\ntwo  \nthree\n")
    assert tail(log, 3) == ["\ufffd", "two", "three"]
    assert tail(log, 9, skip=4) == ["red", "\ufffd", "two", "three"]
    assert tail(log, 1, skip=10_000) == ["three"]
