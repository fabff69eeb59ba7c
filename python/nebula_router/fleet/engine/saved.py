"""What a node must know of a running engine after its own restart: one small file per replica."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nebula_router.fleet.engine.ports import Ports
from nebula_router.fleet.engine.process import ProcessId
from nebula_router.fleet.records import Id, Record, RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILE: Final = "engine.json"

_log = logging.getLogger(__name__)


class Saved(Record):
    """An engine that was started. No secret is in it."""

    model_uid: Id
    replica_id: int
    plan_version: int
    digest: str
    """Of the job that it was started for."""
    pid: int
    start: int
    boot: str
    ports: dict[str, int | None]
    cleanup: tuple[str, ...] = ()

    @property
    def process(self) -> ProcessId:
        """Its process."""
        return ProcessId(self.pid, self.start, self.boot)

    @property
    def had(self) -> Ports:
        """Its ports."""
        known: dict[str, Any] = {name: port for name, port in self.ports.items() if name in Ports.__slots__}
        return Ports(**known)


def folder(state: Path, model_uid: str, replica_id: int) -> Path:
    """A replica's own folder; there is none for another replica or model."""
    return state / "engines" / model_uid / str(replica_id)


def write(state: Path, saved: Saved) -> None:
    """Keep it, whole or not at all.

    Raises:
        OSError: The folder cannot be written to.
    """
    own = folder(state, saved.model_uid, saved.replica_id)
    own.mkdir(parents=True, exist_ok=True)
    new = own / f"{_FILE}.new"
    new.write_bytes(saved.stored())
    new.replace(own / _FILE)


def forget(state: Path, model_uid: str, replica_id: int) -> None:
    """Remove it, if it is there."""
    (folder(state, model_uid, replica_id) / _FILE).unlink(missing_ok=True)


def read_all(state: Path) -> Iterator[Saved]:
    """All that were kept. A file that is damaged is named and left where it is."""
    for file in sorted((state / "engines").glob(f"*/*/{_FILE}")):
        try:
            saved = Saved.parsed(file.read_bytes(), str(file))
            saved.had  # noqa: B018 - raises what it cannot read
        except (RecordError, OSError, TypeError) as error:
            _log.error("an engine may run that this node cannot know: %s", error)
            continue
        yield saved


def prepared(text: str | None, node_id: str) -> Path:
    """The folder of a node's state, made where it is missing; others on the machine cannot read it.

    Args:
        text: The setting.
        node_id: Nodes that share a machine have a folder each.

    Raises:
        OSError: It cannot be made.
    """
    if text is None:
        base = os.environ.get("XDG_STATE_HOME") or str(Path("~").expanduser() / ".local" / "state")
        text = str(Path(base) / "nebula")
    state = Path(text).absolute() / node_id
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    return state
