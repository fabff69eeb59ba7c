"""Questions to etcd, on the I/O thread."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final

from nebula_router.fleet.etcd.links import Links
from nebula_router.fleet.store import StoreDownError, StoreError, WatchLostError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from nebula_router.fleet.settings import StoreSettings

PROBE_S: Final = 2.0
"""Time between two looks at a connection that has watches: a silent one is noticed after that and one timeout."""


class Client:
    """Asks etcd over a connection that is made when it is needed, and watched over while there are watches."""

    def __init__(self, settings: StoreSettings) -> None:
        self._links = Links(settings)
        self._timeout_s = settings.timeout_s
        self._watches = 0
        self._prober: asyncio.Task[None] | None = None

    async def ask(self, name: str, request: object, *, is_read: bool = False) -> Any:  # noqa: ANN401 - made at run time
        """The answer of one of etcd's methods, within the timeout.

        Raises:
            StoreDownError: None came. A write may have had its effect, so it is never sent again.
            RefusedError: etcd refused.
        """
        began_s = time.monotonic()
        deadline_s = began_s + self._timeout_s
        link = await self._links.current(deadline_s)
        try:
            return await link.ask(name, request, deadline_s)
        except StoreDownError:
            # A connection that was dead already shows at once: then there is time to ask on another.
            if not is_read or time.monotonic() - began_s > self._timeout_s / 2:
                raise
        link = await self._links.current(deadline_s)
        return await link.ask(name, request, deadline_s)

    async def keep_alive(self, lease: int) -> int:
        """The seconds that a lease has from now on; 0 where it is gone. The same errors."""
        deadline_s = time.monotonic() + self._timeout_s
        link = await self._links.current(deadline_s)
        return await link.keep_alive(lease, deadline_s)

    async def watch(self, request: object, after_revision: int) -> AsyncGenerator[Sequence[Any], None]:
        """Yield the events of each of etcd's answers.

        Raises:
            WatchLostError: The watch cannot be begun, or go on.
        """
        try:
            link = await self._links.current(time.monotonic() + self._timeout_s)
        except StoreDownError as error:
            raise WatchLostError(str(error)) from None
        self._count(+1)
        try:
            async with aclosing(link.watch(request)) as answers:
                async for answer in answers:
                    _check(answer, link.endpoint, after_revision)
                    if answer.events:
                        yield answer.events
        finally:
            self._count(-1)

    async def close(self) -> None:
        """Close the connection."""
        await self._links.close()

    def _count(self, more: int) -> None:
        self._watches += more
        if self._watches and self._prober is None:
            self._prober = asyncio.get_running_loop().create_task(self._probe())
        elif not self._watches and self._prober is not None:
            self._prober.cancel()
            self._prober = None

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_S)
            with suppress(StoreError):
                await self._links.probe(time.monotonic() + self._timeout_s)


def _check(answer: Any, endpoint: str, after_revision: int) -> None:  # noqa: ANN401 - made at run time
    if answer.compact_revision:
        raise WatchLostError(
            f"etcd at {endpoint} has forgotten the changes after revision {after_revision}: those up to "
            f"{answer.compact_revision} are compacted"
        )
    if answer.canceled:
        raise WatchLostError(f"etcd at {endpoint} ended the watch: {answer.cancel_reason or 'it did not say why'}")
    if answer.created and answer.header.revision < after_revision:
        raise WatchLostError(
            f"etcd at {endpoint} is at revision {answer.header.revision}, before {after_revision}: its data is another"
        )
