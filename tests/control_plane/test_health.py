"""The health of one instance, step by step."""

from nebula_router.control_plane import ExecutionInstance
from nebula_router.control_plane.health import InstanceHealth


def health() -> InstanceHealth:
    return InstanceHealth(ExecutionInstance("a", "h", 1, "m"), threshold=3)


def test_three_failed_probes_in_a_row_remove_an_instance_and_a_healthy_probe_brings_it_back() -> None:
    found = health()
    assert [found.failed() for _ in range(4)] == [False, False, True, False]
    assert (found.instance.is_available, found.instance.is_healthy) == (False, False)
    assert found.recovered()
    assert found.instance.can_accept_request
    assert [found.failed() for _ in range(3)] == [False, False, True], "the count begins anew"


def test_one_failure_holds_requests_back_and_removes_nothing() -> None:
    found = health()
    found.failed()
    assert (found.instance.is_available, found.instance.can_accept_request) == (True, False)
    assert found.recovered()
    assert not found.recovered(), "nothing changed"


def test_an_instance_that_rests_is_not_nearer_to_its_removal() -> None:
    found = health()
    for _ in range(5):
        found.rest()
    assert not found.instance.can_accept_request
    assert (found.failures, found.instance.is_available) == (0, True)


def test_an_instance_that_somebody_else_took_away_stays_away() -> None:
    found = health()
    found.instance.is_available = False
    found.recovered()
    assert not found.instance.is_available
