import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.e2e.process import free_port

from nebula_router.fleet.engine.port_lock import FILE, PortLock
from nebula_router.fleet.engine.ports import PortError, PortNeeds, Ports, PortTable, is_free


def table(count: int = 8) -> PortTable:
    return PortTable(min(free_port(), 60_000), count, "127.0.0.1")


@pytest.fixture
def own() -> Iterator[PortTable]:
    made = table()
    yield made
    made.close()


def listening(port: int) -> socket.socket:
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", port))
    taken.listen(1)
    return taken


def test_engines_take_the_first_free_ports(own: PortTable) -> None:
    expected = [port for port in own.engines if is_free(port, "127.0.0.1")][:3]
    assert [own.take(name, PortNeeds()).engine for name in "abc"] == expected
    own.release("b")
    assert own.take("d", PortNeeds()).engine == expected[1]


def test_a_wish_is_heard_where_it_can_be(own: PortTable) -> None:
    wish = free_port()
    assert own.take("a", PortNeeds(preferred=wish)).engine == wish
    assert own.take("b", PortNeeds(preferred=wish)).engine in own.engines
    assert own.take("a", PortNeeds(preferred=wish)).engine == wish  # its own is not in its way


def test_a_port_that_somebody_listens_on_is_passed_over(own: PortTable) -> None:
    first, second = [port for port in own.engines if is_free(port, "127.0.0.1")][:2]
    with listening(first):
        assert not is_free(first, "127.0.0.1")
        assert not is_free(first)
        assert own.take("a", PortNeeds(preferred=first)).engine == second


def test_connections_of_a_server_that_is_gone_do_not_hold_a_port() -> None:
    port = free_port()
    with listening(port) as server, socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = server.accept()
        accepted.close()  # the server's end waits in TIME_WAIT
        assert client.recv(1) == b""
    assert is_free(port, "127.0.0.1")


def test_what_goes_beside_an_engine_has_runs_of_its_own(own: PortTable) -> None:
    ports = own.take("a", PortNeeds(events=True, side=True, ranks=3))
    assert len(ports.all) == 1 + 3 * 3
    assert {ports.events, ports.replay, ports.side} <= set(own.others)
    assert own.taken == ports.all
    assert Ports(**ports.document()) == ports  # type: ignore[arg-type]


def test_no_port_left_says_which_setting_gives_more() -> None:
    own = table(count=1)
    own.claim("other", Ports(own.engines.start))
    with pytest.raises(PortError, match=r"node\.port_count"):
        own.take("a", PortNeeds())
    own.release("other")
    with pytest.raises(PortError, match="runs of 4"):
        own.take("a", PortNeeds(events=True, ranks=4))
    assert own.taken == frozenset()
    own.close()


def test_nodes_on_one_machine_keep_their_ports_from_each_other(own: PortTable) -> None:
    other = PortTable(own.engines.start, len(own.engines), "127.0.0.1")
    needs = PortNeeds(events=True, ranks=2)
    mine, theirs = own.take("a", needs), other.take("a", needs)
    assert mine.all.isdisjoint(theirs.all)
    own.release("a")
    assert other.take("b", PortNeeds(preferred=mine.engine)).engine == mine.engine
    assert own.take("b", PortNeeds(preferred=theirs.engine)).engine != theirs.engine
    other.close()
    other.close()
    assert own.take("b", PortNeeds(preferred=theirs.engine)).engine == theirs.engine


def test_without_a_file_for_them_ports_are_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere")
    lock = PortLock(tmp_path)
    assert "may try for the same ports" in caplog.text
    assert lock.take(1)
    lock.keep_only([])
    lock.close()
    assert not (tmp_path / "elsewhere").exists()


class Tables(RuleBasedStateMachine):
    """Whatever is asked of it, no port has two owners."""

    def __init__(self) -> None:
        super().__init__()
        self.table = table(count=6)
        self.had: dict[str, Ports] = {}

    @rule(
        owner=st.sampled_from("abcdef"),
        wish=st.none() | st.integers(0, 5),
        events=st.booleans(),
        side=st.booleans(),
        ranks=st.integers(1, 3),
    )
    def take(self, owner: str, wish: int | None, events: bool, side: bool, ranks: int) -> None:  # noqa: FBT001
        preferred = None if wish is None else self.table.engines.start + wish
        try:
            self.had[owner] = self.table.take(owner, PortNeeds(preferred, events, side, ranks))
        except PortError:
            self.had.pop(owner, None)

    @rule(owner=st.sampled_from("abcdef"))
    def release(self, owner: str) -> None:
        self.table.release(owner)
        self.had.pop(owner, None)

    def teardown(self) -> None:
        self.table.close()

    @invariant()
    def each_has_its_own(self) -> None:
        every = [port for ports in self.had.values() for port in ports.all]
        assert len(every) == len(set(every))
        assert self.table.taken == set(every)
        assert all(ports.engine in self.table.engines for ports in self.had.values())


TestTables = Tables.TestCase
TestTables.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@settings(deadline=None)
@given(st.integers(1, 65535), st.integers(1, 10_000))
def test_ranges_end_with_the_last_port(first: int, count: int) -> None:
    own = PortTable(first, count)
    assert own.engines.stop - 1 <= 65535
    assert set(own.engines).isdisjoint(own.others)
    own.close()
