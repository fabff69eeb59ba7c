"""A gateway's engines: those that it was told of, and those that the store tells of."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nebula_router.config import GatewaySettings
    from nebula_router.core import Core

    Spec = Mapping[str, Any]

_LOG: Final = logging.getLogger(__name__)


class Taken(ValueError):  # noqa: N818 - says what is the matter with the name
    """An engine's name or URL is another's already, or is not this gateway's to change."""


class Engines:
    """Both kinds in one fleet. An engine of the gateway's own wins over a discovered one of its name or URL."""

    def __init__(self, core: Core, settings: GatewaySettings) -> None:
        """Begin with the engines of the settings, which `core` has already."""
        self._core = core
        self._own: list[Spec] = [engine.model_dump() for engine in settings.engines]
        self._own_aliases = settings.model_aliases
        self._discovered: Sequence[Spec] = ()
        self._aliases: Mapping[str, str] = settings.model_aliases

    @property
    def aliases(self) -> Mapping[str, str]:
        """The names that clients may use for models, and what they stand for."""
        return self._aliases

    def add(self, spec: Spec) -> None:
        """Take one more engine of the gateway's own.

        Raises:
            Taken: its name or its URL is another's.

        """
        for other in (*self._own, *self._discovered):
            if other["name"] == spec["name"]:
                raise Taken(f"there is an engine `{spec['name']}` already; remove it or use another name")
            if other["url"] == spec["url"]:
                raise Taken(f"the engine `{other['name']}` has the URL {spec['url']} already")
        self._apply([*self._own, spec], self._discovered, self._aliases)

    def remove(self, name: str) -> None:
        """Let an engine of the gateway's own go; what it has in flight goes on.

        Raises:
            Taken: it is a placed one: it would be back at once.

        """
        if any(spec["name"] == name for spec in self._discovered):
            raise Taken(
                f"the engine `{name}` is placed by a scheduler: `nebula drain` or `nebula unload` takes it away"
            )
        self._apply([spec for spec in self._own if spec["name"] != name], self._discovered, self._aliases)

    def discover(self, specs: Sequence[Spec], aliases: Mapping[str, str]) -> None:
        """Replace the discovered engines, and the names that came with them; without a change nothing happens."""
        names = {spec["name"] for spec in self._own}
        urls = {spec["url"] for spec in self._own}
        discovered = []
        for spec in specs:
            if spec["name"] in names or spec["url"] in urls:
                _LOG.warning("the engine %s at %s is left out: its name or URL is taken", spec["name"], spec["url"])
                continue
            names.add(spec["name"])
            urls.add(spec["url"])
            discovered.append(spec)
        merged = {**aliases, **self._own_aliases}
        if discovered != self._discovered or merged != self._aliases:
            self._apply(self._own, discovered, merged)

    def _apply(self, own: list[Spec], discovered: Sequence[Spec], aliases: Mapping[str, str]) -> None:
        self._core.set_engines([*own, *discovered], aliases)
        self._own, self._discovered, self._aliases = own, discovered, aliases
