"""Load on a service, for `benchmarks/serve.py`: wrk for requests, curl for archives.

Both are programs in C that take little of a machine that they share with what they measure.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Each thread of wrk goes round the bodies from a place of its own: connections don't ask for the same text in step.
# Counters are plain numbers, one for each status, for wrk swaps keys and values of the tables that it hands over.
_SCRIPT = """
local threads = {}
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"

function setup(thread)
   threads[#threads + 1] = thread
   thread:set("number", #threads)
end

function init(args)
   requests = {}
   for body in io.lines(args[1]) do
      requests[#requests + 1] = wrk.format(nil, nil, nil, body)
   end
   math.randomseed(os.time() + 7919 * number)
   at = math.random(#requests)
end

function request()
   at = at % #requests + 1
   return requests[at]
end

function response(status)
   local name = "status_" .. status
   _G[name] = (_G[name] or 0) + 1
end

function done(summary, latency)
   local statuses = {}
   for status = 100, 599 do
      local count = 0
      for _, thread in ipairs(threads) do
         count = count + (thread:get("status_" .. status) or 0)
      end
      if count > 0 then
         statuses[#statuses + 1] = string.format('"%d": %d', status, count)
      end
   end
   local errors = summary.errors
   io.write(string.format(
      '{"duration_us": %d, "p50_us": %d, "p99_us": %d, "max_us": %d, "statuses": {%s}, ' ..
      '"errors": {"connect": %d, "read": %d, "write": %d, "timeout": %d}}\\n',
      summary.duration, latency:percentile(50), latency:percentile(99), latency.max, table.concat(statuses, ", "),
      errors.connect, errors.read, errors.write, errors.timeout))
end
"""
_THREADS = 2
# Answers that take longer are errors of their own to wrk; the service gives up before that.
_TIMEOUT_S = 40


def require_programs() -> None:
    """Find out that a program is missing before anything has started."""
    for program in ("wrk", "curl"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} isn't installed; it comes with the system: apt-get install {program}")


def wrk_version() -> str:
    """Of the load generator."""
    # It tells its version and then its usage, with an exit status of 1.
    said = subprocess.run(["wrk", "-v"], check=False, capture_output=True, text=True)
    return (said.stdout + said.stderr).split()[1]


def write_bodies(texts: Sequence[str], path: Path, per_request: int | None = None) -> Path:
    """Write the bodies of requests to /predict, one on a line.

    Args:
        texts: Real ones.
        path: File to write.
        per_request: Texts of a request, as a list; what is left over goes unused. None: a single text, as a string.
    """
    if per_request is None:
        inputs: list[Any] = list(texts)
    else:
        starts = range(0, len(texts) - per_request + 1, per_request)
        inputs = [list(texts[start : start + per_request]) for start in starts]
    path.write_text("".join(json.dumps({"inputs": one}) + "\n" for one in inputs))
    return path


def write_lines(texts: Sequence[str], path: Path) -> Path:
    """Write JSON lines for /score.

    Args:
        texts: Real ones.
        path: File to write.
    """
    path.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)))
    return path


def hit(url: str, bodies: Path, *, connections: int, seconds: int) -> dict[str, Any]:
    """Ask for predictions over some connections, each of which waits for its answer before it asks again.

    Args:
        url: Of the service.
        bodies: File of `write_bodies`.
        connections: Kept open.
        seconds: How long.

    Returns:
        Answers with 2xx a second, latencies in ms, how many answers there were of each status, and what failed.
    """
    script = bodies.with_suffix(".lua")
    script.write_text(_SCRIPT)
    threads = min(_THREADS, connections)
    load = [f"-t{threads}", f"-c{connections}", f"-d{seconds}s", f"--timeout={_TIMEOUT_S}s"]
    command = ["wrk", *load, f"--script={script}", f"{url}/predict", "--", str(bodies)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(said.splitlines()[-1])
    answered = sum(count for status, count in found["statuses"].items() if status.startswith("2"))
    if not answered:
        raise SystemExit(f"{url} answered nothing with 2xx: {found}")
    return {
        "requests_per_s": round(answered / (found["duration_us"] / 1e6), 1),
        **{f"{name}_ms": round(found[f"{name}_us"] / 1e3, 2) for name in ("p50", "p99", "max")},
        "statuses": found["statuses"],
        "errors": {kind: count for kind, count in found["errors"].items() if count},
    }


def upload(url: str, lines: Path) -> dict[str, Any]:
    """Stream an archive through /score.

    Args:
        url: Of the service.
        lines: File of `write_lines`.

    Returns:
        Texts and how many of them a second, from the connection to the last answer.
    """
    scored = lines.with_suffix(".scored")
    # -T reads the file piece by piece, and would make it a PUT; a shell's proxy is none for loopback.
    how = ["-sS", "--fail", "--noproxy", "*", "-X", "POST", "-H", "Content-Type: application/x-ndjson"]
    command = ["curl", *how, "-T", str(lines), "-o", str(scored), "-w", "%{time_total}", f"{url}/score"]
    elapsed_s = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    answers = [json.loads(line) for line in scored.read_text().splitlines()]
    sent = len(lines.read_text().splitlines())
    if len(answers) != sent or any("error" in answer for answer in answers):
        raise SystemExit(f"/score gave {len(answers)} answers to {sent} lines, or errors among them: {scored}")
    return {"texts": sent, "elapsed_s": round(elapsed_s, 3), "texts_per_s": round(sent / elapsed_s, 1)}
