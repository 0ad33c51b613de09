"""The chat page in a real browser, where one is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from helpers.serving import Serving, braked, eventually, serving
from penstock import LLM

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no Chromium with its driver")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", memory="1GiB") as llm:
        yield llm


class Page:
    """What a person sees and does."""

    def __init__(self, browser: webdriver.Chrome, server: Serving) -> None:
        self.browser = browser
        browser.get(server.url)
        eventually(lambda: self.text("#model"))

    def text(self, css: str) -> str:
        return " ".join(str(self.browser.execute_script(ALL_TEXT, css)).split())

    def turns(self, role: str) -> list[str]:
        found: Any = self.browser.execute_script(TURNS, f".turn.{role} .text")
        return list(found)

    def say(self, *keys: str) -> None:
        self.browser.find_element(By.ID, "input").send_keys(*keys)

    def press(self, name: str) -> None:
        self.browser.find_element(By.ID, name).click()

    def set(self, name: str, value: str) -> None:
        self.browser.execute_script(SET, name, value)


ALL_TEXT = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent).join(' ')"
TURNS = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
SET = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.dispatchEvent(new Event('change'))"


@pytest.fixture
def server(llm: LLM) -> Iterator[Serving]:
    with serving(llm, keep_alive_seconds=0.1) as running:
        yield running


@pytest.fixture
def page(browser: webdriver.Chrome, server: Serving) -> Page:
    return Page(browser, server)


def test_send_stream_and_reload(page: Page, server: Serving) -> None:
    page.set("temperature", "0")
    page.set("max-tokens", "12")
    page.say("two", Keys.SHIFT, Keys.ENTER, Keys.NULL, "lines")
    assert not page.turns("user")
    page.say(Keys.ENTER)
    eventually(lambda: "12 tokens" in page.text(".foot"))
    expected = server.client().chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "two\nlines"}], temperature=0, max_tokens=12
    )
    said = expected.choices[0].message.content
    assert said is not None
    [answer] = page.turns("assistant")
    assert answer.strip() == said.strip()
    assert page.text("#model") == "demo"
    page.browser.refresh()
    assert page.turns("user") == ["two\nlines"]
    assert page.turns("assistant") == [answer]
    page.press("new")
    assert not page.turns("user")
    assert page.browser.get_log("browser") == []


def test_a_long_pass_shows_that_it_goes_on_and_can_be_stopped(page: Page, server: Serving) -> None:
    page.set("max-tokens", "")
    with braked(server.llm) as brake:
        page.say("hello", Keys.ENTER)
        eventually(lambda: "reading the prompt, layer 1 of 6" in page.text(".foot"))
        before = page.text(".foot")
        eventually(lambda: page.text(".foot") != before)  # the clock ticks
        assert page.text("#send") == "Stop"
        page.press("send")
        eventually(lambda: "stopped" in page.text(".foot"))
        eventually(lambda: all(job.cancelled for job in server.worker._running))
        brake.release()
    eventually(lambda: server.worker.running == 0)
    assert page.text("#send") == "Send"
    page.set("max-tokens", "3")
    page.browser.find_element(By.CSS_SELECTOR, ".foot button").click()  # try again
    eventually(lambda: "3 tokens" in page.text(".foot"))
    assert len(page.turns("assistant")) == 1
    page.press("new")


def test_a_reload_ends_what_was_running(page: Page, server: Serving) -> None:
    page.set("max-tokens", "")
    with braked(server.llm) as brake:
        page.say("hello", Keys.ENTER)
        assert brake.holds.wait(60)
        page.browser.refresh()
        eventually(lambda: all(job.cancelled for job in server.worker._running))
        brake.release()
    eventually(lambda: server.worker.running == 0)
    assert page.text(".foot span") == "stopped"
    page.press("new")


def test_errors_are_shown(page: Page) -> None:
    page.set("max-tokens", "3")
    page.set("temperature", "5")
    page.say("hello", Keys.ENTER)
    eventually(lambda: "temperature=5" in page.text(".bad"))
    page.set("temperature", "1")
    page.browser.find_element(By.CSS_SELECTOR, ".foot button").click()
    eventually(lambda: "3 tokens" in page.text(".foot"))
    page.press("new")


def test_a_key(browser: webdriver.Chrome, llm: LLM) -> None:
    with serving(llm, api_key="secret") as server:
        page = Page(browser, server)
        assert page.text("#model") == "needs an API key"
        page.set("key", "secret")
        eventually(lambda: page.text("#model") == "demo")
