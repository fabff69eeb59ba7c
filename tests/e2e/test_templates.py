"""Chat templates give an engine's bytes: ours against vLLM's preparation and the rendering of ``transformers``."""

import datetime as dt
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.e2e.conversations import REQUESTS
from tests.e2e.engine import Environment

from nebula_router.core import content_format, render_chat

RENDER = Path(__file__).parent / "engine" / "render.py"
OURS = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
CONVERSATIONS = 200


class Engine:
    """vLLM and ``transformers`` in the engines' Python, one line at a time."""

    def __init__(self, environment: Environment) -> None:
        self.shipped = sorted(
            path
            for package in ("vllm", "transformers")
            for path in environment.python.parent.parent.glob(f"lib/python3.*/site-packages/{package}/**/*.jinja")
        )
        self.process = subprocess.Popen(
            [str(environment.python), str(RENDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )

    def ask(self, **line: Any) -> dict[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(line), file=self.process.stdin, flush=True)
        answer: dict[str, str] = json.loads(self.process.stdout.readline())
        return answer

    def prompt(self, template: str, request: dict[str, Any]) -> str | None:
        return self.ask(template=template, special_tokens=TOKENS, request=request).get("text")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def engine(environment: Environment) -> Iterator[Engine]:
    engine = Engine(environment)
    yield engine
    engine.close()


def our_prompt(template: str, request: dict[str, Any]) -> str | None:
    try:
        return render_chat(template, json.dumps(TOKENS).encode(), json.dumps(request).encode())
    except ValueError:
        return None


def both(engine: Engine, template: str, request: dict[str, Any]) -> tuple[str | None, str | None]:
    """Our prompt and the engine's, made on one day."""
    while True:
        day = dt.datetime.now().astimezone().date()
        prompts = our_prompt(template, request), engine.prompt(template, request)
        if dt.datetime.now().astimezone().date() == day:
            return prompts


def compare(engine: Engine, template: str) -> Counter[str]:
    """Holds generated conversations against the engine; how many were rendered and refused."""
    seen: Counter[str] = Counter()

    @settings(
        max_examples=CONVERSATIONS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(REQUESTS)
    def alike(request: dict[str, Any]) -> None:
        ours, theirs = both(engine, template, request)
        assert ours == theirs
        seen["refused" if theirs is None else "rendered"] += 1

    alike()
    return seen


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_a_template_of_each_family_renders_as_in_the_engine(engine: Engine, path: Path, figures: list[str]) -> None:
    seen = compare(engine, path.read_text(encoding="utf-8"))
    figures.append(f"{path.stem}: {seen['rendered']} prompts alike, {seen['refused']} refused by both")
    assert seen["rendered"] > CONVERSATIONS / 10


def test_every_template_that_ships_with_the_engine_renders_as_there(engine: Engine, figures: list[str]) -> None:
    assert engine.shipped
    for path in engine.shipped:
        seen = compare(engine, path.read_text(encoding="utf-8"))
        figures.append(f"{path.stem}: {seen['rendered']} prompts alike, {seen['refused']} refused by both")


def test_the_form_of_a_message_is_the_one_that_vllm_detects(engine: Engine) -> None:
    templates = [path.read_text(encoding="utf-8") for path in (*OURS, *engine.shipped)] + FORMS
    for template in templates:
        assert content_format(template) == engine.ask(template=template)["format"], template


LOOPS = "{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}"
IN_MACRO = "{% macro show(it) %}{% for c in it %}{{ c }}{% endfor %}{% endmacro %}"
FORMS = [
    LOOPS,
    "{% for m in messages %}{% for c in m['content'] %}{{ c }}{% endfor %}{% endfor %}",
    "{% for m in messages[1:] %}{% for c in m.content | list %}{{ c }}{% endfor %}{% endfor %}",
    "{% set ms = messages %}{% for m in ms %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}",
    "{% set ms = messages[1:] %}{% set more = ms %}{% for m in more %}{% for c in m.content %}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for c in m.parts %}{{ c }}{% endfor %}{% endfor %}",
    "{% for m in other %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% set content = m.content %}{% for c in content %}{{ c }}{% endfor %}{% endfor %}",
    "{% for a, b in messages %}{% for c in a.content %}{{ c }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for a, b in m.content %}{{ a }}{% endfor %}{% endfor %}",
    "{% set ns = namespace() %}{% set ns.all = messages %}" + LOOPS,
    IN_MACRO + "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
    IN_MACRO + "{% for m in messages %}{{ show(it=m.content) }}{% endfor %}",
    IN_MACRO + "{% for m in messages %}{{ show(m.other) }}{% endfor %}",
    IN_MACRO.replace("it", "content") + "{% for m in messages %}{{ show(1) }}{% endfor %}",
]
