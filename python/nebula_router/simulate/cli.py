"""`nebula simulate`: plan, run, show, write."""

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from nebula_router.config import Settings
from nebula_router.flags import examples, takes_settings
from nebula_router.presets import Timing
from nebula_router.reference import settings as setting_rows
from nebula_router.simulate import bar, files, table
from nebula_router.simulate.explore import explore
from nebula_router.simulate.options import Options, takes_options
from nebula_router.simulate.plan import plan

_ENGINE: Final = frozenset(
    {
        *("preset", "block_size", "kv_blocks", "max_num_seqs", "max_num_batched_tokens"),
        *(field.name for field in fields(Timing)),
    }
)
"""Settings of a simulated engine that are not its face; `max_model_len` has no default here."""
_NOT_SIMULATED: Final = frozenset(
    {
        *(row.dotted for row in setting_rows() if row.group == "sim" and row.name not in _ENGINE),
        *(f"route.{name}" for name in ("policy", "seed", "text_block_bytes", "bytes_per_token", "token_block_tokens")),
        *(f"route.{name}" for name in ("breaker_failures", "breaker_open_ms")),
    }
)
_EXAMPLES: Final = (
    "nebula simulate --trace conversation.jsonl --engines 16 --policy kv --policy round_robin",
    "nebula simulate --trace conversation.jsonl --engines 8,16,32 --slo-ttft-ms 1000",
    "nebula simulate --trace conversation.jsonl --engines 16 --load 0.6,0.85,0.95 --policy all",
    "nebula simulate --workload multi_turn --sessions 2000 --think-s 5 --preset llama-70b-8xa100",
    "nebula simulate --workload agents --event-delay-ms 500 --event-loss 0.01",
    "nebula simulate --config gateway.toml --trace gateway.log --format decisions",
)

app = typer.Typer(
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(epilog=examples(*_EXAMPLES))
@takes_settings("sim", "route", without=_NOT_SIMULATED)
@takes_options
def simulate(
    *,
    settings: Settings,
    options: Options,
    parameters: Mapping[str, str],
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON in place of tables; files are written only where --out says so.",
            rich_help_panel="What comes out",
        ),
    ] = False,
) -> None:
    """Replay a trace, or a workload made up, against a simulated fleet: one row of figures per routing policy.

    The policies run in the code that routes live traffic, against engines that schedule and cache as vLLM does, in
    virtual time. The same flags give the same bytes. docs/simulate.md tells how to size a fleet with it.
    """
    console = Console(stderr=as_json)
    console.width = max(console.width, table.WIDTH)
    planned = plan(settings, options, parameters)
    folder = Path(options.out) if not as_json or "out" in options.model_fields_set else None
    if folder:
        files.check(folder)
    with bar.shown(console) as progress:
        findings = explore(planned, progress)
    if as_json:
        sys.stdout.write(files.as_json(findings))
    else:
        table.show(console, findings)
    if folder:
        written, remark = files.write(findings, folder)
        if remark:
            console.print(remark, style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(f"wrote {', '.join(map(str, written))}", markup=False, highlight=False, soft_wrap=True)
