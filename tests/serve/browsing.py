"""A browser on the page, and the service that it is pointed at: the real application, under the tests' control."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from served import Notes, digests, settings_for
from starlette.applications import Starlette
from starlette.routing import Mount

from sentiment.settings import ServeSettings
from serve_app.asgi import create_app
from serve_app.engine import Engine, Scores

WAIT_S = 20.0


class GatedEngine(Engine):
    """Answers while its gate is open, as it is at first; counts what it is asked."""

    def __init__(self, settings: ServeSettings) -> None:
        super().__init__(settings, Notes())
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0

    async def score(
        self, texts: Sequence[str], *, field: str = "inputs", truncate: bool = True, has_time_limit: bool = True
    ) -> Scores:
        self.asked += 1
        await asyncio.to_thread(self.gate.wait, WAIT_S)
        return await super().score(texts, field=field, truncate=truncate, has_time_limit=has_time_limit)


class Service:
    """A server in a thread and an event loop of its own; `serving` runs it."""

    def __init__(self, bundle: Path, keys: Sequence[str], prefix: str, settings: dict[str, Any]) -> None:
        self.engine = GatedEngine(settings_for(bundle, **settings))
        config = uvicorn.Config(
            Starlette(routes=[Mount(prefix, create_app(self.engine, Notes(), digests(keys)))]),
            host="127.0.0.1",
            port=0,
            ws="none",
            lifespan="off",
            log_level="error",
            timeout_graceful_shutdown=5,
        )
        self.server, self._socket = uvicorn.Server(config), config.bind_socket()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}{prefix}/"
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, is_loaded: bool) -> None:
        self._loop = asyncio.get_running_loop()
        if is_loaded:
            await self.engine.load(self.engine.settings.model)
        await self.server.serve([self._socket])
        await self.engine.close()

    def load(self) -> None:
        """Load the model of a service that began without."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self.engine.load(self.engine.settings.model), self._loop).result(WAIT_S)

    def predict(self, text: str) -> dict[str, Any]:
        """What programs are told: the better label with its score."""
        request = urllib.request.Request(
            f"{self.url}predict", json.dumps({"inputs": text}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            better: dict[str, Any] = json.load(answer)[0][0]
            return better


@contextmanager
def serving(
    bundle: Path, *, keys: Sequence[str] = (), prefix: str = "", is_loaded: bool = True, **settings: Any
) -> Iterator[Service]:
    """Serve a bundle on a free port.

    Args:
        bundle: Its path.
        keys: API keys.
        prefix: Path that the application is below.
        is_loaded: Whether it has its model from the start.
        settings: Of section serve.
    """
    service = Service(bundle, keys, prefix, settings)
    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(asyncio.run, service.run(is_loaded))
        try:
            while not service.server.started:
                assert not ended.done(), ended.exception()
                time.sleep(0.01)
            yield service
        finally:
            service.engine.gate.set()
            service.server.should_exit = True
            ended.result(WAIT_S)


class Page:
    """What a person sees and does."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser

    def open(self, url: str) -> None:
        self._log()  # Forgets what was there.
        self.browser.get(url)

    def of(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def words(self, selector: str) -> list[str]:
        return [element.text for element in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    @property
    def recent(self) -> list[str]:
        return self.words("#list .text")

    @property
    def written(self) -> str:
        return str(self.of("text").get_property("value"))

    @property
    def focus(self) -> WebElement:
        return self.browser.switch_to.active_element

    def until(self, condition: Callable[[], Any]) -> None:
        WebDriverWait(self.browser, WAIT_S, poll_frequency=0.05).until(lambda _: condition())

    def press(self, *keys: str, holding: str | None = None) -> None:
        """Use the keyboard, wherever the focus is."""
        chain = ActionChains(self.browser)
        if holding is None:
            chain.send_keys(*keys).perform()
        else:
            chain.key_down(holding).send_keys(*keys).key_up(holding).perform()

    def send(self, text: str) -> None:
        """Write a text and press Enter; returns when there is an answer or an error."""
        self.of("text").clear()
        self.run(
            "window.isSettled = false; const seen = new MutationObserver(() => { isSettled = true });"
            "for (const part of [error, list]) seen.observe(part, {childList: true})"
        )
        self.of("text").send_keys(text, Keys.ENTER)
        self.until(lambda: self.run("return isSettled && !send.disabled"))

    def fail(self, text: str) -> str:
        """Send a text; returns what is said instead of an answer."""
        self.send(text)
        assert not self.of("answer").is_displayed()
        return self.of("error").text

    def run(self, script: str, *values: Any) -> Any:
        return self.browser.execute_script(script, *values)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self._log() if entry["level"] == "SEVERE"]

    def _log(self) -> list[dict[str, Any]]:
        """What the browser has logged since it was last asked."""
        entries: list[dict[str, Any]] = self.browser.get_log("browser")  # type: ignore[no-untyped-call]
        return entries

    def emulate(self, **features: str) -> None:
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
