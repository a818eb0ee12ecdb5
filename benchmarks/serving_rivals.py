#!/usr/bin/env python
"""Other ways to serve a bundle, which the service is held against: each answers POST /predict until SIGTERM.

  python benchmarks/serving_rivals.py serve-default  --model BUNDLE --port 9000
  python benchmarks/serving_rivals.py serve-two-hops --model BUNDLE --port 9000
  python benchmarks/serving_rivals.py uvicorn-bare   --model BUNDLE --port 9000
  python benchmarks/serving_rivals.py litserve       --model BUNDLE --port 9000    # if it is installed

serve-default   Ray Serve as it comes: a FastAPI ingress that calls a model deployment, all settings by default.
serve-two-hops  the same, but replicas may have 512 requests at a time; by default they take five, and the router looks
                after those that wait every 25 to 500 ms.
uvicorn-bare    FastAPI as one writes it: requests in its thread pool, a text each, torch's own number of threads.
litserve        LitServe with its dynamic batches: up to 64 texts, gathered for 10 ms.

All take `{"inputs": "a text"}` and answer in the service's own form. Annotations aren't postponed in this module: Ray
carries the application to its replicas, and FastAPI and LitServe have to find the types there.
"""

import argparse
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle

sys.path.insert(0, str(Path(__file__).parents[1]))  # The code lies beside it, installed or not.

from sentiment.devices import limit_threads
from sentiment.predictor import Predictor

Answer = list[list[dict[str, str | float]]]


class Text(BaseModel):
    """A request."""

    inputs: str


class Model:
    """A warm model that answers in Hugging Face's form."""

    def __init__(self, bundle: str, threads: int | None = None) -> None:
        if threads is not None:
            limit_threads(threads)
        self._predictor = Predictor.load(bundle, use_gpu=False)
        self._predictor.warm_up()

    def answers(self, texts: list[str]) -> list[Answer]:
        """One answer a text, with its likelier label."""
        found = self._predictor.predict(texts)
        return [[[{"label": one.label, "score": one.score}] if one else []] for one in found]

    def __call__(self, text: str) -> Answer:
        """Classify one text."""
        return self.answers([text])[0]


app = FastAPI()


class Ingress:
    """HTTP in front of a deployment of `Model`."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        """Say that it is up."""
        return {"status": "ok"}

    @app.post("/predict")
    async def predict(self, request: Text) -> Answer:
        """Classify a text."""
        answer: Answer = await self._model.remote(request.inputs)
        return answer


def ray_serve(bundle: str, port: int, **options: int) -> None:
    """Serve with Ray Serve; options are those of both deployments."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    # Nothing but what concerns other processes: no dashboard, and no log lines on our stderr (they'd cost it time).
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Else Ray leaves one in the home directory.
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        # One thread: with torch's own number its five requests at a time would fight for the cores.
        model = serve.deployment(Model).options(**options).bind(bundle, threads=1)
        serve.run(serve.deployment(serve.ingress(app)(Ingress)).options(**options).bind(model))
        stopped.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


def uvicorn_bare(bundle: str, port: int) -> None:
    """Serve with FastAPI and uvicorn alone."""
    model, bare = Model(bundle), FastAPI()

    @bare.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @bare.post("/predict")
    def predict(request: Text) -> Answer:
        return model(request.inputs)

    uvicorn.run(bare, host="127.0.0.1", port=port, log_level="warning")


if find_spec("litserve"):
    litserve: Any = import_module("litserve")

    class LitServeApi(litserve.LitAPI):  # type: ignore[misc]  # LitServe is optional.
        """The model behind LitServe; at the top of the module, for its workers have to find the class again."""

        def __init__(self, bundle: str) -> None:
            super().__init__(max_batch_size=64, batch_timeout=0.01)
            self._bundle = bundle

        def setup(self, device: str) -> None:
            """Load the model, in the worker."""
            self._model = Model(self._bundle)

        def decode_request(self, request: dict[str, str]) -> str:
            """The text of a request."""
            return request["inputs"]

        def predict(self, x: list[str]) -> list[Answer]:
            """Classify a batch."""
            return self._model.answers(x)

        def encode_response(self, output: Answer) -> Answer:
            """An answer as it is."""
            return output


def lit_serve(bundle: str, port: int) -> None:
    """Serve with LitServe."""
    server = litserve.LitServer(LitServeApi(bundle), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


RIVALS: dict[str, Callable[[str, int], None]] = {
    "serve-default": ray_serve,
    "serve-two-hops": partial(ray_serve, max_ongoing_requests=512),
    "uvicorn-bare": uvicorn_bare,
    "litserve": lit_serve,
}

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("rival", choices=RIVALS)
PARSER.add_argument("--model", required=True, help="bundle")
PARSER.add_argument("--port", type=int, required=True, help="to listen at, on loopback")

if __name__ == "__main__":
    args = PARSER.parse_args()
    RIVALS[args.rival](args.model, args.port)
