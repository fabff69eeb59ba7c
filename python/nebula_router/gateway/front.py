"""A gateway in front of routers: it keeps keys and limits, they choose the engines."""

from typing import Any, Final

from nebula_router.config import EngineSettings, Settings

_MODELS_INTERVAL_S: Final = 1.0
"""How often a router is asked which models it has: they change whenever one is placed."""
_NEVER: Final = 1000
"""A router's 503 means that its engines are busy, not that it is ill: no number of them rests it."""


def in_front(settings: Settings) -> Settings:
    """The settings of a gateway whose engines are the routers of `gateway.routers`.

    What a router does is not done twice: no prompt is read for its tokens, no KV event followed, no usage asked for.
    A request goes to the router with the least load. Keys are asked for here: a router has none (`data_plane`).
    """
    routers = tuple(EngineSettings(url=url, events="off") for url in settings.gateway.routers)
    return _changed(
        settings,
        gateway={"engines": settings.gateway.engines + routers},
        route={"policy": "least_loaded", "breaker_failures": _NEVER},
        upstream={"ask_usage": False, "facts_interval_s": _MODELS_INTERVAL_S},
        tokens={"read_engine_root": False, "forward_tokens": False, "model_assets": {}},
        events={"kv_events": False},
    )


def data_plane(settings: Settings) -> Settings:
    """The settings of a router: it serves on an address of its own and asks for no key, which is the gateway's part."""
    return _changed(settings, gateway={"listen": settings.router.listen, "api_keys": (), "routers": ()})


def _changed(settings: Settings, **groups: dict[str, Any]) -> Settings:
    return settings.model_copy(
        update={name: getattr(settings, name).model_copy(update=values) for name, values in groups.items()}
    )
