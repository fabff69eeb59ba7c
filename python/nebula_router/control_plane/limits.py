"""The bounds of a control plane: each its default, what is allowed, and what it is for."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from nebula_router.control_plane.errors import unknown
from nebula_router.kinds import Group


class Limits(Group):
    """Keyword arguments of `ControlPlaneManager`. Times are in seconds."""

    health_check_interval: float = Field(10.0, ge=0.01, le=600, description="Time between two looks at every instance.")
    health_check_timeout: float = Field(5.0, ge=0.01, le=600, description="Longest wait for a probe's answer.")
    consecutive_failures_threshold: int = Field(
        3, ge=1, le=1000, description="Failed probes in a row after which an instance is removed until one succeeds."
    )
    max_retries: int = Field(
        3, ge=0, le=100, description="Times that a request is queued again because its instance failed."
    )
    queue_limit: int = Field(10_000, ge=1, le=1_000_000, description="Requests that wait; one more is refused.")
    queue_timeout: float = Field(300.0, ge=0, le=86400, description="Longest wait for an instance.")
    model_timeout: float = Field(
        10.0, ge=0, le=86400, description="Longest wait while no instance with the request's model is registered."
    )
    request_timeout: float = Field(300.0, ge=0.01, le=86400, description="Longest time for a reply, once it is sent.")
    results_kept: int = Field(1000, ge=0, le=1_000_000, description="Finished requests that can be asked for.")
    stop_timeout: float = Field(
        30.0, ge=0, le=3600, description="Time that running requests get to finish at the stop."
    )


def limits_of(values: dict[str, Any]) -> Limits:
    """Return the limits with these values.

    Raises:
        ValueError: a name that is not known, or a value out of its bounds.

    """
    for name in values:
        if name not in Limits.model_fields:
            raise unknown("argument", name, list(Limits.model_fields))
    try:
        return Limits(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{first['loc'][0]}: {first['msg']}") from None
