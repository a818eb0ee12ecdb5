"""`python -m serve_app`: serve a model in the foreground, on a Ray of its own or on the cluster that it is given."""

from __future__ import annotations

import socket
import sys
from typing import Any

from sentiment.cli import Job
from sentiment.errors import ResourceError
from sentiment.settings import RaySettings, ServeSettings

_ABOUT = """Serve a model over HTTP until Ctrl-C.

  python -m serve_app --model runs/demo/model/bundle
  python -m serve_app --model runs/bert/bundle --port 9000 --gpus-per-replica 0.25 --max-replicas 4
  curl localhost:8000/predict -H 'content-type: application/json' -d '{"inputs": "what a lovely day"}'
  curl localhost:8000/score -T tweets.jsonl > scored.jsonl

A page to try it is at /, the description of all endpoints at /docs. On a cluster that is there already, and for good:
serve deploy cluster/serve.yaml
"""


def run(settings: ServeSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Serve until interrupted."""
    from sentiment.session import ray_session
    from serve_app.foreground import serve_until_interrupted

    _refuse_taken(settings.host, settings.port)
    with ray_session(ray_settings):
        serve_until_interrupted(settings)
    return {"stopped": True}


def _refuse_taken(host: str, port: int) -> None:
    """Find out before Ray starts; its own error comes late and long."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ResourceError(f"can't listen at {host}:{port} ({error.strerror}): try another --port") from None


JOB = Job(
    name="serve",
    about=_ABOUT,
    settings=ServeSettings,
    run=run,
    program="python -m serve_app",
)

if __name__ == "__main__":
    sys.exit(JOB.main())
