"""Ray Serve as it comes, for `benchmarks/serve.py`: a FastAPI ingress that calls a model deployment, all by default.

Run by `benchmarks/serve_rivals.py serve-default`, or `serve-two-hops`, where replicas may have more requests at a time:
by default they take five, and the router looks after those that wait every 25 to 500 ms. A module of its own, which
replicas can import; and without postponed annotations: Ray carries the application to them, and FastAPI has to find the
types there.
"""

import signal
import threading

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.handle import DeploymentHandle
from serve_answer import Answer, Text, answer

from sentiment.devices import limit_threads
from sentiment.predictor import Predictor

app = FastAPI()


@serve.deployment
class Model:
    """The model, a text at a time."""

    def __init__(self, bundle: str) -> None:
        # Kind to it: with torch's own number of threads its five requests at a time would fight for the cores.
        limit_threads(1)
        self._predictor = Predictor.load(bundle, use_gpu=False)
        self._predictor.warm_up()

    def __call__(self, text: str) -> Answer:
        """Classify it."""
        return answer(self._predictor, text)


@serve.deployment
@serve.ingress(app)
class Ingress:
    """HTTP."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    @app.get("/health")
    async def health(self) -> dict[str, str]:
        """Say that it is up."""
        return {"status": "ok"}

    @app.post("/predict")
    async def predict(self, request: Text) -> Answer:
        """Classify a text."""
        found: Answer = await self._model.remote(request.inputs)
        return found


def run(bundle: str, port: int, **options: object) -> None:
    """Serve until SIGTERM.

    Args:
        bundle: Of the model.
        port: To listen at, on loopback.
        options: Of both deployments.
    """
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    # Nothing but what concerns other processes: no dashboard, and no log lines on our stderr (they'd cost it time).
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        serve.run(Ingress.options(**options).bind(Model.options(**options).bind(bundle)))
        stopped.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
