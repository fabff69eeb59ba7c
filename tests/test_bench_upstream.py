"""The fixed-reply engines."""

import json
import shutil
from pathlib import Path

import pytest

from nebula_router.bench import net, upstream
from nebula_router.bench.error import BenchError

# What nginx 1.22 answers.
STUB_STATUS = (
    "Active connections: 1 \nserver accepts handled requests\n 6 6 310331 \nReading: 0 Writing: 1 Waiting: 0 \n"
)


def test_requests_are_counted() -> None:
    assert upstream.parse_stub_status(STUB_STATUS) == 310331


def test_an_nginx_without_counters_is_reported() -> None:
    with pytest.raises(BenchError, match="no stub_status"):
        upstream.parse_stub_status("<html>404 Not Found</html>")


def test_the_reply_is_what_vllm_sends() -> None:
    reply = json.loads(upstream.chat_reply())
    assert reply["object"] == "chat.completion"
    assert reply["model"] == upstream.MODEL
    assert reply["choices"][0]["message"]["role"] == "assistant"


def test_a_backslash_of_the_reply_survives_nginx(tmp_path: Path) -> None:
    assert "\\\\n" in upstream.config(tmp_path, 8000)  # nginx itself reads \\n as \n


def test_a_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_named: None)
    with pytest.raises(BenchError, match=r"wrk is not installed.*apt-get install nginx-light wrk"):
        upstream.find("wrk")


@pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None, reason="nginx is not installed"
)
def test_engines_answer_and_count(tmp_path: Path) -> None:
    with upstream.serve(tmp_path, engines=2) as engines:
        first, second = engines.ports
        before = engines.counts()
        answers = [net.ask(first, upstream.CHAT, b'{"model":"tiny"}') for _ in range(3)]
        assert {answer.body for answer in answers} == {upstream.chat_reply()}
        assert net.ask(second, "/nope").status == 404
        assert [late - early for early, late in zip(before, engines.counts(), strict=True)] == [3 + 1, 1 + 1]
        completion = json.loads(net.ask(first, upstream.COMPLETIONS, b'{"model":"tiny","prompt":[1]}').body)
        assert completion["object"] == "text_completion"
        assert json.loads(net.ask(second, "/v1/models").body)["data"][0]["id"] == upstream.MODEL
        assert net.ask(second, "/version").body.startswith(b'{"version":')
        assert net.ask(second, "/metrics").body.decode() == upstream.METRICS
        assert net.complaint(second, "/health") is None
    assert (net.complaint(second, "/health") or "").startswith("/health: ")
