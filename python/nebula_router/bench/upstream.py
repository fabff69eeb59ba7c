"""Engines that answer at once with a fixed reply: one nginx each, on loopback.

What is left of a request's time and CPU is then the router's and the load generator's. Each engine is an nginx of its
own, so that they share no worker and each counts its requests (`stub_status`, which costs nothing).
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nebula_router.bench import net, process
from nebula_router.bench.error import BenchError

DATA = Path(__file__).parent / "data"
MODEL = "tiny"
"""The model that the fixed replies name."""
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
READY_S = 10.0

METRICS = f"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="{MODEL}"}} 0.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="{MODEL}"}} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="{MODEL}"}} 0.0
"""

CONFIG = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    client_max_body_size 64m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {host}:{port} backlog=4096;
        location = {chat_path} {{ return 200 {chat}; }}
        location = {completions_path} {{ return 200 {completion}; }}
        location = /v1/models {{ return 200 {models}; }}
        location = /version {{ return 200 {version}; }}
        location = /health {{ return 200; }}
        location = /metrics {{ default_type text/plain; return 200 {metrics}; }}
        location = /stub_status {{ stub_status; }}
        location / {{ return 404 {missing}; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The running engines."""

    ports: tuple[int, ...]

    @property
    def urls(self) -> list[str]:
        """One base URL per engine."""
        return [f"http://{net.HOST}:{port}" for port in self.ports]

    def counts(self) -> list[int]:
        """Requests that each engine has answered so far, health probes and this question included."""
        return [parse_stub_status(net.ask(port, "/stub_status").body.decode()) for port in self.ports]


@contextmanager
def serve(folder: Path, engines: int = 4) -> Iterator[Upstream]:
    """Runs `engines` of them, with all their files in `folder`.

    Raises:
        BenchError: when nginx is missing or does not start.
    """
    nginx = find("nginx")
    with ExitStack() as stack:
        ports = []
        for i in range(engines):
            port = net.free_port()
            home = folder / f"engine-{i}"
            home.mkdir()
            (home / "nginx.conf").write_text(config(home, port))
            command = [nginx, "-p", str(home), "-e", str(home / "error.log"), "-c", str(home / "nginx.conf")]
            child = stack.enter_context(process.started(f"nginx, engine {i},", command))
            child.await_ready(partial(net.complaint, port, "/health"), READY_S)
            ports.append(port)
        yield Upstream(tuple(ports))


def find(program: str) -> str:
    """The path of nginx or wrk.

    Raises:
        BenchError: with the command that installs it.
    """
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        message = f"{program} is not installed; on Debian or Ubuntu: apt-get install nginx-light wrk"
        raise BenchError(message)
    return path


def chat_reply() -> bytes:
    """The fixed reply: what vLLM 0.32 answered to a short chat."""
    return (DATA / "chat.json").read_bytes().strip()


def config(folder: Path, port: int) -> str:
    """The nginx.conf of one engine."""
    return CONFIG.format(
        folder=folder,
        host=net.HOST,
        port=port,
        chat_path=CHAT,
        chat=_quoted(chat_reply().decode()),
        completions_path=COMPLETIONS,
        completion=_quoted((DATA / "completion.json").read_text().strip()),
        models=_quoted((DATA / "models.json").read_text().strip()),
        version=_quoted((DATA / "version.json").read_text().strip()),
        metrics=_quoted(METRICS),
        missing=_quoted('{"detail":"Not Found"}'),
    )


def _quoted(text: str) -> str:
    """An nginx string that stands for `text`. A dollar sign cannot be escaped there: it would start a variable."""
    if "$" in text:
        message = "a reply with a dollar sign cannot be written into nginx.conf"
        raise ValueError(message)
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def parse_stub_status(text: str) -> int:
    """The number of requests: the third of `accepts handled requests`.

    Raises:
        BenchError: when that is not what nginx printed.
    """
    found = re.search(r"^ \d+ \d+ (\d+) *$", text, re.MULTILINE)
    if found is None:
        message = f"nginx has no stub_status here: {text.strip()[:200]}"
        raise BenchError(message)
    return int(found[1])
