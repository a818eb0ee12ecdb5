"""The page at /, used in a real browser as people use it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import Page, Service, serving
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

TEXT = "what a lovely day"
LONG_WORD = "pneumonoultramicroscopicsilicovolcanoconiosis" * 20


@pytest.fixture(scope="module")
def service(bundle: Path) -> Iterator[Service]:
    with serving(bundle, name="weather", max_text_chars=2_000) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,900"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options, ChromeService(DRIVER))
    yield chrome
    chrome.quit()


@pytest.fixture
def page(browser: Chrome) -> Iterator[Page]:
    page = Page(browser)
    yield page
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.emulate()


def test_enter_shows_what_predict_says(page: Page, service: Service) -> None:
    page.open(service.url)
    assert page.of("text").accessible_name == "Your text"
    seen = []
    for text in (TEXT, "I hate this phone, it is awful :(", "¡olé! ☀"):
        page.send(text)
        said = service.predict(text)
        seen.insert(0, (said["label"], f"{100 * said['score']:.1f} %", text))
        assert (page.of("label").text, page.of("score").text) == seen[0][:2]
        meter = page.of("meter")
        assert (meter.aria_role, meter.accessible_name) == ("meter", said["label"])
        assert meter.get_attribute("aria-valuetext").split() == seen[0][1].split()
        for value in (meter.get_attribute("aria-valuenow"), page.run("return fill.style.width").rstrip("%")):
            assert float(value) == pytest.approx(100 * said["score"], abs=0.05)
    assert len({score for _, score, _ in seen}) == 3, "all texts have one score: it could be that of any"
    assert list(zip(page.words("#list .label"), page.words("#list .score"), page.recent, strict=True)) == seen


@pytest.mark.parametrize("prefix", ["", "/below"])
def test_the_description_needs_nobody_elses_server(page: Page, bundle: Path, prefix: str) -> None:
    with serving(bundle, keys=["some-key"], prefix=prefix) as running:
        page.open(f"{running.url}docs")
        page.until(lambda: "/predict" in page.words(".opblock-summary-path"))
        loaded = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    parts = {f"{running.url}{part}" for part in ("docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "openapi.json")}
    assert parts <= set(loaded)
    assert [one for one in loaded if not one.startswith((running.url, "data:"))] == []
    assert page.complaints() == [], "the content policy refused something, or it wasn't found"


def test_says_what_is_served(page: Page, service: Service) -> None:
    page.open(service.url)
    page.until(lambda: page.of("model").text == f"Model: weather ({service.engine.predictor.model_id})")


def test_ten_texts_are_kept_until_the_page_is_left(page: Page, service: Service) -> None:
    page.open(service.url)
    texts = [f"day {number}" for number in range(12)]
    for text in texts:
        page.send(text)
    assert page.recent == texts[:1:-1]
    stored = page.run("return [localStorage.length, sessionStorage.length, document.cookie, location.href]")
    assert stored == [0, 0, "", service.url]
    page.browser.refresh()
    assert (page.recent, page.written) == ([], "")
    assert not page.of("recent").is_displayed()


def test_the_keyboard_is_enough(page: Page, service: Service) -> None:
    page.open(service.url)
    page.until(lambda: page.focus == page.of("text"))
    page.press("first")
    page.press(Keys.ENTER, holding=Keys.SHIFT)
    page.press("second")
    assert page.written == "first\nsecond"
    for element in (page.of("text"), page.of("send"), page.browser.find_element(By.TAG_NAME, "a")):
        assert page.focus == element
        assert element.value_of_css_property("outline-style") == "solid"
        page.press(Keys.TAB)
    page.run("document.links[0].focus()")
    page.press(Keys.TAB, holding=Keys.SHIFT)
    page.press(Keys.SPACE)
    page.until(lambda: page.recent == ["first\nsecond"])
    assert page.focus == page.of("send")
    page.press(Keys.TAB, holding=Keys.SHIFT)
    page.press("a", holding=Keys.CONTROL)
    page.press("third", Keys.ENTER)
    page.until(lambda: page.recent[0] == "third")
    page.press("fourth", Keys.ENTER)  # Takes the place of what was sent.
    page.until(lambda: page.recent[0] == "fourth")


def test_an_input_methods_enter_sends_nothing(page: Page, service: Service) -> None:
    page.open(service.url)
    event = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: %s, bubbles: true, cancelable: true})"
    for is_composing, is_left_to_the_browser in (("true", True), ("false", False)):
        page.of("text").send_keys(TEXT)
        assert page.run(f"return arguments[0].dispatchEvent({event % is_composing})", page.of("text")) == (
            is_left_to_the_browser
        )
    page.until(lambda: len(page.recent) == 1)


def test_waiting_is_shown_and_a_text_is_sent_once(page: Page, service: Service) -> None:
    page.open(service.url)
    asked = service.engine.asked
    service.engine.gate.clear()
    page.of("text").send_keys(TEXT, Keys.ENTER)
    page.until(lambda: not page.of("send").is_enabled())
    assert page.of("result").get_attribute("aria-busy") == "true"
    page.press(Keys.ENTER)
    page.press(", isn't it")
    service.engine.gate.set()
    page.until(lambda: page.of("send").is_enabled())
    assert page.of("result").get_attribute("aria-busy") == "false"
    assert (page.recent, service.engine.asked) == ([TEXT], asked + 1)
    page.press("?")
    assert page.written == f"{TEXT}, isn't it?", "what was typed on meanwhile is kept"


def test_html_is_text(page: Page, service: Service) -> None:
    page.open(service.url)
    text = '<img src=x onerror="window.hit = 1"><script>window.hit = 1</script><b>bold</b>'
    page.send(text)
    assert page.recent == [text]
    assert page.run("return document.querySelectorAll('img, b, #list script').length") == 0
    assert page.run("return window.hit") is None
    assert page.complaints() == []


def test_errors_are_told_in_words(page: Page, service: Service) -> None:
    page.open(service.url)
    page.send(TEXT)
    assert page.fail("a" * 2_001) == "At most 2000 characters, got 2001."
    assert page.fail("#") == "No text."
    assert page.of("error").aria_role == "alert"
    assert page.fail(" ") == "There is no text yet."
    page.send(TEXT + "!")
    assert page.of("error").text == ""
    assert page.of("answer").is_displayed()


def test_says_when_to_try_again(page: Page, bundle: Path) -> None:
    with serving(bundle, is_loaded=False, retry_after_s=7) as service:
        page.open(service.url)
        assert page.fail(TEXT) == "The model is being loaded. Try again in 7 seconds."
        service.load()
        page.send(TEXT)
        assert page.of("label").text == service.predict(TEXT)["label"]
        page.until(lambda: page.of("model").is_displayed())
    assert page.fail(TEXT) == "The service can’t be reached. Is the connection up? Then try again."


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("'<html>', {status: 502}", "The service answered with status 502."),
        ("'<html>', {status: 200}", "The service’s answer can’t be understood."),
        ("'[]', {status: 200}", "The service’s answer can’t be understood."),
        ("'{\"error\": \"busy\"}', {status: 429, headers: {'Retry-After': '1'}}", "Busy. Try again in 1 second."),
        ("'', {status: 503, headers: {'Retry-After': in90s}}", "The service answered with status 503. Try again in 90"),
        ("'', {status: 503, headers: {'Retry-After': 'soon'}}", "The service answered with status 503."),
    ],
)
def test_answers_of_others_on_the_way(page: Page, service: Service, answer: str, words: str) -> None:
    page.open(service.url)
    page.run(f"const in90s = new Date(Date.now() + 9e4).toUTCString(); fetch = async () => new Response({answer})")
    assert re.sub(r"in (89|90) seconds.$", "in 90", page.fail(TEXT)) == words


def test_asks_for_an_api_key(page: Page, bundle: Path) -> None:
    with serving(bundle, keys=("right-key", "other")) as service:
        page.open(service.url)
        assert page.fail(TEXT) == "The service asks for an API key."
        for key, words in (("wrong", "know this API key."), ("schlüssel", "of ASCII only.")):
            assert page.focus == page.of("key")
            page.press(key, Keys.ENTER)
            page.until(lambda words=words: page.of("error").text.endswith(words))
            page.until(lambda: page.of("send").is_enabled())
        assert page.focus.get_attribute("type") == "password"
        page.press("right-key", Keys.ENTER)
        page.until(lambda: page.recent == [TEXT])
        page.until(lambda: page.of("model").is_displayed())
        assert (page.of("error").text, page.of("key").is_displayed()) == ("", False)
        page.send("and again")
        assert page.recent == ["and again", TEXT]
        assert page.run("return localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert page.of("key").get_property("value") == ""
        assert "right-key" not in page.run("return document.documentElement.outerHTML + location.href")
        assert [complaint for complaint in page.complaints() if "401" not in complaint] == []


def test_needs_nothing_from_elsewhere_also_below_a_prefix(page: Page, bundle: Path) -> None:
    with serving(bundle, prefix="/feel/ings") as service:
        page.open(service.url)
        page.send(TEXT)
        page.until(lambda: page.of("model").is_displayed())
        entries = "return performance.getEntries().filter((e) => 'initiatorType' in e).map((e) => e.name)"
        assert set(page.run(entries)) == {service.url, f"{service.url}info", f"{service.url}predict"}
        assert page.browser.find_element(By.TAG_NAME, "a").get_property("href") == f"{service.url}docs"
        assert page.complaints() == []


def test_fits_a_phone(page: Page, service: Service) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    page.open(service.url)
    page.send(LONG_WORD)
    page.run("tell(new Problem(arguments[0], true)); show({label: arguments[0], score: 1})", LONG_WORD)
    assert page.run("return innerWidth") == 360
    assert page.run("return document.documentElement.scrollWidth") <= 360
    boxes = page.run(
        "return [...document.querySelectorAll('body *')].map((element) => {"
        "  const {left, right} = element.getBoundingClientRect(); return [left, right, element.outerHTML]})"
    )
    assert [html[:80] for left, right, html in boxes if left < 0 or right > 360] == []
    for element in page.browser.find_elements(By.CSS_SELECTOR, "textarea, input, button, a"):
        assert element.rect["height"] >= 44
        assert float(element.value_of_css_property("font-size").removesuffix("px")) >= 16


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_can_be_told_apart(page: Page, service: Service, scheme: str) -> None:
    page.emulate(prefers_color_scheme=scheme)
    page.open(service.url)
    page.send(TEXT)
    page.run("error.textContent = '!'; list.append(list.firstChild.cloneNode(true))")
    page.run("['POSITIVE', 'NEGATIVE'].forEach((label, at) => { list.children[at].dataset.label = label })")
    ground = luminance(page.run("return getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.5) == (scheme == "dark")
    for element in page.browser.find_elements(By.CSS_SELECTOR, "h1, h2, label, p, span, a, button"):
        own = element.value_of_css_property("background-color")
        behind = ground if own.endswith(", 0)") else luminance(own)
        least, most = sorted((luminance(element.value_of_css_property("color")), behind))
        assert (most + 0.05) / (least + 0.05) >= 4.5, element.get_property("outerHTML")


def luminance(color: str) -> float:
    """Relative luminance, as WCAG has it."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_nothing_moves_for_those_who_want_it_still(page: Page, service: Service) -> None:
    for wish, seconds in (("no-preference", "0.3s"), ("reduce", "0s")):
        page.emulate(prefers_reduced_motion=wish)
        page.open(service.url)
        assert page.run("return getComputedStyle(fill).transitionDuration") == seconds
