"""What is left of a simulation: result.json, requests.csv, a PNG per fleet and load, and index.html that holds them."""

import csv
import json
import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Final

from nebula_router.simulate.document import Findings, document
from nebula_router.simulate.page import page
from nebula_router.simulate.plan import Scenario
from nebula_router.simulate.sizing import sizings
from nebula_router.sources import ConfigError

NO_PLOTS: Final = "no pictures: matplotlib is missing; `pip install 'nebula-router[plot]'` brings it"
_COLUMNS: Final = ("arrival_ms", "engine", "prompt", "cached", "predicted", "output", "ttft_ms", "itl_ms", "e2e_ms")


def as_json(findings: Findings) -> str:
    """The text of result.json."""
    return json.dumps(document(findings), indent=1, ensure_ascii=False) + "\n"


def check(folder: Path) -> None:
    """Refuses a folder that cannot be written to, so that a long simulation does not end with that.

    Raises:
        ConfigError: Another one is needed.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {folder}: {there} is no folder that can be written to")


def write(findings: Findings, folder: Path) -> tuple[list[Path], str | None]:
    """Writes everything into `folder`; gives the files, and what to say where pictures could not be drawn.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    pictures, names, remark = _draw(findings)
    held: dict[str, bytes] = {
        "result.json": as_json(findings).encode(),
        "requests.csv": _csv(findings).encode(),
        **{names[title]: light for title, (light, _) in pictures.items()},
        "index.html": page(findings, pictures).encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in held.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written: {error.strerror}") from None
    return [folder / name for name in held], remark


def _draw(findings: Findings) -> tuple[dict[str, tuple[bytes, bytes]], dict[str, str], str | None]:
    """Pictures by title, light and dark; their file names; a remark where there are none."""
    try:
        from nebula_router.simulate import plot  # noqa: PLC0415 - it needs matplotlib, which may be missing
    except ImportError:
        return {}, {}, NO_PLOTS
    themes = (plot.LIGHT, plot.DARK)
    slo = findings.plan.options.slo_ttft_ms
    pictures: dict[str, tuple[bytes, bytes]] = {}
    names: dict[str, str] = {}
    for outcome in findings.outcomes:
        title = outcome.scenario.title
        light, dark = (plot.picture(outcome, slo, theme) for theme in themes)
        pictures[title] = (light, dark)
        names[title] = f"{outcome.scenario.engines}-engines{_load(outcome.scenario)}.png"
    for sizing in sizings(findings.outcomes):
        light, dark = (plot.sizes(sizing, theme) for theme in themes)
        pictures[sizing.title] = (light, dark)
        names[sizing.title] = f"sizes{_load(sizing.outcomes[0].scenario)}.png"
    return pictures, names, None


def _load(scenario: Scenario) -> str:
    return "" if scenario.load is None else f"-load-{scenario.load * 100:g}"


def _csv(findings: Findings) -> str:
    """One line per request, policy, fleet and load."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("engines", "load", "speed", "policy", "request", *_COLUMNS))
    writer.writerows(_lines(findings))
    return out.getvalue()


def _lines(findings: Findings) -> Iterator[list[object]]:
    for outcome in findings.outcomes:
        scenario = outcome.scenario
        for report in outcome.reports:
            columns = report["per_request"]
            held = [columns[name] for name in _COLUMNS]
            for number, values in enumerate(zip(*held, strict=True), 1):
                shown = (f"{value:.3f}" if isinstance(value, float) else value for value in values)
                yield [scenario.engines, scenario.load, scenario.speed, report["policy"], number, *shown]
