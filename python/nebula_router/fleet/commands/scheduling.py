"""What `nebula scheduler` does once its command line is read."""

import asyncio
import logging
import signal
import sys
from dataclasses import fields
from typing import Any, Final

from nebula_router.config import Settings
from nebula_router.fleet.commands.placed import document, show
from nebula_router.fleet.commands.scheduler_command import REFUSED, UNREACHABLE, Options
from nebula_router.fleet.engine.engine_args import EngineConfigError
from nebula_router.fleet.engine.engine_config import EngineConfig, memory_mb, read_engine_config
from nebula_router.fleet.model.model_files import ModelFilesError
from nebula_router.fleet.open import opened_store
from nebula_router.fleet.placing.one_shot import Ask, Placed, UnknownModelError, place
from nebula_router.fleet.records import Pool, RecordError, Role, checked_id
from nebula_router.fleet.scheduler import Scheduler
from nebula_router.fleet.store import StoreError
from nebula_router.sources import ConfigError

_SAME: Final = ("node_id", "port", "min_replicas", "max_replicas", "target_ttft_ms", "engine_type", "docker_image")
"""Options that a pool has by the same name."""


def keep_placing(settings: Settings, options: Options) -> int:
    """Run the service until a signal ends it; the exit status.

    Raises:
        ConfigError: An option is of one placement.
    """
    for option in fields(Options):
        if getattr(options, option.name) != option.default:
            flag = "--" + option.name.removeprefix("as_").replace("_", "-")
            raise ConfigError(f"{flag}: belongs to one placement, which --model-uid UID would name")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    asyncio.run(_kept(settings))
    return 0


async def _kept(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with opened_store(settings.store) as store:
        logging.getLogger(__name__).info("placing models by %s", ", ".join(settings.store.endpoints))
        await Scheduler(store, settings.scheduler).run(stop)


def place_one(settings: Settings, options: Options) -> int:
    """Place one model and show where; the exit status.

    Raises:
        ConfigError: The command was called wrongly; the message says how.
    """
    try:
        ask = asked(options)
        placed = asyncio.run(_with_store(settings, ask))
    except (EngineConfigError, ModelFilesError, UnknownModelError) as error:
        raise ConfigError(str(error)) from None
    except RecordError as error:
        print(f"nebula scheduler: {error}", file=sys.stderr)  # noqa: T201 - a command's own words
        return UNREACHABLE
    except StoreError as error:
        where = ", ".join(settings.store.endpoints)
        print(  # noqa: T201 - a command's own words
            f"nebula scheduler: the store {where} cannot be asked: {error}; start etcd there, or name another by "
            "--etcd-endpoint http://host:port",
            file=sys.stderr,
        )
        return UNREACHABLE
    if options.as_json:
        sys.stdout.write(document(placed, dry_run=ask.dry_run) + "\n")
    else:
        show(placed, dry_run=ask.dry_run)
    return REFUSED if placed.is_refused else 0


async def _with_store(settings: Settings, ask: Ask) -> Placed:
    async with opened_store(settings.store) as store:
        return await place(store, ask, settings.scheduler)


def asked(options: Options) -> Ask:
    """What the command line asks for.

    Raises:
        ConfigError: It contradicts itself, or a value is none.
        EngineConfigError: The engine's file cannot be used.
    """
    try:
        uid = checked_id(options.model_uid or "")
        if options.node_id is not None:
            checked_id(options.node_id)
        required_mb = memory_mb(options.required_vram) if options.required_vram else None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    low, high = options.min_replicas, options.max_replicas
    if (low is None) != (high is None):
        raise ConfigError("--min-replicas and --max-replicas belong together: load decides between them")
    if low is not None and high is not None and low > high:
        raise ConfigError(f"--min-replicas {low} is more than --max-replicas {high}")
    path = options.engine_config_path
    engine_args = read_engine_config(path) if path else None
    return Ask(
        model_uid=uid,
        role=Role(options.role),
        pool=lambda before: _pool(before, options, engine_args, required_mb),
        model_name=options.model_name or (EngineConfig(engine_args).text("model") if engine_args else None),
        dry_run=options.dry_run,
    )


def _pool(before: Pool | None, options: Options, engine_args: dict[str, Any] | None, required_mb: int | None) -> Pool:
    """The asked pool. A file says all that it is; without one, what is not asked for stays as it was."""
    new = before is None or engine_args is not None or options.model_name is not None
    base = Pool() if before is None or new else before
    update: dict[str, Any] = {name: getattr(options, name) for name in _SAME if getattr(options, name) is not None}
    if engine_args is not None and options.engine_config_path is not None:
        update["engine_args"] = engine_args
        update["engine_config_path"] = str(options.engine_config_path.absolute())
    extra = list(options.extra_arg or ())
    if options.tensor_parallel_size is not None:
        update["tensor_parallel_size"] = options.tensor_parallel_size
        extra += ["--tensor-parallel-size", str(options.tensor_parallel_size)]
    if extra:
        update["extra_args"] = tuple(extra)
    if extra or options.gpus is not None or required_mb is not None or options.engine_type is not None:
        update |= {"gpus_per_replica": options.gpus, "required_vram_mb": required_mb, "vram": None}
    if options.force:
        update["force"] = True
    pool = base.model_copy(update=update)
    if options.replicas is not None:
        return pool.model_copy(update={"replicas": options.replicas})
    if before is not None and pool.min_replicas is not None:
        return pool.model_copy(update={"replicas": before.replicas})  # as load has chosen it
    return pool
