import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Le
from pydantic import SecretStr, ValidationError

from nebula_router.config import Settings
from nebula_router.reference import Setting, as_toml, page, settings
from nebula_router.sources import ConfigError, load

ROOT = Path(__file__).parents[1]
ROWS = list(settings())
POLICIES = ["kv", "round_robin", "random", "least_loaded", "power_of_two", "session"]
BOUNDED = [
    (row, bound, step)
    for row in ROWS
    for meta in row.field.metadata
    for bound, step in ([(meta.ge, -1)] if isinstance(meta, Ge) else [(meta.le, 1)] if isinstance(meta, Le) else [])
]
Write = Callable[[str], Path]


@pytest.fixture
def toml(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "gateway.toml"
        file.write_text(text)
        return file

    return write


def build(row: Setting, value: object) -> Settings:
    return Settings.model_validate({row.group: {row.name: value}})


def test_flag_beats_environment_beats_file_beats_default(toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml('[route]\npolicy = "random"\nseed = 7\nbreaker_failures = 9\n')
    assert load(file=file).route.policy == "random"
    monkeypatch.setenv("NEBULA_ROUTE__POLICY", "least_loaded")
    monkeypatch.setenv("NEBULA_ROUTE__SEED", "8")
    assert load(file=file).route.policy == "least_loaded"
    route = load({"route": {"policy": "session"}}, file).route
    assert (route.policy, route.seed, route.breaker_failures) == ("session", 8, 9)
    assert route.breaker_open_ms == Settings().route.breaker_open_ms


def test_the_environment_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEBULA_ROUTE__POLICY", "random")
    assert load(environment=False) == Settings()


def test_engines_from_each_source(toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml('[[engine]]\nurl = "http://a:8000/"\nname = "blue"\nranks = 2\n[[engine]]\nurl = "https://b"\n')
    assert [(e.name, e.url, e.ranks) for e in load(file=file).gateway.engines] == [
        ("blue", "http://a:8000", 2),
        ("b:443", "https://b", 1),
    ]
    monkeypatch.setenv("NEBULA_GATEWAY__ENGINES", "http://c:8000, http://[::1]:8000")
    assert [e.name for e in load(file=file).gateway.engines] == ["c:8000", "[::1]:8000"]
    monkeypatch.setenv("NEBULA_GATEWAY__ENGINES", '[{"url": "http://d", "ranks": 4}]')
    assert [(e.name, e.ranks) for e in load(file=file).gateway.engines] == [("d:80", 4)]
    flags = {"gateway": {"engines": ["http://e:8000"]}}
    assert [e.name for e in load(flags, file).gateway.engines] == ["e:8000"]


@pytest.mark.parametrize("text", ['{"gpt-4": "tiny"}', "gpt-4=tiny", "gpt-4 = tiny", ["gpt-4=tiny"], {"gpt-4": "tiny"}])
def test_model_aliases_as_text(text: object) -> None:
    assert load({"gateway": {"model_aliases": text}}).gateway.model_aliases == {"gpt-4": "tiny"}


@pytest.mark.parametrize(
    ("text", "unknown", "meant"),
    [
        ("[route]\npolcy = 'kv'", "route.polcy", "route.policy"),
        ("policy = 'kv'", "policy", "route.policy"),
        ("[rout]\npolicy = 'kv'", "rout", "route"),
        ("[[engines]]\nurl = 'http://a'", "engines", "engine"),
        ("[gateway]\nretries = 1", "gateway.retries", "upstream.retries"),
        ("[[engine]]\nurl = 'http://a'\nrank = 2", "gateway.engines.0.rank", "ranks"),
    ],
)
def test_an_unknown_name_in_a_file_is_refused_with_the_nearest(
    text: str, unknown: str, meant: str, toml: Write
) -> None:
    file = toml(text)
    with pytest.raises(ConfigError) as caught:
        load(file=file)
    assert str(caught.value) == f"{file}: unknown setting {unknown}; did you mean {meant}?"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NEBULA_ROUTE_POLICY", "NEBULA_ROUTE__POLICY"),
        ("NEBULA_POLICY", "NEBULA_ROUTE__POLICY"),
        ("NEBULA_GATEWAY__LISTN", "NEBULA_GATEWAY__LISTEN"),
    ],
)
def test_an_unknown_name_in_the_environment_is_refused_with_the_nearest(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "kv")
    with pytest.raises(ConfigError, match=f"^environment: unknown setting {name}; did you mean {meant}\\?$"):
        load()


@pytest.mark.parametrize(
    "name",
    [
        "NEBULA_SERVICE_HOST",
        "NEBULA_ROUTER_SERVICE_PORT_HTTP",
        "NEBULA_ROUTER_PORT",
        "NEBULA_PORT_8081_TCP",
        "NEBULA_ROUTER_PORT_8081_TCP_ADDR",
    ],
)
def test_names_that_kubernetes_sets_are_passed_over(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:8081")
    assert load() == Settings()


@pytest.mark.parametrize(("row", "bound", "step"), BOUNDED, ids=lambda value: getattr(value, "dotted", str(value)))
def test_each_bound_is_allowed_and_one_beyond_is_refused(row: Setting, bound: float, step: int) -> None:
    assert getattr(getattr(build(row, bound), row.group), row.name) == bound
    with pytest.raises(ValidationError):
        build(row, bound + step)


@pytest.mark.parametrize("row", [row for row in ROWS if "number" in row.values], ids=lambda row: row.dotted)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(row: Setting, value: float) -> None:
    with pytest.raises(ValidationError):
        build(row, value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.dotted)
def test_each_setting_is_explained_and_bounded(row: Setting) -> None:
    assert row.help.endswith(".")
    is_number = row.values.startswith(("integer", "number"))
    assert not is_number or " to " in row.values


def test_no_two_settings_of_one_command_share_a_flag() -> None:
    for groups in ({"gateway", "route", "upstream"}, {"sim"}):
        flags = [flag for row in ROWS if row.group in groups for flag in row.flags]
        assert len(flags) == len(set(flags))


@pytest.mark.parametrize(
    "url",
    [
        "h:8000",
        "ftp://h",
        "http://",
        "http:///x",
        "http://h:99999",
        "http://h:0",
        "http://a b:1",
        'http://a"b:80',
        "http://a<b",
        "http://a,b:80",
        "http://h:",
        "http://[::1]b:80",
        "http://[1:2]:80",
        "http://h/v1",
        "http://h?x=1",
    ],
)
def test_an_engine_url_that_is_none_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected http://host:port, for example http://127\.0\.0\.1:8000") as caught:
        load({"gateway": {"engines": [url]}})
    assert str(caught.value).startswith("--engine: gateway.engines.0.url")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("engines", "what"),
    [
        (["http://a:1", "http://a:1/"], "the name a:1"),
        ([{"url": "http://a:1", "name": "x"}, {"url": "http://b:1", "name": "x"}], "the name x"),
        ([{"url": "http://a:1", "name": "x"}, {"url": "http://a:1", "name": "y"}], "the URL http://a:1"),
    ],
)
def test_two_engines_that_cannot_be_told_apart_are_refused(engines: list[Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load({"gateway": {"engines": engines}})


@pytest.mark.parametrize("listen", ["", "8081", ":8081", "host", "h:99999", "h:-1", "h:p", "::1:80", "http://h:1"])
def test_a_listen_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"expected host:port, for example 127\.0\.0\.1:8081"):
        load({"gateway": {"listen": listen}})


@pytest.mark.parametrize(
    ("listen", "address"), [("0.0.0.0:80", ("0.0.0.0", 80)), ("[::]:0", ("::", 0)), ("my-host:1", ("my-host", 1))]
)
def test_listen_address(listen: str, address: tuple[str, int]) -> None:
    assert load({"gateway": {"listen": listen}}).gateway.address == address


def test_every_mistake_is_named_where_it_is(toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml("[route]\ntree_max_mb = 0\n")
    monkeypatch.setenv("NEBULA_UPSTREAM__RETRIES", "many")
    with pytest.raises(ConfigError) as caught:
        load({"route": {"policy": "kvv"}}, file)
    assert str(caught.value).splitlines() == [
        f"--policy: route.policy = 'kvv': expected one of {', '.join(POLICIES)}; did you mean kv?",
        f"{file}: route.tree_max_mb = 0: expected integer, 1 to 65536",
        "NEBULA_UPSTREAM__RETRIES: upstream.retries = 'many': expected integer, 0 to 16",
    ]


@pytest.mark.parametrize(
    ("content", "what"), [(b"a = ", "is not TOML"), (b"a = '\xff'", "is not UTF-8"), (None, "cannot be read")]
)
def test_a_file_that_cannot_be_used(content: bytes | None, what: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{file}: {what}"):
        load(file=file)


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEBULA_GATEWAY__API_KEYS", "hush-1,hush-2")
    monkeypatch.setenv("NEBULA_GATEWAY__ADMIN_TOKEN", "hush-3")
    settings_ = load()
    assert [key.get_secret_value() for key in settings_.gateway.api_keys] == ["hush-1", "hush-2"]
    assert settings_.gateway.admin_token == SecretStr("hush-3")
    for shown in (repr(settings_), settings_.model_dump_json(), as_toml(settings_), settings_.core_json().decode()):
        assert "hush" not in shown


@pytest.mark.parametrize(
    "gateway",
    [
        {"api_keys": ["hush", ""]},
        {"api_keys": '["hush"'},
        {"admin_token": ["hush"]},
        {"engines": ["http://u:hush@h"]},
    ],
)
def test_an_error_about_a_secret_does_not_show_it(gateway: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"gateway": gateway})
    assert "hush" not in str(caught.value)
    with pytest.raises(ValidationError) as raw:
        Settings(gateway=gateway)
    assert "hush" not in str(raw.value)


def test_an_empty_key_does_not_open_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEBULA_GATEWAY__API_KEYS", "")
    with pytest.raises(ConfigError, match="NEBULA_GATEWAY__API_KEYS"):
        load()


EVENTS = {
    "bind": None,
    "replay_timeout_ms": 5000,
    "replay_tries": 5,
    "replay_backoff_ms": 500,
    "silence_ms": 10000,
    "held_batches": 10000,
    "held_bytes": 67108864,
    "receive_batches": 10000,
    "reconnect_ms": 100,
    "reconnect_max_ms": 5000,
}


def test_the_core_gets_every_field_in_its_units() -> None:
    tree = Settings.model_validate({"gateway": {"engines": ["http://a:1"]}, "route": {"seed": 3, "route_ttl_s": 1.5}})
    assert json.loads(tree.core_json()) == {
        "route": {
            "policy": "kv",
            "text_block_bytes": 64,
            "token_block_tokens": 16,
            "bytes_per_token": 4.0,
            "tree_max_bytes": 268435456,
            "route_ttl_ms": 1500,
            "event_route_ttl_ms": 5000,
            "rank_kv_tokens": None,
            "cpu_credit": 0.75,
            "storage_credit": 0.25,
            "shadow_policy": None,
            "uncached_weight": 2.5,
            "decode_request_tokens": 24.0,
            "decode_resident_weight": 0.03,
            "pressure_tokens": 4000.0,
            "pressure_start": 0.9,
            "breaker_failures": 5,
            "breaker_open_ms": 5000,
        },
        "wire": {
            "connect_timeout_ms": 1000,
            "first_byte_timeout_ms": 1800000,
            "idle_timeout_ms": 300000,
            "pool_idle_ms": 4000,
            "pool_per_engine": 1024,
            "retries": 2,
            "ask_usage": True,
            "prefill_tokens_per_second": 8000.0,
            "probe_interval_ms": 1000,
            "probe_timeout_ms": 1500,
            "facts_interval_ms": 30000,
            "ca_file": None,
            "max_inflight": 8192,
            "fronts_routers": False,
            "trust_kv_transfer_params": False,
            "log_requests": True,
            "log_prompt_hashes": False,
            "decisions_kept": 1000,
            "tokens": {
                "model_assets": {},
                "read_engine_root": True,
                "segment_cache_bytes": 67108864,
                "tokenize_cache_bytes": 33554432,
                "tokenize_timeout_ms": 2000,
                "forward_tokens": True,
            },
            "events": EVENTS,
            "seed": 3,
        },
        "fleet": {
            "engines": [
                {
                    "url": "http://a:1",
                    "name": "a:1",
                    "ranks": 1,
                    "events": "auto",
                    "events_replay": None,
                    "events_topic": "",
                }
            ],
            "aliases": {},
        },
    }


def test_without_a_seed_each_document_has_its_own() -> None:
    seeds = {json.loads(Settings().core_json())["wire"]["seed"] for _ in range(4)}
    assert len(seeds) == 4


def test_the_toml_of_settings_gives_the_same_settings(toml: Write) -> None:
    tree = load(
        {"gateway": {"engines": [{"url": "http://a:1", "ranks": 2}], "model_aliases": {"ä.b": 'c"d'}, "grace_s": 1.5}}
    )
    assert load(file=toml(as_toml(tree))) == tree


def test_a_blackholed_host_counts_as_unreachable() -> None:
    assert Settings().upstream.connect_timeout_ms < Settings().upstream.probe_timeout_ms


def test_the_page_of_settings_is_current() -> None:
    docs = ROOT / "docs" / "settings.md"
    assert docs.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_the_settings_in_the_readme_are_those_of_the_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| setting | flag | default | meaning |\n|---|---|---|---|\n")[2].partition("\n\n")[0]
    rows = {row.dotted: row for row in ROWS}
    shown = [tuple(cell.strip() for cell in line.strip("|").split("|"))[:3] for line in table.splitlines()]
    assert shown
    assert shown == [readme_cells(rows[name.strip("`")]) for name, _, _ in shown]


def readme_cells(row: Setting) -> tuple[str, str, str]:
    value = json.loads(row.default or "null")
    default = "none" if value is None else f"`{value}`" if isinstance(value, str) else f"{value:g}"
    return f"`{row.dotted}`", f"`{row.flags[0]}`" if row.flags else "none: a secret", default
