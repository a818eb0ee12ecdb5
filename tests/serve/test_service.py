"""The service on a real Ray Serve, asked by the clients that people have."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import ray
import tritonclient.http as triton
import yaml
from huggingface_hub import InferenceClient
from job_runs import REPOSITORY, free_port
from ray import serve
from ray._private.worker import get_dashboard_url
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.util.state import list_actors

from sentiment.errors import ResourceError
from sentiment.predictor import Predictor
from sentiment.settings import RaySettings, ServeSettings
from serve_app.app import serve_until_interrupted

pytestmark = pytest.mark.ray
TEXTS = ["what a lovely day", "my train is late again", "not bad at all"]


@dataclass
class Service:
    """A running one."""

    url: str
    config: dict[str, Any]
    client: ServeSubmissionClient

    def deploy(self, model: Path) -> None:
        """Put a bundle into service, as `serve deploy` does: the file again, with another `user_config`."""
        (application,) = self.config["applications"]
        (deployment,) = application["deployments"]
        deployment["user_config"]["model"] = str(model)
        self.client.deploy_applications(self.config)

    def is_deployed(self, model: Path) -> bool:
        """The file with this bundle has been taken, and all replicas were told."""
        (deployment,) = self.client.get_serve_details()["applications"]["sentiment"]["deployments"].values()
        user_config = deployment["deployment_config"]["user_config"]
        return bool(deployment["status"] == "HEALTHY" and user_config["model"] == str(model))

    def replicas(self) -> list[int]:
        """Processes of the replicas that run."""
        actors = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
        return [actor.pid for actor in actors if actor.class_name.startswith("ServeReplica:sentiment")]


@pytest.fixture(scope="module")
def service(ray_cluster: str, bundle: Path) -> Iterator[Service]:
    """What cluster/serve.yaml says, but for the model, the port and how soon replicas come and go."""
    config = yaml.safe_load((REPOSITORY / "cluster" / "serve.yaml").read_text())
    config["http_options"]["port"] = port = free_port()
    (application,) = config["applications"]
    application["args"] |= {
        "model": str(bundle),
        "precision": "float32",
        "max_replicas": 2,
        "cpus_per_replica": 0.5,
        "target_ongoing_requests": 4,
        "upscale_delay_s": 1,
        "downscale_delay_s": 2,
    }
    running = Service(f"http://127.0.0.1:{port}", config, ServeSubmissionClient(f"http://{get_dashboard_url()}"))
    try:
        running.deploy(bundle)
        wait_until(lambda: is_healthy(running.url), 180)
        yield running
    finally:
        serve.shutdown()


def is_healthy(url: str) -> bool:
    state = serve.status().applications.get("sentiment")
    assert state is None or state.status != "DEPLOY_FAILED", state
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it didn't come to that"
        time.sleep(0.05)


@contextmanager
def traffic(url: str, clients: int = 4, pause_s: float = 0.02) -> Iterator[Counter[object]]:
    """Requests all the time; counts what comes back: a status and model, or the kind of failure.

    They pause, so that processes that start meanwhile get to run.
    """
    seen: Counter[object] = Counter()
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                try:
                    answer = client.post(f"{url}/v2/models/sentiment/infer", json=tensor([TEXTS[number % 3]]))
                    said = answer.json().get("model_version") if answer.status_code == 200 else None
                    seen[answer.status_code, said] += 1
                except httpx.HTTPError as error:
                    seen[type(error).__name__] += 1
                stop.wait(pause_s)

    with ThreadPoolExecutor(clients) as pool:
        tasks = [pool.submit(ask, number) for number in range(clients)]
        try:
            yield seen
        finally:
            stop.set()
        for task in tasks:
            task.result()


def tensor(texts: list[str]) -> dict[str, object]:
    return {"inputs": [{"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]}


def test_load_brings_a_replica(service: Service) -> None:
    with traffic(service.url, clients=16, pause_s=0):
        wait_until(lambda: len(service.replicas()) == 2)


def test_hugging_faces_client(service: Service, predictor: Predictor) -> None:
    expected = predictor.predict(TEXTS)
    for url in (service.url, f"{service.url}/predict"):
        client = InferenceClient(model=url)
        for text, one in zip(TEXTS, expected, strict=True):
            best = client.text_classification(text)[0]
            assert (best.label, best.score) == (one.label, pytest.approx(one.score, abs=1e-5))
        assert len(client.text_classification(TEXTS[0], top_k=1)) == 1
        logits = client.text_classification(TEXTS[0], function_to_apply="none")
        assert logits[0].score == -logits[1].score


@pytest.mark.parametrize("is_binary", [True, False])
def test_tritons_client(service: Service, predictor: Predictor, is_binary: bool) -> None:
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("sentiment")
        assert client.get_model_metadata("sentiment")["versions"] == [predictor.model_id]
        text = triton.InferInput("text", [3], "BYTES")
        text.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=is_binary)
        outputs = [triton.InferRequestedOutput(name, binary_data=is_binary) for name in ("label", "p_positive")]
        for asked, version in ((outputs, ""), (None, predictor.model_id)):
            result = client.infer("sentiment", [text], model_version=version, outputs=asked, request_id="7")
            expected = predictor.predict(TEXTS)
            labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label")]
            assert labels == [one.label for one in expected]
            assert result.as_numpy("p_positive") == pytest.approx([one.p_positive for one in expected], abs=1e-5)
        with pytest.raises(triton.InferenceServerException, match="no such model"):
            client.get_model_metadata("other")
        with pytest.raises(triton.InferenceServerException, match="no such version"):
            client.infer("sentiment", [text], model_version="1")


def test_request_ids_come_back(service: Service) -> None:
    answer = httpx.post(f"{service.url}/predict", json={"inputs": "a"}, headers={"X-Request-ID": "mine-7"})
    assert answer.headers.get_list("x-request-id") == ["mine-7"]
    answer = httpx.post(f"{service.url}/predict", json={"inputs": "a"})
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_a_stream_is_answered_while_it_comes_in(service: Service, predictor: Predictor) -> None:
    """The client sends its second part only once it has the answer to the first."""
    answered = threading.Event()

    def body() -> Iterator[bytes]:
        yield b'"what a lovely day"\n' * 3
        assert answered.wait(30), "no answer while the request was open"
        yield b"broken\n"

    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=60)
    sender = threading.Thread(target=connection.request, args=("POST", "/score"), kwargs={"body": body()})
    sender.start()
    wait_until(lambda: connection.sock is not None)
    first = b""
    while b"\n" not in first.partition(b"\r\n\r\n")[2]:
        first += connection.sock.recv(4096)
    answered.set()
    sender.join(60)
    rest = b""
    while b"not JSON" not in rest:
        rest += connection.sock.recv(65536)
    assert b'"line":4,"error":"not JSON"' in rest
    connection.close()


def test_metrics_are_offered_to_prometheus(service: Service) -> None:
    httpx.post(f"{service.url}/predict", json={"inputs": TEXTS})
    httpx.post(f"{service.url}/predict", json={"inputs": 3})
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = (
        ("ray_sentiment_requests_total{", 'route="/predict"', 'status="422"'),
        *(("ray_sentiment_failures_total{",), ("ray_sentiment_queue_seconds_bucket",)),
        *(("ray_sentiment_tokenise_seconds_sum",), ("ray_sentiment_inference_seconds_count",)),
        *(("ray_sentiment_batch_texts_sum",), ("ray_sentiment_batch_tokens_sum",)),
        *(("ray_sentiment_texts_total",), ("ray_sentiment_tokens_total",)),
    )

    def offered() -> list[str]:
        return [line for line in httpx.get(url).text.splitlines() if line.startswith("ray_sentiment_")]

    def is_offered(series: tuple[str, ...]) -> bool:
        return any(all(part in line for part in series) for line in offered())

    # Each comes by itself, once it has a value: others of the same name may be there before.
    for series in wanted:
        wait_until(lambda series=series: is_offered(series))
    assert not any("lovely" in line for line in offered())


def test_a_service_that_runs_is_not_taken_over(service: Service, bundle: Path) -> None:
    """`python -m serve_app` ends all of Ray Serve when it ends."""
    with pytest.raises(ResourceError, match=r"runs on this cluster already \(sentiment\): serve deploy"):
        serve_until_interrupted(ServeSettings(model=str(bundle), port=free_port()), RaySettings())
    assert httpx.get(f"{service.url}/health").status_code == 200


def test_the_replica_goes_when_the_load_is_gone(service: Service) -> None:
    """Ray Serve looks back for a while, most of which the tests before this one have filled."""
    wait_until(lambda: len(service.replicas()) == 1)


def test_a_new_bundle_goes_live_without_a_failed_request(
    service: Service, bundle: Path, other_bundle: Path, predictor: Predictor
) -> None:
    other = Predictor.load(other_bundle, use_gpu=False).model_id
    before = service.replicas()
    with traffic(service.url) as seen:
        wait_until(lambda: seen[200, predictor.model_id] > 50)
        service.deploy(other_bundle)
        wait_until(lambda: seen[200, other] > 50)
        service.deploy(bundle)
        count = seen[200, predictor.model_id]
        wait_until(lambda: seen[200, predictor.model_id] > count + 50)
        # Before the traffic ends: without it one of several is stopped.
        assert set(before) <= set(service.replicas()), "replicas were replaced, not told"
    assert set(seen) == {(200, predictor.model_id), (200, other)}


def test_a_broken_bundle_leaves_the_old_one_in_service(
    service: Service, bundle: Path, predictor: Predictor, tmp_path: Path
) -> None:
    with traffic(service.url) as seen:
        wait_until(lambda: seen[200, predictor.model_id] > 20)
        service.deploy(tmp_path)
        wait_until(lambda: service.is_deployed(tmp_path))
        count = seen[200, predictor.model_id]
        wait_until(lambda: seen[200, predictor.model_id] > count + 50)
    assert set(seen) == {(200, predictor.model_id)}
    service.deploy(bundle)


def test_a_killed_replica_is_replaced_and_nothing_hangs(service: Service, predictor: Predictor) -> None:
    with traffic(service.url) as seen:
        wait_until(lambda: seen[200, predictor.model_id] > 50)
        killed = service.replicas()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: bool(service.replicas()) and not set(killed) & set(service.replicas()))
        count = seen[200, predictor.model_id]
        wait_until(lambda: seen[200, predictor.model_id] > count + 50)
    failures = {key: number for key, number in seen.items() if key != (200, predictor.model_id)}
    assert set(failures) <= {(503, None), (504, None)}, failures


def test_other_changes_replace_replicas_without_a_failed_request(service: Service, predictor: Predictor) -> None:
    before = service.replicas()
    with traffic(service.url) as seen:
        wait_until(lambda: seen[200, predictor.model_id] > 20)
        service.config["applications"][0]["args"]["retry_after_s"] = 2
        service.deploy(Path(service.config["applications"][0]["deployments"][0]["user_config"]["model"]))
        wait_until(lambda: bool(service.replicas()) and not set(before) & set(service.replicas()))
        count = seen[200, predictor.model_id]
        wait_until(lambda: seen[200, predictor.model_id] > count + 50)
    assert set(seen) == {(200, predictor.model_id)}
