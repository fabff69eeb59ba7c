"""A fleet's documents as tables for people."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from nebula_router.fleet.asking.documents import (
    Document,
    Done,
    FleetStatus,
    GpuRow,
    ModelRow,
    Models,
    NodeRow,
    Nodes,
    Placements,
    ReplicaRow,
)
from nebula_router.fleet.records import Role

WIDTH: Final = 100
"""What the tables take."""
ABSENT: Final = "-"
_GIB_MB: Final = 1024
_SECOND_MS: Final = 1000
_STYLES: Final = {
    "ready": "green",
    "partial": "yellow",
    "starting": "yellow",
    "planned": "yellow",
    "draining": "cyan",
    "drained": "cyan",
    "unloading": "cyan",
    "failed": "red",
    "unplaced": "red",
    "lost": "red",
    "unhealthy": "red",
}
_NO_MODEL: Final = "No model is wanted. `nebula scheduler --model-uid NAME --engine-config-path FILE` places one."
_NO_NODE: Final = "No node is there. `nebula node` on a machine with GPUs adds it."


def show(console: Console, document: Document) -> None:
    """Prints a document as people read it."""
    console.width = max(console.width, WIDTH)
    for part in _parts(document):
        console.print(part, soft_wrap=isinstance(part, Text))


def _parts(document: Document) -> Iterator[RenderableType]:
    match document:
        case FleetStatus():
            yield from _status(document)
        case Models():
            yield from _models(document.models)
        case Nodes():
            yield from _nodes(document.nodes)
        case Placements():
            yield from _placements(document.replicas)
        case Done():
            yield from _done(document)
        case _:
            raise TypeError(f"{type(document).__name__} has no table")


def _status(found: FleetStatus) -> Iterator[RenderableType]:
    gpus = [gpu for node in found.nodes for gpu in node.gpus]
    free = sum(not gpu.replicas for gpu in gpus)
    there = sum(node.status != "lost" for node in found.nodes)
    head = (
        f"{found.ready} of {found.wanted} replicas ready   {_count(len(found.models), 'model')}   "
        f"{_count(there, 'node')}   {_count(len(gpus), 'GPU')}, {free} free"
    )
    yield Text(head, "bold")
    yield Text()
    yield from _models(found.models)
    yield Text()
    yield from _nodes(found.nodes)
    if found.problems:
        yield Text()
        yield Text("To look at:", "bold")
        for problem in found.problems:
            yield Text(f"  {problem}", "yellow")


def _models(models: Sequence[ModelRow]) -> Iterator[RenderableType]:
    if not models:
        yield Text(_NO_MODEL)
        return
    table = _table("model", "status", ">ready", ">wanted", ">bounds", ">plan", "why")
    for row in models:
        for first, cells in _pools(row):
            style = "" if first else "dim"
            table.add_row(*cells, style=style)
    yield table


def _pools(row: ModelRow) -> Iterator[tuple[bool, list[str | Text]]]:
    """A model's line, and one for each pool where there are several."""
    alone = row.pools[0] if len(row.pools) == 1 else None
    bounds = _bounds(alone.min_replicas, alone.max_replicas) if alone else ABSENT
    plan = ABSENT if row.plan_version is None else str(row.plan_version)
    yield (
        True,
        [Text(row.model_uid), _word(row.status), str(row.ready), str(row.wanted), bounds, plan, Text(row.why or "")],
    )
    for pool in row.pools if alone is None else ():
        bounds = _bounds(pool.min_replicas, pool.max_replicas)
        yield False, [Text(f"  {pool.role.value}"), "", str(pool.ready), str(pool.wanted), bounds, "", ""]


