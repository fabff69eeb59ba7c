import json
import shlex
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nebula_router.cli import main
from nebula_router.config import Settings
from nebula_router.reference import settings
from nebula_router.sources import load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMANDS = [
    *("gateway", "up", "sim", "simulate", "bench", "explain", "top", "router", "node", "scheduler", "config"),
    *("status", "models", "nodes", "placements", "load", "scale", "drain", "unload"),
]
Run = Callable[..., "Ran"]


class Ran:
    def __init__(self, status: object, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str, command: Callable[[], Any] | None = None) -> Ran:
        monkeypatch.setattr(sys, "argv", ["nebula", *arguments])
        with pytest.raises(SystemExit) as caught:
            (command or main)()
        return Ran(caught.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, Any]]:
    """What the commands that serve were about to serve: settings, and the fleet behind the gateway."""
    calls: list[tuple[Settings, Any]] = []
    module = ModuleType("nebula_router.gateway.serve")
    module.run = lambda settings, fleet: calls.append((settings, fleet))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def refused(ran: Ran) -> str:
    """The one line of a command that was called wrongly."""
    assert (ran.status, ran.out) == (2, "")
    line, end = ran.err.split("\n")
    assert end == ""
    return line


def test_help_lists_the_commands(run: Run) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        ran = run(*arguments)
        assert ran.status == 0
        assert all(f" {command} " in ran.out for command in COMMANDS)


@pytest.mark.parametrize(
    ("command", "groups"), [("gateway", {"gateway", "route", "upstream"}), ("sim", {"sim"})], ids=["gateway", "sim"]
)
def test_help_of_a_command_lists_the_flag_of_each_setting_but_secrets(command: str, groups: set[str], run: Run) -> None:
    ran = run(command, "--help")
    assert ran.status == 0
    assert "Examples" in ran.out
    for row in settings():
        if row.group in groups and not row.is_secret:
            assert row.flags[0] in ran.out
    assert "--api-keys" not in ran.out


@pytest.mark.parametrize(
    "command",
    [
        ["up"],
        ["simulate"],
        ["explain"],
        ["top"],
        ["node"],
        ["scheduler"],
        ["status"],
        ["models"],
        ["nodes"],
        ["placements"],
        ["load"],
        ["scale"],
        ["drain"],
        ["unload"],
        ["config"],
        ["config", "show"],
        ["router"],
        ["config", "check"],
        ["config", "docs"],
    ],
)
def test_each_command_has_help_with_an_example(command: list[str], run: Run) -> None:
    ran = run(*command, "--help")
    assert ran.status == 0
    assert "nebula " + " ".join(command) in ran.out.partition("Examples")[2]


