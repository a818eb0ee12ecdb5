"""LitServe with its dynamic batches, for `benchmarks/serve.py`; run by `benchmarks/serve_rivals.py litserve`.

A module of its own, for LitServe's workers are processes that have to find the class again; and without postponed
annotations: LitServe makes its endpoint of those of the class, as they are.
"""

from litserve import LitAPI, LitServer
from serve_answer import Answer, form

from sentiment.predictor import Prediction, Predictor

_MAX_BATCH_SIZE, _BATCH_TIMEOUT_S = 64, 0.01


class Api(LitAPI):
    """The model behind LitServe's POST /predict."""

    def __init__(self, bundle: str) -> None:
        super().__init__(max_batch_size=_MAX_BATCH_SIZE, batch_timeout=_BATCH_TIMEOUT_S)
        self._bundle = bundle

    def setup(self, device: str) -> None:
        """Load the model; LitServe calls it in the worker."""
        self._predictor = Predictor.load(self._bundle, use_gpu=False)
        self._predictor.warm_up()

    def decode_request(self, request: dict[str, str]) -> str:
        """Take the text of a request."""
        return request["inputs"]

    def predict(self, x: list[str]) -> list[Prediction]:
        """Classify a batch."""
        return self._predictor.predict(x)

    def encode_response(self, output: Prediction) -> Answer:
        """Write one of its predictions."""
        return form(output)


def run(bundle: str, port: int) -> None:
    """Serve until SIGTERM.

    Args:
        bundle: Of the model.
        port: To listen at, on loopback.
    """
    server = LitServer(Api(bundle), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
