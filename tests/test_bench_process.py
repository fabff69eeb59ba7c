"""Process trees: what /proc says, and that nothing stays behind."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from nebula_router.bench import machine, process
from nebula_router.bench.error import BenchError

# /proc/PID/stat of a Python process on Linux 6.18, as captured.
PYTHON = (
    "15857 (python) R 15647 15647 5572 0 -1 4194560 7777 7460 4 5 20 6 64 359 20 0 1 0 239107 52781056 10768 "
    "18446744073709551615 93872552685568 93872552685909 140731251899072 0 0 0 0 16781312 2 0 0 0 17 0 0 0 0 0 0 "
    "93872552697264 93872552697880 93873259769856 140731251907134 140731251907187 140731251907187 140731251908565 0\n"
)
# The same after it had named itself `a) (b`.
ODD_NAME = PYTHON.replace("(python)", "(a) (b)")
# The first lines of /proc/stat.
BUSY = "cpu  76925 0 28341 363747 1912 0 4393 184 0 0\ncpu0 27094 0 10972 196999 489 0 2191 90 0 0\n"


@pytest.mark.parametrize("text", [PYTHON, ODD_NAME])
def test_a_stat_line_is_read(text: str) -> None:
    assert process.parse_stat(text) == process.Stat(
        pid=15857,
        state="R",
        parent=15647,
        session=5572,
        ticks=20 + 6,
        waited_ticks=64 + 359,
        start=239107,
        pages=10768,
    )


def test_busy_time_leaves_out_idle_and_waiting() -> None:
    assert machine.parse_busy(BUSY) == 76925 + 28341 + 4393 + 184


def test_our_own_tree_has_memory_and_time() -> None:
    usage = process.usage(os.getpid())
    assert usage.processes >= 1
    assert usage.rss_mb > 1
    assert usage.cpu_s > 0


def test_cpu_time_is_finer_than_a_clock_tick() -> None:
    before = process.usage(os.getpid()).cpu_s
    while process.usage(os.getpid()).cpu_s < before + 0.002:
        pass
    assert process.usage(os.getpid()).cpu_s < before + 0.01


def test_of_a_process_that_ended_the_last_ticks_count() -> None:
    with process.started("short", ["true"]) as child:
        child.popen.wait(10)
    assert process.cpu_s(replace(process.parse_stat(PYTHON), pid=child.pid)) == (20 + 6 + 64 + 359) / 100


def test_a_tree_holds_children_and_is_gone_after_stop() -> None:
    with process.started("shell", ["sh", "-c", "sleep 600 & echo up; wait"]) as child:
        child.await_ready(lambda: None if child.usage().processes == 2 else "one process", 10)
        members = process.tree(child.pid)
        assert [stat.parent for stat in members] == [os.getpid(), child.pid]
    assert process.tree(child.pid) == []
    assert child.popen.returncode == -signal.SIGTERM


def test_an_orphan_is_found_and_stopped() -> None:
    with process.started("shell", ["sh", "-c", "sleep 600 & exit 0"]) as child:
        child.popen.wait(10)
        assert len(process.tree(child.pid)) == 1
    assert process.tree(child.pid) == []


def test_a_server_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "STOP_S", 0.5)
    log = tmp_path / "log"
    with process.started("stubborn", ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 600; done"], log) as child:
        child.await_ready(lambda: None if log.read_text() == "up\n" else "not up", 10)
    assert process.tree(child.pid) == []
    assert child.popen.returncode == -signal.SIGKILL


def test_a_server_that_ends_before_it_is_ready_says_how_to_go_on() -> None:
    with (
        process.started("broken", ["sh", "-c", "exit 7"]) as child,
        pytest.raises(BenchError, match=r"broken ended with code 7; see why with --logs DIR, .*: sh -c 'exit 7'"),
    ):
        child.await_ready(lambda: "refused", 10)


def test_a_server_that_never_gets_ready_is_given_up() -> None:
    with (
        process.started("mute", ["sleep", "600"]) as child,
        pytest.raises(BenchError, match=r"mute was not ready after 0 s \(refused\)"),
    ):
        child.await_ready(lambda: "refused", 0)


def test_the_machine_describes_itself() -> None:
    here = machine.describe()
    assert here.cores >= 1
    assert here.memory_gb > 0
    assert all(here.lines())


def test_a_server_that_ends_under_load_is_noticed() -> None:
    with process.started("server", ["sleep", "600"]) as child:
        child.check_alive()
        child.popen.kill()
        child.popen.wait(10)
        with pytest.raises(BenchError, match="server ended with code -9"):
            child.check_alive()
