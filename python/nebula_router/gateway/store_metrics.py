"""What a gateway's metrics say of the store that it follows, in the text of OpenMetrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nebula_router.fleet.discovery import Discovery


def store_metrics(discovery: Discovery) -> str:
    """Three gauges and a counter, without the end of the page."""
    left_out = len(discovery.state()["left_out"])
    rows = (
        ("nebula_store_connected", "gauge", "Whether changes of the store come in", int(discovery.connected)),
        ("nebula_store_last_contact_seconds", "gauge", "Time since the store was in touch", discovery.last_contact_s),
        ("nebula_store_engines", "gauge", "Engines that the store told of and that get traffic", discovery.engines),
        ("nebula_store_left_out", "gauge", "Endpoints in the store that get no traffic", left_out),
        ("nebula_store_swaps", "counter", "Times that the engines were replaced", discovery.swaps),
    )
    return "".join(
        f"# HELP {name} {help_}.\n# TYPE {name} {kind}\n{name}{'_total' if kind == 'counter' else ''} {value}\n"
        for name, kind, help_, value in rows
    )
