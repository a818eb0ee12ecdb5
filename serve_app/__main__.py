"""`sentiment serve`, also `python -m serve_app`: serve a bundle in the foreground, on an embedded Ray or a cluster."""

from __future__ import annotations

import sys
from typing import Any

from sentiment.cli import Job
from sentiment.observability.status import LIBRARIES, status_line
from sentiment.settings import RaySettings, ServeSettings

_ABOUT = """Serve a bundle over HTTP until Ctrl-C.

  sentiment serve --model runs/demo/model/bundle
  sentiment serve --model runs/bert/bundle --port 9000 --gpus-per-replica 0.25 --max-replicas 4
  curl localhost:8000/predict -H 'content-type: application/json' -d '{"inputs": "what a lovely day"}'
  curl localhost:8000/score -X POST -T tweets.jsonl > scored.jsonl

A page to try it is at /, the description of all endpoints at /docs. In production, on a running Ray cluster:
serve deploy cluster/serve.yaml
"""


def run(settings: ServeSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Serve until interrupted."""
    with status_line(LIBRARIES):
        from sentiment.session import ray_session
        from serve_app.app import check, guard_ray, serve_until_interrupted

    check(settings)
    guard_ray(settings)
    with ray_session(ray_settings):
        serve_until_interrupted(settings, ray_settings)
    return {"stopped": True}


JOB = Job("serve", _ABOUT, ServeSettings, run)

if __name__ == "__main__":
    sys.exit(JOB.main())
