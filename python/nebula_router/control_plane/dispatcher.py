"""What happens to requests between submission and result: they wait, are placed, run, and are queued again or end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

from nebula_router.control_plane.bell import Bell
from nebula_router.control_plane.decision import cost_per_second
from nebula_router.control_plane.engines import AttemptError, InstanceError
from nebula_router.control_plane.monitor import Monitor
from nebula_router.control_plane.request import RequestStatus

if TYPE_CHECKING:
    from nebula_router.control_plane.completion import Piece
    from nebula_router.control_plane.engines import Engines
    from nebula_router.control_plane.fleet import Fleet, Member
    from nebula_router.control_plane.instance import ExecutionInstance
    from nebula_router.control_plane.limits import Limits
    from nebula_router.control_plane.metrics import Metrics
    from nebula_router.control_plane.scheduler import Placement, Scheduler
    from nebula_router.control_plane.ticket import Ticket, Tickets

_LOG: Final = logging.getLogger(__name__)


class Dispatcher:
    """Owns every ticket from the queue to its end.

    A request runs in a task of its own; what follows from its end happens in the task's callback, which is called
    however early the task was cancelled.
    """

    def __init__(
        self,
        fleet: Fleet,
        scheduler: Scheduler,
        engines: Engines,
        limits: Limits,
        tickets: Tickets,
        metrics: Metrics,
    ) -> None:
        self._fleet = fleet
        self._scheduler = scheduler
        self._engines = engines
        self._tickets = tickets
        self._metrics = metrics
        self._limits = limits
        self._bell = Bell()
        self._takes_again = True
        self._since = 0.0
        self._expires_at = 0.0
        """When a request may have waited too long; nothing has before."""
        self.waiting: dict[str, Ticket] = {}
        self.running: dict[str, Ticket] = {}
        self.decisions: Counter[str] = Counter()
        """How many decisions each policy made."""
        self.requeued = 0
        self.waited_ms = 0.0
        """Time in the queue of all requests that were placed."""
        self.monitor = Monitor(fleet, engines, limits.health_check_interval, self._evacuate, self.wake)

    def wake(self) -> None:
        """Look at the queue: something changed."""
        self._bell.ring()

    def fleet_changed(self) -> None:
        """Look at the queue, and at how long each request may wait: there are other models, perhaps."""
        self._expires_at = 0.0
        self.wake()

    def queue(self, ticket: Ticket) -> None:
        """Let a ticket wait for an instance."""
        now = time.monotonic()
        ticket.queue(now)
        shortest = min(self._limits.queue_timeout, self._limits.model_timeout)
        self._expires_at = min(self._expires_at, now + shortest)
        self.waiting[ticket.request.request_id] = ticket
        self.wake()

    async def run(self) -> None:
        """Place what waits whenever something changes, until cancelled."""
        self._since, self._takes_again = time.monotonic(), True
        while True:
            await self._place_waiting()
            await self._bell.wait(self._expire())

    async def cancel(self, ticket: Ticket) -> bool:
        """End a request that is not over; once it is, and its engine told to stop, return whether this ended it."""
        ticket.is_cancelled = True
        if self.waiting.pop(ticket.request.request_id, None):
            self._finish(ticket, RequestStatus.CANCELLED, "cancelled while it waited")
        elif ticket.task is not None:
            ticket.task.cancel()
        return (await ticket.result()).status is RequestStatus.CANCELLED

    async def close(self, within_s: float) -> None:
        """Cancel what waits, give what runs some time to finish, and cancel the rest."""
        self._takes_again = False
        for ticket in list(self.waiting.values()):
            await self.cancel(ticket)
        tasks = {ticket.task for ticket in self.running.values() if ticket.task}
        if tasks:
            await asyncio.wait(tasks, timeout=within_s)
        for ticket in list(self.running.values()):
            await self.cancel(ticket)

    async def _place_waiting(self) -> None:
        """Place what can be placed, in order; the rest stays where it is.

        # Cost
        Orders the whole queue, O(n log n), but only while some instance takes requests.
        """
        if not self._has_room():
            return
        for ticket in self._ordered():
            if ticket.request.request_id in self.waiting:
                await self._place(ticket)
            if not self._has_room():
                return

    def _is_registered(self, member: Member) -> bool:
        return self._fleet.find(member.instance.instance_id) is member

    def _has_room(self) -> bool:
        return any(instance.can_accept_request for instance in self._fleet.instances)

    def _ordered(self) -> list[Ticket]:
        """What waits, as the policy orders it; what lost its instance comes first."""
        policy, waiting = self._scheduler.policy, self.waiting
        requests = [ticket.request for ticket in waiting.values()]
        try:
            ids = [request.request_id for request in policy.order(requests, time.monotonic())]
        except Exception:  # noqa: BLE001 - a policy may be anybody's
            _LOG.exception("policy %s cannot order; requests go by arrival", policy.name)
            ids = list(waiting)
        tickets = [waiting[name] for name in ids if name in waiting]
        return sorted(tickets, key=lambda ticket: not ticket.attempts)

    async def _place(self, ticket: Ticket) -> None:
        request = ticket.request
        policy = self._scheduler.policy.name
        try:
            placement = await self._scheduler.place(request, self._fleet.members, time.monotonic())
        except Exception as error:  # noqa: BLE001 - a policy may be anybody's
            _LOG.exception("policy %s cannot choose for request %s", policy, request.request_id)
            if self.waiting.pop(request.request_id, None):
                self._finish(ticket, RequestStatus.FAILED, f"the scheduling policy {policy} failed: {error!r}")
            return
        # A price takes a moment: by now the request may be gone, or the instance.
        if placement is None or request.request_id not in self.waiting:
            return
        if self._is_registered(placement.member) and placement.instance.takes(placement.phase):
            self.decisions[policy] += 1
            self._begin(ticket, placement)
        else:
            self.wake()

    def _begin(self, ticket: Ticket, placement: Placement) -> None:
        """Book the instance at once, so that the next decision sees it, and send the request."""
        request = ticket.request
        del self.waiting[request.request_id]
        self.running[request.request_id] = ticket
        placement.instance.book(placement.phase)
        ticket.attempts += 1
        ticket.decision = placement.decision
        ticket.status = RequestStatus.SCHEDULED
        request.schedule_time = time.monotonic()
        self.waited_ms += request.queue_wait_ms or 0.0
        ticket.task = asyncio.get_running_loop().create_task(self._attempt(ticket, placement.instance))
        ticket.task.add_done_callback(partial(self._ended, ticket, placement))

    async def _attempt(self, ticket: Ticket, instance: ExecutionInstance) -> None:
        ticket.status = RequestStatus.RUNNING
        ticket.request.start_time = time.monotonic()

        def take(piece: Piece) -> None:
            ticket.add(piece, time.monotonic())

        await asyncio.wait_for(self._engines.ask(ticket.request, instance, take), self._limits.request_timeout)

    def _ended(self, ticket: Ticket, placement: Placement, task: asyncio.Task[None]) -> None:
        """Return what was booked, note how the instance did, and settle what becomes of the request."""
        member, instance, now = placement.member, placement.instance, time.monotonic()
        del self.running[ticket.request.request_id]
        instance.release(placement.phase)
        took_s = now - (ticket.request.start_time or now)
        self._metrics.spent(cost_per_second(instance) * took_s)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            member.failed += 1
        elif not task.cancelled():
            member.completed += 1
            instance.learn(took_s * 1000, _completion_tokens(ticket), now)
        self._settle(ticket, placement, error, was_cancelled=task.cancelled())
        self.wake()

    def _settle(
        self, ticket: Ticket, placement: Placement, error: BaseException | None, *, was_cancelled: bool
    ) -> None:
        name = placement.instance.instance_id
        if error is None and not was_cancelled:
            self._finish(ticket, RequestStatus.COMPLETED)
        elif ticket.is_cancelled:
            self._finish(ticket, RequestStatus.CANCELLED, "cancelled while it ran")
        elif was_cancelled:
            self._again(ticket, f"instance {name} was removed")
        elif isinstance(error, InstanceError):
            self.monitor.rest(placement.member, str(error))
            self._again(ticket, f"instance {name}: {error}")
        elif isinstance(error, AttemptError):
            self._finish(ticket, RequestStatus.FAILED, f"instance {name}: {error}")
        elif isinstance(error, asyncio.TimeoutError):
            limit = f"request_timeout={self._limits.request_timeout:g}"
            self._finish(ticket, RequestStatus.FAILED, f"instance {name}: no whole reply in time ({limit} s)")
        else:
            _LOG.error("request %s on instance %s", ticket.request.request_id, name, exc_info=error)
            self._finish(ticket, RequestStatus.FAILED, f"instance {name}: {error!r}")

    def _again(self, ticket: Ticket, why: str) -> None:
        """Queue a request again whose instance failed it, unless its reader has some of the reply already."""
        if ticket.is_taken:
            self._finish(ticket, RequestStatus.FAILED, f"{why}; a part of the reply was already read")
        elif ticket.attempts > self._limits.max_retries:
            limit = f"max_retries={self._limits.max_retries}"
            self._finish(ticket, RequestStatus.FAILED, f"{why}; it was sent {ticket.attempts} times ({limit})")
        elif not self._takes_again:
            self._finish(ticket, RequestStatus.FAILED, f"{why}; the control plane is stopping")
        else:
            self.requeued += 1
            self.queue(ticket)

    def _evacuate(self, instance: ExecutionInstance) -> None:
        """Take all requests from an instance that is removed."""
        for ticket in self.running.values():
            if ticket.task and ticket.decision and ticket.decision.target_instance_id == instance.instance_id:
                ticket.task.cancel()

    def _expire(self) -> float | None:
        """Fail what has waited too long; return the time until more may have, `None` if nothing waits.

        # Cost
        O(n), but only when the time has come or the fleet changed.
        """
        now, models, soonest = time.monotonic(), self._fleet.models, float("inf")
        if now < self._expires_at:
            return self._expires_at - now if self.waiting else None
        for request_id, ticket in list(self.waiting.items()):
            model = ticket.request.model_name
            has_model = model in models if model else bool(models)
            limit = self._limits.queue_timeout if has_model else self._limits.model_timeout
            expires_at = max(ticket.request.queue_time or 0.0, self._since) + limit
            if expires_at <= now:
                del self.waiting[request_id]
                self._finish(ticket, RequestStatus.FAILED, _why_it_waited(model, sorted(models), limit, has_model))
            else:
                soonest = min(soonest, expires_at)
        self._expires_at = soonest
        return soonest - now if self.waiting else None

    def _finish(self, ticket: Ticket, status: RequestStatus, error: str | None = None) -> None:
        now = time.monotonic()
        ticket.finish(status, now, error)
        self._metrics.ended(ticket.request, status, now, _completion_tokens(ticket))
        self._tickets.retire(ticket)


def _completion_tokens(ticket: Ticket) -> int:
    return int((ticket.usage or {}).get("completion_tokens") or 0)


def _why_it_waited(model: str | None, models: list[str], limit: float, has_model: bool) -> str:  # noqa: FBT001
    if has_model:
        return f"no instance took it within {limit:g} s (queue_timeout): all are full or not healthy"
    known = f"known models are {', '.join(models)}" if models else "no instance is registered"
    what = f"no instance has the model {model}" if model else "there is no instance"
    return f"{what}, nor did one come within {limit:g} s (model_timeout); {known}"
