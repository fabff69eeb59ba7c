"""The control plane: requests in, results out, instances that come and go."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from nebula_router.control_plane.completion import encoded
from nebula_router.control_plane.dispatcher import Dispatcher
from nebula_router.control_plane.engines import Engines
from nebula_router.control_plane.errors import QueueFullError, StoppedError
from nebula_router.control_plane.fleet import Fleet
from nebula_router.control_plane.limits import limits_of
from nebula_router.control_plane.metrics import WINDOW, Metrics, PerformanceMetrics
from nebula_router.control_plane.phases import PDSeparationConfig
from nebula_router.control_plane.policies import Policy, policy_of
from nebula_router.control_plane.routing import Kv, strategy_of
from nebula_router.control_plane.scheduler import Scheduler
from nebula_router.control_plane.ticket import Tickets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nebula_router.control_plane.decision import SchedulingDecision
    from nebula_router.control_plane.instance import ExecutionInstance
    from nebula_router.control_plane.request import RequestMetadata, RequestResult, RequestStatus

_LOG: Final = logging.getLogger(__name__)


class ControlPlaneManager:
    """Serves requests by a scheduling policy and a routing strategy on the instances that are registered.

    # Example
    ```python
    cp = ControlPlaneManager()
    cp.register_instance(ExecutionInstance("a", "localhost", 8000, "meta-llama/Llama-2-7b"))
    await cp.start()
    await cp.submit_request(RequestMetadata("1", prompt="Tell me about artificial intelligence"))
    print((await cp.result("1")).text)
    await cp.stop()
    ```
    """

    def __init__(
        self,
        scheduling_policy: str | Policy = "adaptive",
        routing_strategy: str = "load_balanced",
        *,
        enable_auto_scaling: bool = False,
        enable_monitoring: bool = True,
        enable_pd_separation: bool = True,
        pd_config: PDSeparationConfig | None = None,
        **limits: float,
    ) -> None:
        """Take a policy and a strategy; `limits` are the fields of `nebula_router.control_plane.limits.Limits`.

        Without monitoring, requests are counted and no latencies are kept. Without P/D separation, the instances' types
        do not matter.

        Raises:
            ValueError: a name that is not known, a limit out of its bounds, or auto scaling, which takes a fleet
                whose engines can be started.

        """
        if enable_auto_scaling:
            raise ValueError("enable_auto_scaling: the control plane starts no engines; register those that there are")
        self._limits = limits_of(limits)
        self._engines = Engines(self._limits, follows_events=routing_strategy == Kv.name)
        strategy = strategy_of(routing_strategy, self._engines.prices)
        pd = (pd_config or PDSeparationConfig()) if enable_pd_separation else None
        self._scheduler = Scheduler(policy_of(scheduling_policy), strategy, pd)
        self._fleet = Fleet(self._limits.consecutive_failures_threshold)
        self._tickets = Tickets(self._limits.results_kept)
        self._metrics = Metrics(time.monotonic(), window=WINDOW if enable_monitoring else 0)
        self._dispatcher = Dispatcher(
            self._fleet,
            self._scheduler,
            self._engines,
            self._limits,
            self._tickets,
            self._metrics,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._lifecycle = asyncio.Lock()
        self._stopped = False

    async def start(self) -> None:
        """Begin to serve; does nothing if it has begun. What was submitted before is served now."""
        async with self._lifecycle:
            if self._tasks:
                return
            self._stopped = False
            self._engines.start(self._fleet.instances)
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(run) for run in (self._dispatcher.monitor.run(), self._dispatcher.run())]
            for task in self._tasks:
                task.add_done_callback(_tell_of_death)

    async def stop(self) -> None:
        """End within `stop_timeout`: requests that wait are cancelled, running ones may finish until then.

        Does nothing if it has ended. Results that are kept can still be asked for.
        """
        async with self._lifecycle:
            self._stopped = True
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await self._dispatcher.close(self._limits.stop_timeout)
            finally:
                self._engines.stop()

    def register_instance(self, instance: ExecutionInstance) -> None:
        """Add an instance, before or after the start. It gets requests once a probe has found its engine well.

        Raises:
            ValueError: its id or its address is taken, or is none.

        """
        self._fleet.add(instance)
        self._fleet_changed()

    def unregister_instance(self, instance_id: str) -> bool:
        """Give an instance no new requests; those that it has go on. Return whether it was registered."""
        was_there = self._fleet.remove(instance_id)
        self._fleet_changed()
        return was_there

    async def submit_request(self, request: RequestMetadata) -> str:
        """Queue a request and return its id.

        Raises:
            ValueError: it has neither a prompt nor messages, or both; or what is no JSON.
            DuplicateRequestError: its id is taken.
            QueueFullError: `queue_limit` requests wait.
            StoppedError: the control plane has stopped.

        """
        if self._stopped:
            raise StoppedError(f"request {request.request_id}: the control plane has stopped")
        if (request.prompt is None) == (request.messages is None):
            raise ValueError(f"request {request.request_id}: needs either a prompt or messages")
        try:
            encoded(request, request.model_name or "")
        except TypeError as error:
            raise ValueError(f"request {request.request_id}: cannot be written as JSON: {error}") from None
        if len(self._dispatcher.waiting) >= self._limits.queue_limit:
            limit = f"queue_limit={self._limits.queue_limit}"
            raise QueueFullError(f"request {request.request_id}: as many requests wait as may ({limit})")
        ticket = self._tickets.add(request)
        if request.arrival_time is None:
            request.arrival_time = time.monotonic()
        self._metrics.submitted += 1
        self._dispatcher.queue(ticket)
        return request.request_id

    async def result(self, request_id: str) -> RequestResult:
        """Return what became of a request, once it is over, however it went.

        Raises:
            UnknownRequestError: there is none of that id, or it is no longer kept.

        """
        return await self._tickets.known(request_id).result()

    def stream(self, request_id: str) -> AsyncIterator[str]:
        """Return a request's text as it comes, from its beginning; iterating raises `RequestFailedError` if it fails.

        Raises:
            UnknownRequestError: there is none of that id, or it is no longer kept.

        """
        return self._tickets.known(request_id).stream()

    async def get_request_status(self, request_id: str) -> RequestStatus | None:
        """Return how far a request is; `None` for one that is not known."""
        ticket = self._tickets.find(request_id)
        return ticket.status if ticket else None

    def get_decision(self, request_id: str) -> SchedulingDecision | None:
        """Return where a request was sent last, and why; `None` for one that was not, or is not known."""
        ticket = self._tickets.find(request_id)
        return ticket.decision if ticket else None

    async def cancel_request(self, request_id: str) -> bool:
        """End a request that waits or runs, its engine's work included; return whether it was cancelled."""
        ticket = self._tickets.find(request_id)
        if ticket is None or ticket.status.is_final:
            return False
        return await self._dispatcher.cancel(ticket)

    def update_policy(self, policy: str | Policy) -> None:
        """Schedule by another policy from now on.

        Raises:
            ValueError: no policy has the name.

        """
        self._scheduler.policy = policy_of(policy)
        self._dispatcher.wake()

    def get_instances(self) -> list[ExecutionInstance]:
        """Return the registered instances."""
        return self._fleet.instances

    def get_instance_metrics(self, instance_id: str) -> dict[str, Any] | None:
        """Return an instance's health, load and counts; `None` for one that is not registered."""
        member = self._fleet.find(instance_id)
        return member.metrics() if member else None

    def get_all_instance_metrics(self) -> dict[str, dict[str, Any]]:
        """Return the same of every instance, by id."""
        return {member.instance.instance_id: member.metrics() for member in self._fleet.members}

    def get_metrics(self) -> PerformanceMetrics:
        """Return the control plane in figures."""
        active, queued = len(self._dispatcher.running), len(self._dispatcher.waiting)
        return self._metrics.snapshot(self._fleet.instances, time.monotonic(), active=active, queued=queued)

    def get_scheduling_metrics(self) -> dict[str, Any]:
        """Return how requests were placed."""
        placed = sum(self._dispatcher.decisions.values())
        return {
            "scheduling_policy": self._scheduler.policy.name,
            "routing_strategy": self._scheduler.strategy.name,
            "decisions": placed,
            "decisions_by_policy": dict(self._dispatcher.decisions),
            "requeued_requests": self._dispatcher.requeued,
            "avg_queue_wait_ms": self._dispatcher.waited_ms / placed if placed else 0.0,
            "slo_violations": self._metrics.slo_violations,
            "slo_compliance_rate": self._metrics.slo_compliance_rate,
        }

    def get_status(self) -> dict[str, Any]:
        """Return the control plane's state at a glance."""
        instances = self._fleet.instances
        return {
            "running": bool(self._tasks),
            "scheduling_policy": self._scheduler.policy.name,
            "routing_strategy": self._scheduler.strategy.name,
            "pending_requests": len(self._dispatcher.waiting),
            "running_requests": len(self._dispatcher.running),
            "registered_instances": len(instances),
            "available_instances": sum(instance.can_accept_request for instance in instances),
            "metrics": self.get_metrics(),
        }

    def _fleet_changed(self) -> None:
        self._engines.follow(self._fleet.instances)
        self._dispatcher.monitor.came()
        self._dispatcher.fleet_changed()


def _tell_of_death(task: asyncio.Task[None]) -> None:
    """No task of the control plane ends by itself; if one does, the log says why."""
    if not task.cancelled() and task.exception() is not None:
        _LOG.critical("the control plane's own task died", exc_info=task.exception())
