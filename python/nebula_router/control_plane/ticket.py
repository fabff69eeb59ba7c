"""A request on its way: its state, the pieces of its reply, and whoever waits for them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from nebula_router.control_plane.errors import DuplicateRequestError, RequestFailedError, UnknownRequestError
from nebula_router.control_plane.request import RequestMetadata, RequestResult, RequestStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nebula_router.control_plane.completion import Piece
    from nebula_router.control_plane.decision import SchedulingDecision


class Ticket:
    """One submitted request, from the queue to its result."""

    def __init__(self, request: RequestMetadata) -> None:
        self.request = request
        self.status = RequestStatus.QUEUED
        self.decision: SchedulingDecision | None = None
        self.attempts = 0
        self.error: str | None = None
        self.task: asyncio.Task[None] | None = None
        """The attempt that is under way."""
        self.is_cancelled = False
        """Whether somebody asked for its end."""
        self.is_taken = False
        """Whether a reader has some of the reply: then no other instance may begin it again."""
        self.usage: dict[str, Any] | None = None
        self._finish_reason: str | None = None
        self._texts: list[str] = []
        self._first_text_at: float | None = None
        self._news = asyncio.Event()
        self._over = asyncio.Event()

    def queue(self, now: float) -> None:
        """Wait for an instance, with nothing of a reply."""
        self.status = RequestStatus.QUEUED
        self.request.queue_time = now
        self.request.schedule_time = self.request.start_time = None
        self.task = None
        self.usage = self._finish_reason = self._first_text_at = None
        self._texts.clear()

    def add(self, piece: Piece, now: float) -> None:
        """Take a piece of the reply."""
        self.usage = piece.usage or self.usage
        self._finish_reason = piece.finish_reason or self._finish_reason
        if piece.text:
            if self._first_text_at is None:
                self._first_text_at = now
            self._texts.append(piece.text)
            self._tell()

    def finish(self, status: RequestStatus, now: float, error: str | None = None) -> None:
        """Be over, and let everybody know."""
        self.status = status
        self.error = error
        self.task = None
        self.request.end_time = now
        self._over.set()
        self._tell()

    async def result(self) -> RequestResult:
        """Return what became of the request, once it is over."""
        await self._over.wait()
        request, arrival, first = self.request, self.request.arrival_time, self._first_text_at
        return RequestResult(
            request_id=request.request_id,
            status=self.status,
            text="".join(self._texts),
            finish_reason=self._finish_reason,
            usage=self.usage,
            instance_id=self.decision.target_instance_id if self.decision else None,
            decision=self.decision,
            attempts=self.attempts,
            error=self.error,
            queue_wait_ms=request.queue_wait_ms,
            time_to_first_token_ms=None if first is None or arrival is None else (first - arrival) * 1000,
            latency_ms=request.latency_ms,
        )

    async def stream(self) -> AsyncIterator[str]:
        """Return the reply's pieces as they come, from its beginning.

        Raises:
            RequestFailedError: the request did not complete.

        """
        at = 0
        while True:
            news = self._news
            while at < len(self._texts):
                self.is_taken = True
                at += 1
                yield self._texts[at - 1]
            if self.status.is_final:
                break
            await news.wait()
        if self.status is not RequestStatus.COMPLETED:
            raise RequestFailedError(f"request {self.request.request_id}: {self.error}")

    def _tell(self) -> None:
        # Readers hold the old event; whoever reads next waits for the new one.
        news, self._news = self._news, asyncio.Event()
        news.set()


class Tickets:
    """All tickets by id: those that are not over, and the latest that are."""

    def __init__(self, kept: int) -> None:
        """Keep at most `kept` tickets that are over; the oldest go first."""
        self._kept = kept
        self._by_id: dict[str, Ticket] = {}
        self._over: deque[str] = deque()

    def add(self, request: RequestMetadata) -> Ticket:
        """Return the ticket of a new request.

        Raises:
            DuplicateRequestError: its id is another one's.

        """
        if request.request_id in self._by_id:
            raise DuplicateRequestError(f"request {request.request_id}: this id is taken; each request needs its own")
        ticket = self._by_id[request.request_id] = Ticket(request)
        return ticket

    def retire(self, ticket: Ticket) -> None:
        """Count a ticket among those that are over."""
        self._over.append(ticket.request.request_id)
        if len(self._over) > self._kept:
            del self._by_id[self._over.popleft()]

    def find(self, request_id: str) -> Ticket | None:
        """Return the ticket of that id."""
        return self._by_id.get(request_id)

    def known(self, request_id: str) -> Ticket:
        """Return the ticket of that id.

        Raises:
            UnknownRequestError: there is none.

        """
        ticket = self._by_id.get(request_id)
        if ticket is None:
            raise UnknownRequestError(
                f"request {request_id}: never submitted, or over and dropped for newer ones (results_kept={self._kept})"
            )
        return ticket
