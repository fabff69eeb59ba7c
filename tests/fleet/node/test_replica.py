from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nebula_router.fleet.engine.replica import Limits, Phase, Replica
from nebula_router.fleet.records import EndpointStatus

LIMITS = Limits(ready_timeout_s=10, health_failures=5, backoff_s=1, backoff_max_s=8, cap=4)
NEW = Replica(LIMITS)


def ready(now: float = 0) -> Replica:
    return NEW.started(now).looked(None, now)


def test_a_start_that_is_healthy_is_ready() -> None:
    assert (NEW.phase, NEW.status) == (Phase.WAITING, EndpointStatus.STARTING)
    starting = NEW.started(100)
    assert (starting.phase, starting.due) == (Phase.STARTING, 110)
    assert starting.looked("refused", 109) == starting
    assert starting.looked(None, 109).status is EndpointStatus.READY


def test_a_start_that_takes_too_long_must_end() -> None:
    late = NEW.started(100).looked("refused", 110)
    assert late.phase is Phase.ENDING
    assert late.why == "not healthy within 10 s of its start: refused"
    assert late.ended(late.why, 111).failed == 1


def test_missed_looks_in_a_row_make_it_unhealthy_then_end_it() -> None:
    replica = ready()
    statuses = []
    for now in range(1, 6):
        replica = replica.looked("no answer", now)
        statuses.append(replica.phase)
    assert statuses == [Phase.READY, Phase.READY, Phase.UNHEALTHY, Phase.UNHEALTHY, Phase.ENDING]
    assert replica.why == "not healthy 5 times in a row: no answer"
    assert replica.ended(replica.why, 6).failed == 0  # the start was good


def test_one_healthy_look_forgets_the_missed_ones() -> None:
    replica = ready()
    for now in range(4):
        replica = replica.looked("no answer", now)
    assert replica.status is EndpointStatus.UNHEALTHY
    well = replica.looked(None, 5)
    assert (well.phase, well.missed, well.why) == (Phase.READY, 0, None)


def test_the_wait_doubles_up_to_its_most() -> None:
    replica = replace(NEW, limits=replace(LIMITS, cap=0))
    waits = []
    for _ in range(6):
        replica = replica.started(0).ended("exit status 1", 0)
        waits.append(replica.due)
    assert waits == [1, 2, 4, 8, 8, 8]
    assert replica.phase is Phase.WAITING


def test_it_is_given_up_after_so_many_failed_starts_in_a_row() -> None:
    replica = NEW
    for _ in range(3):
        replica = replica.started(0).ended("exit status 1", 0)
    again = replica.started(0).looked(None, 0).ended("exit status 1", 0)
    assert (again.phase, again.failed) == (Phase.WAITING, 0)  # one of them was good
    replica = replica.ended("no such program", 0)
    assert (replica.phase, replica.status) == (Phase.GIVEN_UP, EndpointStatus.UNHEALTHY)
    assert replica.why == "no such program"


def test_an_end_after_a_long_time_is_the_first_one_again() -> None:
    replica = NEW.started(0).ended("x", 0).started(0).ended("x", 0).started(10).looked(None, 10)
    assert replica.looked(None, 17).ended("x", 17).due == 17 + 4
    assert replica.looked(None, 18).ended("x", 18).due == 18 + 1


def test_retired_it_drains_if_it_may_have_requests() -> None:
    draining = ready().retired()
    assert (draining.phase, draining.status) == (Phase.DRAINING, EndpointStatus.DRAINING)
    assert draining.wanted_again().phase is Phase.READY
    stopping = draining.drained()
    assert stopping.phase is Phase.STOPPING
    assert stopping.ended("exit status 0", 0).phase is Phase.STOPPED
    assert NEW.started(0).retired().phase is Phase.STOPPING
    assert NEW.retired().phase is Phase.STOPPED
    assert NEW.retired().status is None


class Lives(RuleBasedStateMachine):
    """Whatever happens in whatever order, what is said of a replica fits what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.replica = NEW
        self.was_retired = False

    @initialize(failures=st.integers(1, 6), cap=st.integers(0, 4))
    def limits(self, failures: int, cap: int) -> None:
        self.replica = Replica(replace(LIMITS, health_failures=failures, cap=cap))

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.replica.phase is Phase.WAITING)
    @rule(can=st.booleans())
    def start(self, can: bool) -> None:  # noqa: FBT001
        self.replica = self.replica.started(self.now) if can else self.replica.ended("cannot", self.now)

    @rule(why=st.none() | st.just("no answer"))
    def look(self, why: str | None) -> None:
        self.replica = self.replica.looked(why, self.now)

    @precondition(lambda self: self.replica.has_process)
    @rule()
    def end(self) -> None:
        self.replica = self.replica.ended("killed", self.now)

    @rule()
    def retire(self) -> None:
        self.was_retired = True
        self.replica = self.replica.retired()

    @rule()
    def drain(self) -> None:
        self.replica = self.replica.drained()

    @precondition(lambda self: self.replica.phase is Phase.DRAINING)
    @rule()
    def want_again(self) -> None:
        self.was_retired = False
        self.replica = self.replica.wanted_again()

    @invariant()
    def it_is_what_it_says(self) -> None:
        own = self.replica
        assert own.is_retired == self.was_retired
        assert (own.status is None) == (own.phase is Phase.STOPPED)
        assert own.missed <= own.limits.health_failures
        assert not own.limits.cap or own.failed <= own.limits.cap
        if own.phase is Phase.READY:
            assert own.missed < own.limits.unhealthy_at
        if own.phase is Phase.WAITING:
            assert own.due - self.now <= own.limits.backoff_max_s
        if own.phase in {Phase.UNHEALTHY, Phase.ENDING, Phase.GIVEN_UP}:
            assert own.why


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