def test_each_script_of_the_package_is_there() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == {"nebula", "nebula-gateway", "nebula-router", "nebula-node", "nebula-scheduler"}
    for target in project["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name))


def test_version(run: Run) -> None:
    ran = run("--version")
    assert ran.status == 0
    assert ran.out.startswith("nebula-router 0.")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["gatewa"], "nebula: No such command 'gatewa'. Did you mean 'gateway'?"),
        (
            ["gateway", "--polcy", "kv"],
            "nebula gateway: No such option: --polcy (Possible options: --policy, --shadow-policy)",
        ),
        (["gateway", "--grace-s"], "nebula: Option '--grace-s' requires an argument."),
        (["gateway", "--grace-s", "-1"], "nebula: --grace-s: gateway.grace_s = '-1': expected number, 0 to 3600"),
        (["sim", "--speed", "fast"], "nebula: --speed: sim.speed = 'fast': expected number, 0 to 1000000"),
        (
            ["gateway", "--log-format", "xml"],
            "nebula: --log-format: gateway.log_format = 'xml': expected one of text, json",
        ),
        (
            ["gateway", "--engine", "10.0.0.5:8000"],
            (
                "nebula: --engine: gateway.engines.0.url = '10.0.0.5:8000': "
                "expected http://host:port, for example http://127.0.0.1:8000"
            ),
        ),
        (["gateway", "--api-keys", "hush"], "nebula gateway: No such option: --api-keys"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(arguments: list[str], line: str, run: Run) -> None:
    assert refused(run(*arguments)) == line


def test_gateway_serves_the_settings_of_its_flags(run: Run, served: list[tuple[Settings, Any]], tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[route]\nseed = 4\n")
    flags = ["--listen-addr", "0.0.0.0:0", "--engine", "http://a:1", "--engine", "http://b:1", "--no-log-requests"]
    arguments = [*flags, "--policy", "random", "--config", str(file)]
    assert run("gateway", *arguments).status == 0
    assert run(*arguments, command=import_module("nebula_router.cli").main_gateway).status == 0
    expected = load(
        {
            "gateway": {"listen": "0.0.0.0:0", "engines": ["http://a:1", "http://b:1"], "log_requests": False},
            "route": {"policy": "random", "seed": 4},
        }
    )
    assert served == [(expected, None)] * 2


def test_up_starts_simulated_engines_and_prints_a_curl_line(run: Run, served: list[tuple[Settings, Any]]) -> None:
    flags = ["--speed", "10", "--model", "it's", "--fault", "slow;ms=5", "--fault", "hang"]
    ran = run("up", "--sim", "2", "--listen", "0.0.0.0:0", *flags)
    assert ran.status == 0
    [(tree, fleet)] = served
    assert tree.gateway.listen == "0.0.0.0:0"
    assert (fleet.node.gpus, fleet.node.engine, fleet.node.on_stop) == ("fake:2x80GiB", "sim", "stop")
    [ask] = fleet.asks
    assert (ask.model_uid, ask.model_name) == ("it-s", "it's")
    pool = ask.pool(None)
    assert (pool.replicas, pool.engine_type) == (2, "sim")
    assert pool.extra_args == ("--speed", "10.0", "--fault", "slow;ms=5", "--fault", "hang")
    [curl] = [line for line in ran.out.splitlines() if "curl" in line]
    words = shlex.split(curl)
    assert "http://127.0.0.1:0/v1/chat/completions" in words
    assert json.loads(words[-1])["model"] == "it's"


def test_up_with_keys_prints_a_curl_line_that_sends_one(
    run: Run, served: list[tuple[Settings, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEBULA_GATEWAY__API_KEYS", "hush")
    ran = run("up", "--listen", "127.0.0.1:0")
    assert served[0][1].asks[0].pool(None).replicas == 4
    assert "Authorization: Bearer" in ran.out
    assert "hush" not in ran.out


def test_up_with_files_starts_real_engines(
    run: Run, served: list[tuple[Settings, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("qwen", "llama"):
        (tmp_path / f"{name}.yaml").write_text(f"model: org/{name}-7B\n")
    files = [word for name in ("qwen", "llama") for word in ("--engine-config-path", str(tmp_path / f"{name}.yaml"))]
    ran = run("up", *files, "--listen", "127.0.0.1:0", "--gpus", "fake:2x24GiB")
    assert (ran.status, ran.out) == (0, "")
    [(_, fleet)] = served
    assert [(ask.model_uid, ask.model_name) for ask in fleet.asks] == [
        ("qwen", "org/qwen-7B"),
        ("llama", "org/llama-7B"),
    ]
    assert (fleet.node.gpus, fleet.node.engine, fleet.simulates) == ("fake:2x24GiB", "vllm", False)
    fleet.when_placed()
    assert '"model": "org/qwen-7B"' in capsys.readouterr().out
    missing = refused(run("up", "--engine-config-path", str(tmp_path / "none.yaml")))
    assert missing.endswith("none.yaml: cannot be read: No such file or directory")
    both = refused(run("up", "--sim", "2", *files))
    assert both.startswith("nebula: --sim and --engine-config-path: engines are simulated or real")


def test_an_address_that_is_taken_is_refused(run: Run, served: list[tuple[Settings, Any]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused(run("gateway", "--listen", listen))
    assert line == f"nebula: cannot serve on {listen}: Address already in use; --listen HOST:PORT takes another"
    assert served == []


def test_config_show(run: Run) -> None:
    assert json.loads(run("config", "show", "--json").out)["route"]["policy"] == "kv"
    assert tomllib.loads(run("config", "show").out)["route"]["policy"] == "kv"


def test_config_check(run: Run, tmp_path: Path) -> None:
    good = tmp_path / "good.toml"
    good.write_text('[[engine]]\nurl = "http://a:1"\n')
    assert run("config", "check", str(good)).out == f"{good}: good\n"
    bad = tmp_path / "bad.toml"
    bad.write_text("[route]\npolcy = 1\n")
    line = refused(run("config", "check", str(bad)))
    assert line == f"nebula: {bad}: unknown setting route.polcy; did you mean route.policy?"


def test_config_docs(run: Run) -> None:
    assert run("config", "docs").out.startswith("# Settings\n")