def _nodes(nodes: Sequence[NodeRow]) -> Iterator[RenderableType]:
    if not nodes:
        yield Text(_NO_NODE)
        return
    table = _table("node", "status", ">seen", ">GPU", "name", ">used/total GiB", ">booked", ">util %", "replicas")
    for row in nodes:
        head: list[str | Text] = [Text(row.node_id), _word(row.status), _age(row.heartbeat_age_ms)]
        if not row.gpus:
            table.add_row(*head, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, Text(", ".join(row.replicas)))
        for at, gpu in enumerate(row.gpus):
            table.add_row(*(head if at == 0 else ["", "", ""]), *_gpu(gpu))
        if row.gpus and (other := set(row.replicas) - {name for gpu in row.gpus for name in gpu.replicas}):
            table.add_row("", "", "", ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, Text(", ".join(sorted(other))))
    yield table
    for row in nodes:
        for name, error in row.errors.items():
            yield Text(f"{row.node_id}: {name}: {error}", "red")


def _gpu(gpu: GpuRow) -> list[str | Text]:
    return [
        str(gpu.index),
        Text(gpu.name or ABSENT),
        f"{_gib(gpu.memory_used_mb)}/{_gib(gpu.memory_total_mb)}",
        _gib(gpu.booked_mb) if gpu.booked_mb else ABSENT,
        ABSENT if gpu.utilization_gpu is None else str(gpu.utilization_gpu),
        Text(", ".join(gpu.replicas) or "free", "" if gpu.replicas else "dim"),
    ]


def _placements(replicas: Sequence[ReplicaRow]) -> Iterator[RenderableType]:
    if not replicas:
        yield Text(f"No replica is placed. {_NO_MODEL}")
        return
    roles = any(row.role is not Role.UNIFIED for row in replicas)
    shown = [*(["role"] if roles else []), "node", ">GPUs", ">port", "status", ">plan"]
    table = _table("replica", *shown, ">KV %", ">running", ">waiting", "why")
    for row in replicas:
        cells: list[str | Text] = [Text(row.name)]
        cells += [row.role.value] if roles else []
        cells += [
            Text(row.node_id or ABSENT),
            ",".join(map(str, row.gpus)) or ABSENT,
            ABSENT if row.port is None else str(row.port),
            _state(row),
            _plan(row),
            ABSENT if row.kv_usage is None else f"{row.kv_usage * 100:.0f}",
            _number(row.running),
            _number(row.waiting),
            Text(row.why or ""),
        ]
        table.add_row(*cells, style="" if row.current else "dim")
    yield table


def _state(row: ReplicaRow) -> Text:
    word = _word(row.status)
    if row.draining and row.status not in {"draining", "drained"}:
        word.append(", draining", _STYLES["draining"])
    return word


def _plan(row: ReplicaRow) -> Text:
    if row.plan_version is None:
        return Text(ABSENT)
    return Text(str(row.plan_version) + ("" if row.current else " leftover"))


def _done(done: Done) -> Iterator[RenderableType]:
    yield Text(f"{done.text}.")
    for name, why in done.refused.items():
        yield Text(f"no room for replica {name}: {why}" if name else why, "red")
    for note in done.notes:
        yield Text(note, "yellow")


def _table(*headings: str) -> Table:
    """A table without lines; `>` before a heading puts its column to the right."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in headings:
        last = heading in {"why", "replicas"}
        table.add_column(
            heading.lstrip(">"),
            justify="right" if heading.startswith(">") else "left",
            no_wrap=not last,
            max_width=None if last else 26,
            ratio=1 if last else None,
            overflow="fold" if last else "ellipsis",
        )
    return table


def _word(word: str) -> Text:
    return Text(word, _STYLES.get(word, ""))


def _bounds(low: int | None, high: int | None) -> str:
    return ABSENT if low is None and high is None else f"{low or 0}-{'' if high is None else high}"


def _age(ms: int | None) -> str:
    return ABSENT if ms is None else f"{ms / _SECOND_MS:.0f}s"


def _gib(mb: int) -> str:
    return f"{mb / _GIB_MB:.1f}"


def _number(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
