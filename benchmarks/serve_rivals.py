"""What the service is held against, each in a process of its own that `benchmarks/serve.py` starts and ends.

  python benchmarks/serve_rivals.py serve-default --model BUNDLE --port 9000
  python benchmarks/serve_rivals.py serve-two-hops --model BUNDLE --port 9000
  python benchmarks/serve_rivals.py uvicorn       --model BUNDLE --port 9000
  python benchmarks/serve_rivals.py litserve      --model BUNDLE --port 9000
  python benchmarks/serve_rivals.py predictor     --model BUNDLE --texts texts.jsonl     # prints JSON

The first four answer POST /predict with `{"inputs": "a text"}` until SIGTERM, by the same bundle and `Predictor`; the
last is the model alone, without HTTP.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serve_answer import Answer, Text, answer

from sentiment.devices import limit_threads
from sentiment.predictor import Predictor

# As the service scores an archive: so many texts together.
_SLICE_ROWS = 512


def serve_default(bundle: str, port: int) -> None:
    """Ray Serve as it comes.

    Args:
        bundle: Of the model.
        port: To listen at, on loopback.
    """
    from serve_default import run  # noqa: PLC0415  (Ray takes seconds, and the others go without it)

    run(bundle, port)


def serve_two_hops(bundle: str, port: int) -> None:
    """The same two deployments, which may have as many requests at a time as this service's.

    Args:
        bundle: Of the model.
        port: To listen at, on loopback.
    """
    from serve_default import run  # noqa: PLC0415

    run(bundle, port, max_ongoing_requests=512)


def uvicorn(bundle: str, port: int) -> None:
    """FastAPI as one writes it: requests in its thread pool, a text at a time, torch's own number of threads.

    Args:
        bundle: Of the model.
        port: To listen at, on loopback.
    """
    import uvicorn  # noqa: PLC0415
    from fastapi import FastAPI  # noqa: PLC0415

    model, app = _load(bundle), FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict")
    def predict(request: Text) -> Answer:
        return answer(model, request.inputs)

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def litserve(bundle: str, port: int) -> None:
    """LitServe with its dynamic batches.

    Args:
        bundle: Of the model.
        port: To listen at, on loopback.
    """
    from serve_litserve import run  # noqa: PLC0415  (it may not be installed)

    run(bundle, port)


def predictor(bundle: str, texts: Sequence[str]) -> dict[str, Any]:
    """The model in process with one torch thread, as a replica has: encode and forward, slice after slice.

    Args:
        bundle: Of the model.
        texts: To classify.
    """
    limit_threads(1)
    model = _load(bundle)
    started = time.perf_counter()
    for start in range(0, len(texts), _SLICE_ROWS):
        model.forward(model.encode(texts[start : start + _SLICE_ROWS]))
    elapsed_s = time.perf_counter() - started
    rate = round(len(texts) / elapsed_s, 1)
    return {"texts": len(texts), "elapsed_s": round(elapsed_s, 3), "texts_per_s": rate}


def _load(bundle: str) -> Predictor:
    model = Predictor.load(bundle, use_gpu=False)
    model.warm_up()
    return model


SERVICES: dict[str, Callable[[str, int], None]] = {
    "serve-default": serve_default,
    "serve-two-hops": serve_two_hops,
    "uvicorn": uvicorn,
    "litserve": litserve,
}


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=[*SERVICES, "predictor"])
    parser.add_argument("--model", required=True, help="bundle")
    parser.add_argument("--port", type=int, help="to listen at, on loopback (not predictor)")
    parser.add_argument("--texts", type=Path, help="JSON lines with `text` (predictor)")
    args = parser.parse_args()
    if args.rival == "predictor":
        texts = [json.loads(line)["text"] for line in args.texts.read_text().splitlines()]
        print(json.dumps(predictor(args.model, texts)))
    else:
        SERVICES[args.rival](args.model, args.port)


if __name__ == "__main__":
    main()
