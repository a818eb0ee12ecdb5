"""`python -m serve_app`: serve a model in the foreground, on a Ray of its own or on the cluster that it is given."""

from __future__ import annotations

import os
import sys
from typing import Any

from sentiment.cli import Job
from sentiment.settings import RaySettings, ServeSettings

_ABOUT = """Serve a model over HTTP until Ctrl-C.

  python -m serve_app --model runs/demo/model/bundle
  python -m serve_app --model runs/bert/bundle --port 9000 --gpus-per-replica 0.25 --max-replicas 4
  curl localhost:8000/predict -H 'content-type: application/json' -d '{"inputs": "what a lovely day"}'
  curl localhost:8000/score -X POST -T tweets.jsonl > scored.jsonl

A page to try it is at /, the description of all endpoints at /docs. On a cluster that is there already, and for good:
serve deploy cluster/serve.yaml
"""


def run(settings: ServeSettings, ray_settings: RaySettings) -> dict[str, Any]:
    """Serve until interrupted."""
    from sentiment.session import ray_session
    from serve_app.foreground import check, serve_until_interrupted

    check(settings)
    # Else Ctrl-C takes 30 s behind HAProxy: so long a replica waits for load balancers to forget it.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1")
    with ray_session(ray_settings):
        serve_until_interrupted(settings, ray_settings)
    return {"stopped": True}


JOB = Job(
    name="serve",
    about=_ABOUT,
    settings=ServeSettings,
    run=run,
    program="python -m serve_app",
)

if __name__ == "__main__":
    sys.exit(JOB.main())
