"""What became of one placement, as a table for people or as JSON."""

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nebula_router.fleet.model.vram import MIB, gib
from nebula_router.fleet.placing.one_shot import Placed
from nebula_router.fleet.placing.room import Room, free_mb
from nebula_router.fleet.records import Assignment, NodeStatus

_BILLION = 1e9


def show(placed: Placed, *, dry_run: bool) -> None:
    """Prints the plan, or why there is none."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(_headline(placed, dry_run=dry_run)))
    # A refusal begins with the sum, which is the first note.
    for line in placed.sized.notes[1 if placed.is_refused and placed.sized.need else 0 :]:
        console.print(Text(f"  {line}"))
    plan = placed.outcome.plan
    if plan.assignments and not placed.is_refused:
        console.print(_table(placed))
    for line in _passed(placed):
        console.print(Text(f"  {line}"))
    if dry_run or placed.is_refused:
        for line in _fits(placed):
            console.print(Text(f"  {line}"))
    if placed.forcible:
        console.print(Text("  --force places it all the same"))


def _passed(placed: Placed) -> Iterator[str]:
    """Which nodes were passed over, and why."""
    refusals, plan = placed.outcome.refusals, placed.outcome.plan
    if not refusals:
        texts = ((plan.reasons or {}).get(str(a.replica_id), "") for a in plan.assignments)
        for line in dict.fromkeys(line for text in texts for line in text.split("; ")[1:]):
            yield f"passed over {line}"
    for replica_id, why in sorted(refusals.items()):
        kept = any(a.replica_id == replica_id for a in plan.assignments)
        yield f"replica {replica_id} {'stays as it is' if kept else 'has no place'}:"
        for line in why.split("; "):
            yield f"  {line}"


def document(placed: Placed, *, dry_run: bool) -> str:
    """The same as one JSON document."""
    plan = placed.outcome.plan
    assignments = [] if placed.is_refused else plan.assignments
    found: dict[str, Any] = {
        "model_uid": placed.spec.model_uid,
        "model_name": placed.spec.model_name,
        "placed": not placed.is_refused,
        "dry_run": dry_run,
        "changed": placed.written,
        "version": plan.version,
        "assignments": [_row(a, plan.reasons or {}) for a in assignments],
        "refused": {str(replica_id): why for replica_id, why in placed.outcome.refusals.items()},
        "vram_checked": not placed.sized.unchecked,
        "vram": list(placed.sized.notes),
        "fits": list(_fits(placed)),
    }
    return json.dumps(found, indent=2)


def _headline(placed: Placed, *, dry_run: bool) -> str:
    uid, version = placed.spec.model_uid, placed.outcome.plan.version
    if placed.is_refused:
        return f"{uid}: refused, nothing was written"
    if dry_run:
        return f"{uid}: would be placed, nothing was written"
    if not placed.written:
        return f"{uid}: plan version {version} is there already, nothing to change"
    if not placed.outcome.changed:
        return f"{uid}: plan version {version} stays, its spec was written"
    return f"{uid}: placed, plan version {version}"


def _table(placed: Placed) -> Table:
    table = Table(box=None, pad_edge=True)
    for column in ("replica", "role", "node", "GPUs", "port", "why"):
        table.add_column(column)
    for a in placed.outcome.plan.assignments:
        row = _row(a, placed.outcome.plan.reasons or {})
        gpus = ", ".join(map(str, row["gpus"])) or "-"
        state = " (drains)" if a.draining else ""
        why = (row["why"] or "").split("; ")[0]
        cells = (f"{a.replica_id}{state}", row["role"], a.node_id, gpus, str(a.port or "-"), why)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _row(assignment: Assignment, reasons: dict[str, str]) -> dict[str, Any]:
    return {
        "replica_id": assignment.replica_id,
        "role": assignment.role.value,
        "node_id": assignment.node_id,
        "gpus": list(assignment.gpus),
        "port": assignment.port,
        "draining": assignment.draining,
        "why": reasons.get(str(assignment.replica_id)),
    }


def _fits(placed: Placed) -> Iterator[str]:
    """What would fit on each node's free GPUs, one line each."""
    room = Room(placed.fleet)
    for uid, plan in placed.fleet.plans.items():
        for assignment in plan.assignments:
            room.book(uid, assignment)
    for _, node in sorted(placed.fleet.nodes.items()):
        if node.gpus:
            yield f"{node.node_id} has {_fit(placed, node, room)}"


def _fit(placed: Placed, node: NodeStatus, room: Room) -> str:
    free = room.free_gpus(node)
    if not free:
        return "no free GPU"
    gpu = max(free, key=free_mb)
    memory = f"{gib(free_mb(gpu) * MIB)} of {gib(gpu.memory_total_mb * MIB)} GiB"
    most = f"{len(free)} free GPU{'s' if len(free) > 1 else ''}, the largest with {memory}"
    need = placed.sized.need
    if need is None:
        return most
    left = max(0.0, need.room_bytes(gpu.memory_total_mb, free_mb(gpu)) + need.weights_per_gpu)
    if need.kv_fixed_bytes is not None:
        left = max(0.0, free_mb(gpu) * MIB - need.kv_fixed_bytes - need.overhead_bytes)
    words = f"{most}: {gib(left)} GiB for weights and KV cache, or {left / 2 / _BILLION:.1f}e9 parameters in 16 bits"
    tokens = need.tokens_that_fit(gpu.memory_total_mb, free_mb(gpu))
    if tokens is None:
        return words
    return f"{words}; this model with {tokens:,} tokens of KV cache" if tokens else f"{words}; not this model"
