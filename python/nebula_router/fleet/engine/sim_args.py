"""vLLM's arguments as the simulator takes them."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from nebula_router.fleet.engine.engine_args import EngineConfigError
from nebula_router.reference import settings

if TYPE_CHECKING:
    from nebula_router.fleet.engine.engine_args import EngineArgs

_RENAMED: Final = {"num-gpu-blocks-override": "kv-blocks"}
_OURS: Final = frozenset({"listen", "model", "name", "served-model-name"})
_COUNTS: Final = frozenset({"max-model-len", "max-num-seqs", "max-num-batched-tokens"})
_UNITS: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
"""As vLLM reads lengths like `32k`."""
_BEYOND_SETTINGS: Final = frozenset({"calibration"})

_log = logging.getLogger(__name__)


def sim_words(args: EngineArgs, name: str, names: tuple[str, ...], listen: str) -> tuple[str, ...]:
    """What comes after `nebula sim`. Flags that mean nothing to a simulator are passed over.

    A replica has its number as its seed, so that no two give the same ids to requests.

    Raises:
        EngineConfigError: A length is none.
    """
    known = _known()
    words = ["--listen", listen, "--name", name, "--model", names[0]]
    if "served-model-name" in known:
        words += [word for one in names for word in ("--served-model-name", one)]
    if not args.has("seed"):
        words += ["--seed", name.rpartition("/")[2]]
    passed_over: list[str] = []
    for flag in args.flags:
        own = _RENAMED.get(flag.name, flag.name)
        if flag.name == "kv-transfer-config":
            words += _hand_off(args)
        elif own not in known or own in _OURS:
            passed_over.append(flag.name)
        elif own in _COUNTS:
            words += _count(own, " ".join(flag.values))
        else:
            words += [f"--{own}", *flag.values]
    if passed_over:
        _log.debug("%s: a simulator has no %s", name, ", ".join(f"--{flag}" for flag in passed_over))
    return tuple(words)


def _known() -> frozenset[str]:
    """The simulator's flags, without dashes."""
    own = {flag.removeprefix("--") for row in settings() if row.group == "sim" for flag in row.flags}
    return frozenset(own | _BEYOND_SETTINGS)


def _hand_off(args: EngineArgs) -> list[str]:
    config = args.document("kv-transfer-config")
    if config is None:
        raise EngineConfigError("--kv-transfer-config: expected a JSON object")
    words = {"kv_role": "--kv-role", "kv_load_failure_policy": "--kv-load-failure-policy"}
    return [word for key, flag in words.items() if key in config for word in (flag, str(config[key]))]


def _count(name: str, text: str) -> list[str]:
    """The flag with a plain number; nothing where vLLM would choose one itself."""
    if text in {"auto", "-1"}:
        return []
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG]?)", text)
    if found is None:
        raise EngineConfigError(f"--{name} {text}: expected an integer, or one with a unit like 32k or 1M")
    return [f"--{name}", str(int(float(found[1]) * _UNITS.get(found[2], 1)))]
