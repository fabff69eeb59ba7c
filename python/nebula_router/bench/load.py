"""Sends the same requests as fast as the other side takes them: wrk, driven by a Lua script that is written here."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from nebula_router.bench import net, process
from nebula_router.bench.error import BenchError
from nebula_router.bench.upstream import find

MARK = "nebula-bench "
"""Starts the line that holds the results."""
TIMEOUT_S = 10
"""After this long without a reply, wrk counts a request as failed."""

SCRIPT = Template("""\
local bodies = {
$bodies
}
local messages = {}
local threads = 0
local turn = 0

-- Each thread starts elsewhere in the list, so that they do not walk through it in step.
function setup(thread)
  thread:set("first", threads * $stride)
  threads = threads + 1
end

function init()
  local headers = { ["Content-Type"] = "application/json" }
  for i, body in ipairs(bodies) do
    messages[i] = wrk.format("POST", "$path", headers, body)
  end
  turn = first
end

function request()
  turn = turn % #messages + 1
  return messages[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\\n$mark{"requests":%d,"us":%d,"p50_us":%d,"p99_us":%d,"max_us":%d,' ..
    '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
""")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of wrk saw."""

    requests: int
    """Whole responses, whatever their status."""
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: dict[str, int]
    """By kind, only those that occurred: connect, read, write, status (400 and above), timeout."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds

    @property
    def failed(self) -> int:
        """Requests without a good reply."""
        return sum(self.errors.values())


def script(path: str, bodies: Sequence[bytes]) -> str:
    """The Lua script that posts `bodies` to `path` in turn. They are ASCII JSON, so no long bracket can end early."""
    return SCRIPT.substitute(
        bodies="\n".join(f"[==[{body.decode('ascii')}]==]," for body in bodies),
        stride=max(1, len(bodies) // 4 + 1),
        path=path,
        mark=MARK,
    )


def send(port: int, lua: Path, connections: int, seconds: float) -> Sample:
    """Runs wrk against a server on loopback. A quarter of the cores, at least one, makes the load.

    Raises:
        BenchError: when wrk is missing or does not get through.
    """
    threads = min(connections, max(1, (os.cpu_count() or 1) // 4))
    duration = max(1, round(seconds))
    command = [
        find("wrk"),
        f"-t{threads}",
        f"-c{connections}",
        f"-d{duration}s",
        f"--timeout={TIMEOUT_S}s",
        f"--script={lua}",
        f"http://{net.HOST}:{port}",
    ]
    try:
        finished = process.run(command, timeout_s=duration + 3 * TIMEOUT_S)
    except subprocess.TimeoutExpired:
        message = f"wrk did not end {3 * TIMEOUT_S} s after its time"
        raise BenchError(message) from None
    if finished.returncode != 0:
        message = f"wrk failed: {(finished.stderr or finished.stdout).strip()[-300:]}"
        raise BenchError(message)
    return parse(finished.stdout)


def parse(stdout: str) -> Sample:
    """Reads what the script's `done` wrote at the end of wrk's own report.

    Raises:
        BenchError: when the line is not there.
    """
    line = next((line for line in reversed(stdout.splitlines()) if line.startswith(MARK)), None)
    if line is None:
        message = f"wrk printed no results: {stdout.strip()[-300:]}"
        raise BenchError(message)
    seen = json.loads(line.removeprefix(MARK))
    kinds = ("connect", "read", "write", "status", "timeout")
    return Sample(
        requests=seen["requests"],
        seconds=seen["us"] / 1e6,
        p50_ms=seen["p50_us"] / 1e3,
        p99_ms=seen["p99_us"] / 1e3,
        max_ms=seen["max_us"] / 1e3,
        errors={kind: seen[kind] for kind in kinds if seen[kind]},
    )
