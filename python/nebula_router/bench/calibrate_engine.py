"""What a live engine tells of itself: its model, its version, its KV cache, and whether somebody else uses it."""

import json
import re
from dataclasses import dataclass
from typing import Any

from nebula_router.bench.calibrate_client import Client
from nebula_router.bench.error import BenchError

MODELS = "/v1/models"
CACHE = "vllm:cache_config_info"
BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine. What it does not tell is None."""

    model: str
    max_model_len: int
    version: str | None = None
    block_size: int | None = None
    kv_blocks: int | None = None
    prefix_caching: bool = False
    ranks: int = 1
    """Data-parallel ranks behind the URL."""

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that its KV cache holds; the first block holds none."""
        if self.block_size is None or self.kv_blocks is None:
            return None
        return (self.kv_blocks - 1) * self.block_size


async def look(client: Client, model: str | None) -> Engine:
    """The engine behind `client`, serving `model`, or the first that it names.

    Raises:
        BenchError: nobody answers, or what answers is no engine, or it does not serve the model.
    """
    name, length = pick(_object(await client.get(MODELS), MODELS), model)
    return Engine(name, length, await _version(client), **cache(await _metrics(client)))


async def others(client: Client) -> float:
    """Requests that run or wait in the engine; 0 where it does not tell."""
    page = await _metrics(client)
    return sum(value for name in BUSY for _, value in samples(page, name))


def pick(listed: dict[str, Any], wanted: str | None) -> tuple[str, int]:
    """Name and context length of a model that `/v1/models` lists.

    Raises:
        BenchError: it is not there, or its length is not told.
    """
    cards = [card for card in listed.get("data") or [] if isinstance(card, dict)]
    names = [str(card.get("id")) for card in cards]
    found = [card for card in cards if wanted in {None, card.get("id")}]
    if not names:
        raise BenchError(f"{MODELS} lists no model: is this a vLLM engine?")
    if not found:
        raise BenchError(f"--model {wanted}: the engine serves {', '.join(names)}")
    length = found[0].get("max_model_len")
    if not isinstance(length, int):
        raise BenchError(f"{MODELS} tells no max_model_len of {found[0].get('id')}: is this a vLLM engine?")
    return str(found[0]["id"]), length


def cache(page: str) -> dict[str, Any]:
    """What a page of metrics tells of the KV cache, as fields of `Engine`."""
    infos = [labels for labels, _ in samples(page, CACHE)]
    if not infos:
        return {}
    size, blocks = infos[0].get("block_size", ""), infos[0].get("num_gpu_blocks", "")
    return {
        "block_size": int(size) if size.isdecimal() else None,
        "kv_blocks": int(blocks) if blocks.isdecimal() else None,
        "prefix_caching": infos[0].get("enable_prefix_caching") == "True",
        "ranks": len(infos),
    }


def samples(page: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of every sample called exactly `name` in Prometheus' text format."""
    found = []
    for line in page.splitlines():
        if line.startswith((f"{name}{{", f"{name} ")):
            labels, _, value = line.removeprefix(name).rpartition(" ")
            found.append((dict(_LABEL.findall(labels)), float(value)))
    return found


async def _metrics(client: Client) -> str:
    """The page, or nothing where there is none."""
    try:
        return (await client.get("/metrics")).decode(errors="replace")
    except BenchError:
        return ""


async def _version(client: Client) -> str | None:
    try:
        return str(_object(await client.get("/version"), "/version").get("version"))
    except BenchError:
        return None


def _object(body: bytes, path: str) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise BenchError(f"{path} answers what is no JSON object: is this a vLLM engine?")
    return document
