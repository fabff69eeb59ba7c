"""The live benchmark from its options to its exit status."""

import json
import sys
from collections.abc import Mapping
from typing import Final

from rich.console import Console

from nebula_router.bench.error import BenchError
from nebula_router.bench.live import document, line, smoke, summary
from nebula_router.bench.live.dataset import dataset
from nebula_router.bench.live.options import Options, flag
from nebula_router.bench.live.play import play
from nebula_router.bench.live.server import Server, pairs

FAILED: Final = 1
"""Exit status: a request failed."""
INTERRUPTED: Final = 130
"""Exit status: someone pressed Ctrl-C."""


def ask(options: Options, shape: Mapping[str, str], console: Console) -> int:
    """Runs the benchmark, shows and keeps what came of it; the exit status.

    Raises:
        BenchError: Nothing could be measured.
        ConfigError: A value that its flag does not take.
    """
    server = Server.of(options)
    if options.smoke:
        smoke.check(options, shape)
        return _smoke(options, server, console)
    # All that can be refused is refused before the server hears anything.
    shown, _ = document.metrics(options), document.objectives(options)
    pairs("--metadata", options.metadata)
    for name in ("result_dir", "result_filename"):
        if options.told(name) and not options.save_result:
            raise BenchError(f"{flag(name)}: says where --save-result goes, and that is not told")
    asked = dataset(options, shape)
    settings = document.document(options, server, options.model or "", asked)
    model = settings["run"]["model"] = options.model or server.first_model()
    played = play(settings, asked.record, console)
    result = line.line(options, shape, asked, model, played)
    saved = line.save(options, result)
    if options.as_json:
        sys.stdout.write(json.dumps(result, separators=(",", ":")) + "\n")
    else:
        summary.show(console, result, shown)
    if saved is not None:
        console.print(f"result: {saved}", markup=False, highlight=False, soft_wrap=True)
    if played.interrupted:
        return INTERRUPTED
    return FAILED if result["failed"] else 0


def _smoke(options: Options, server: Server, console: Console) -> int:
    """Any error of the server is a failure here: it is what a smoke test is for."""
    try:
        figures = smoke.smoke(options, server).figures()
    except BenchError as error:
        Console(stderr=True).print(f"nebula bench: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return FAILED
    if options.as_json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        for row in smoke.lines(figures):
            console.print(row, markup=False, highlight=False, soft_wrap=True)
    return 0
