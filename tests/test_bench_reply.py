"""The response reader and the check of a stream's bytes."""

import pytest
from xxhash import xxh3_64_hexdigest

from nebula_router.bench.reply import FramingError, Reply, fault

# The end of a stream of vLLM 0.32, with the head of the same response, as captured.
CAPTURED = (
    b"HTTP/1.1 200 OK\r\ndate: Fri, 20 Nov 2026 15:08:02 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\ntransfer-encoding: chunked\r\n\r\n"
    b'153\r\ndata: {"id":"chatcmpl-a30964f5848bdb5b","object":"chat.completion.chunk","created":1795187282,'
    b'"model":"tiny","choices":[{"index":0,"delta":{"content":"\\n"},"logprobs":null,"finish_reason":"length",'
    b'"stop_reason":null,"token_ids":null}],"usage":{"prompt_tokens":11,"total_tokens":17,"completion_tokens":6,'
    b'"completion_tokens_details":null}}\n\n\r\n'
    b'ed\r\ndata: {"id":"chatcmpl-a30964f5848bdb5b","object":"chat.completion.chunk","created":1795187282,'
    b'"model":"tiny","choices":[],"usage":{"prompt_tokens":11,"total_tokens":17,"completion_tokens":6},'
    b'"system_fingerprint":"vllm-0.32.0-5d37433c"}\n\n\r\n'
    b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)
EVENTS = b'data: {"choices":[]}\n\ndata: {"choices":[]}\n\n'


def signed(events: bytes, *, hashed: bytes | None = None, length: int | None = None) -> bytes:
    """A stream as the simulated engine signs it, or with a wrong signature."""
    digest = xxh3_64_hexdigest(events if hashed is None else hashed)
    line = f": xxh3={digest} bytes={len(events) if length is None else length}\n\n"
    return events + line.encode() + b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 2, 7, 100, len(CAPTURED)])
def test_a_captured_stream_is_read_in_any_split(size: int) -> None:
    reply = Reply()
    added = 0
    done = []
    for at in range(0, len(CAPTURED), size):
        added += reply.feed(CAPTURED[at : at + size])
        done.append(reply.done)
    assert done == [False] * (len(done) - 1) + [True]
    assert reply.keep_alive
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert added == len(reply.body) == 0x153 + 0xED + 0xE
    assert reply.body.count(b"\n\n") == 3
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert fault(reply.body) == "no_checksum"


def test_a_length_ends_the_body() -> None:
    reply = Reply()
    assert reply.feed(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: Close\r\n\r\nbu") == 2
    assert reply.feed(b"sy") == 2
    assert reply.done
    assert reply.status == 503
    assert not reply.keep_alive


def test_an_empty_body_is_whole() -> None:
    reply = Reply()
    reply.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert reply.done


def test_without_a_length_the_end_of_the_connection_ends_the_body() -> None:
    reply = Reply()
    reply.feed(b"HTTP/1.1 200 OK\r\n\r\nall")
    assert not reply.done
    assert reply.close()
    assert bytes(reply.body) == b"all"
    assert not reply.keep_alive


def test_a_chunked_body_without_its_last_chunk_is_cut() -> None:
    reply = Reply()
    reply.feed(CAPTURED[:-5])
    assert not reply.close()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_response_is_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        Reply().feed(data)


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (signed(EVENTS), None),
        (signed(b""), None),
        (signed(b": a comment\n\n" + EVENTS), None),
        (signed(EVENTS, hashed=EVENTS.replace(b"[]", b"{}", 1)), "checksum"),
        (signed(EVENTS, length=len(EVENTS) + 1), "length"),
        (signed(EVENTS)[1:], "length"),
        (EVENTS + b"data: [DONE]\n\n", "no_checksum"),
        (signed(EVENTS).removesuffix(b"data: [DONE]\n\n"), "no_done"),
        (EVENTS, "no_done"),
        (b"", "no_done"),
        (EVENTS + b'data: {"error":{"message":"the engine went away","code":502}}\n\n', "error_frame"),
    ],
)
def test_a_stream_is_checked_to_the_last_byte(body: bytes, wrong: str | None) -> None:
    assert fault(body) == wrong
