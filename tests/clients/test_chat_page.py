"""The chat page in a real browser, where one is installed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from helpers.adapters import LoraCase
from helpers.http_siege import write_model
from helpers.serving import PATIENCE, Serving, braked, eventually, serving, serving_shelf
from penstock import LLM
from penstock.options import OpenOptions
from penstock.server.chats.conversation import Chat, Message
from penstock.server.shelf import Shelf

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no Chromium with its driver")

HOSTILE = """<script>document.title = "script"</script>
<img src=x onerror="document.title='handler'">
![a picture](https://elsewhere.example/x.png)
[a link](javascript:document.title='link') and [another](https://example.org)

| a | b |
|--:|---|
| 1 | 2 |

```python
def f(x): return "<b>"
```
"""
ALL_TEXT = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent).join(' ')"
TEXTS = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"


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
    with LLM.open("demo", memory="3GiB") as llm:
        yield llm


class Page:
    """What a person sees and does."""

    def __init__(self, browser: webdriver.Chrome, server: Serving, width: int = 1280) -> None:
        self.browser = browser
        browser.get("about:blank")
        browser.set_window_size(width, 800)
        browser.get(server.url)
        eventually(lambda: self.text("#model"))

    def text(self, css: str) -> str:
        return " ".join(str(self.browser.execute_script(ALL_TEXT, css)).split())

    def texts(self, css: str) -> list[str]:
        return list(self.browser.execute_script(TEXTS, css))

    def turns(self, role: str) -> list[str]:
        return self.texts(f".turn.{role} .text")

    def say(self, *keys: str) -> None:
        self.browser.find_element(By.ID, "input").send_keys(*keys)

    def press(self, css: str, label: str = "") -> None:
        """Press what a person would see there: the last button of that label."""

        def find() -> Any:
            found = self.browser.find_elements(By.CSS_SELECTOR, css)
            return [one for one in found if one.text == label or not label]

        eventually(find)
        self.browser.execute_script("arguments[0].click()", find()[-1])

    def set(self, **values: str) -> None:
        """Settings, through their dialog."""
        self.press("#gear")
        for name, value in values.items():
            field = self.browser.find_element(By.ID, name)
            field.clear()
            field.send_keys(value)
        self.press("#save")

    def settle(self, **values: str) -> None:
        self.set(**values)
        eventually(lambda: not self.browser.execute_script("return document.getElementById('settings').open"))


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return tmp_path / "chats"


@pytest.fixture
def server(llm: LLM, chats: Path) -> Iterator[Serving]:
    with serving(llm, chats=chats, keep_alive_seconds=0.1) as running:
        yield running


@pytest.fixture
def page(browser: webdriver.Chrome, server: Serving) -> Page:
    return Page(browser, server)


def test_send_stream_and_reload(page: Page, server: Serving) -> None:
    page.settle(temperature="0", max_tokens="12")
    page.say("two", Keys.SHIFT, Keys.ENTER, Keys.NULL, "lines")
    assert not page.turns("user")
    page.say(Keys.ENTER)
    eventually(lambda: "12 tokens" in page.text(".foot") and "limit" in page.text(".foot"))
    [answer] = page.turns("assistant")
    assert answer.strip()
    assert page.text("#model") == "demo"
    assert page.text("#title") == "two lines"
    page.browser.refresh()
    eventually(lambda: page.turns("user") == ["two\nlines"])
    assert page.turns("assistant") == [answer]
    page.press(".quiet", "Continue")
    eventually(lambda: "24 tokens" in page.text(".foot") and "limit" in page.text(".foot"))
    assert page.browser.get_log("browser") == []


def test_an_answer_goes_on_through_a_reload_and_can_be_stopped(page: Page, server: Serving) -> None:
    with braked(server.llm) as brake:
        page.say("hello", Keys.ENTER)
        eventually(lambda: "reading the prompt, layer 1 of 6" in page.text(".foot"))
        before = page.text(".foot")
        eventually(lambda: page.text(".foot") != before)  # the clock ticks
        page.browser.refresh()
        eventually(lambda: "reading the prompt, layer 1 of 6" in page.text(".foot"))
        assert not any(job.cancelled for job in server.worker._running)
        assert page.text("#send") == "Stop"
        page.press("#send")
        eventually(lambda: "stopped" in page.text(".foot") or page.text("#send") == "Send")
        brake.release()
    eventually(lambda: server.worker.running == 0)
    page.settle(max_tokens="3")
    page.press(".quiet", "Try again")
    eventually(lambda: "3 tokens" in page.text(".foot") and page.text("#send") == "Send")
    assert len(page.turns("assistant")) == 1


def test_escape_stops(page: Page, server: Serving) -> None:
    with braked(server.llm) as brake:
        page.say("hello", Keys.ENTER)
        assert brake.holds.wait(PATIENCE)
        eventually(lambda: page.text("#send") == "Stop")
        page.say(Keys.ESCAPE)
        eventually(lambda: page.text("#send") == "Send")
        brake.release()


def test_a_question_in_other_words(page: Page) -> None:
    page.settle(max_tokens="3")
    page.say("one", Keys.ENTER)
    eventually(lambda: "3 tokens" in page.text(".foot") and page.text("#send") == "Send")
    page.press(".quiet", "Edit")
    box = page.browser.find_element(By.CSS_SELECTOR, ".editing textarea")
    box.send_keys(" or two", Keys.ENTER)
    eventually(lambda: page.turns("user") == ["one or two"])
    eventually(lambda: "3 tokens" in page.text(".foot") and page.text("#send") == "Send")
    assert len(page.turns("assistant")) == 1


def test_several_conversations(page: Page) -> None:
    for question in ("first", "second"):
        page.settle(max_tokens="1")
        page.say(question, Keys.ENTER)
        eventually(lambda: "1 token" in page.text(".foot") and page.text("#send") == "Send")
        page.press("#new")
    eventually(lambda: page.texts("#chats .open") == ["second", "first"])
    page.press("#chats .open", "first")
    eventually(lambda: page.turns("user") == ["first"])
    page.press("#chats li.current [aria-label='Rename first']")
    page.browser.switch_to.active_element.send_keys("better", Keys.ENTER)
    eventually(lambda: sorted(page.texts("#chats .open")) == ["better", "second"])
    page.press("[aria-label='Delete better']")
    eventually(lambda: page.texts("#chats .open") == ["second"])
    page.press("#notice button", "Undo")
    eventually(lambda: sorted(page.texts("#chats .open")) == ["better", "second"])
    eventually(lambda: page.turns("user") == ["first"])


def test_one_that_is_being_answered_is_deleted(page: Page, server: Serving) -> None:
    with braked(server.llm) as brake:
        page.say("hello", Keys.ENTER)
        assert brake.holds.wait(PATIENCE)
        eventually(lambda: page.text("#send") == "Stop")
        page.press("[aria-label='Delete hello']")
        eventually(lambda: page.text("#send") == "Send" and not page.turns("user"))
        page.press("#notice button", "Undo")
        brake.release()
    eventually(lambda: page.turns("user") == ["hello"] and "Try again" in page.text(".foot"))
    assert page.text("#problem") == ""


def test_two_tabs(page: Page, server: Serving) -> None:
    page.settle(max_tokens="3")
    page.say("hello", Keys.ENTER)
    eventually(lambda: "3 tokens" in page.text(".foot") and page.text("#send") == "Send")
    here, address = page.browser.current_window_handle, page.browser.current_url
    page.browser.switch_to.new_window("tab")
    page.browser.get(address)
    eventually(lambda: page.turns("user") == ["hello"])
    page.say("again", Keys.ENTER)
    eventually(lambda: len(page.turns("assistant")) == 2 and page.text("#send") == "Send")
    page.browser.close()
    page.browser.switch_to.window(here)
    eventually(lambda: page.turns("user") == ["hello", "again"])


def test_refusals_are_shown_and_lose_nothing(page: Page) -> None:
    page.set(temperature="5")
    eventually(lambda: "Temperature: Value must be less than or equal to 2" in page.text("#settings-problem"))
    page.press("#cancel")
    page.settle(json_schema='{"type": 5}')
    page.say("hello", Keys.ENTER)
    eventually(lambda: "This JSON schema cannot be followed" in page.text("#problem"))
    assert page.browser.find_element(By.ID, "input").get_attribute("value") == "hello"
    page.settle(json_schema="", max_tokens="3")
    page.press("#send")
    eventually(lambda: "3 tokens" in page.text(".foot"))
    assert page.text("#problem") == ""


def test_hostile_text_does_nothing(browser: webdriver.Chrome, server: Serving, chats: Path) -> None:
    chat = Chat(title="<b>title</b>", messages=[Message(role="user", content="<i>x</i>")])
    chat.messages.append(Message(role="assistant", content=HOSTILE))
    chats.mkdir()
    (chats / f"{chat.id}.json").write_text(json.dumps(chat.model_dump()))
    page = Page(browser, server, width=390)
    browser.get(f"{server.url}/#{chat.id}")
    eventually(lambda: page.turns("user") == ["<i>x</i>"])
    assert page.text("#title") == "<b>title</b>"
    assert browser.title == "<b>title</b> · Penstock"
    assert not browser.find_elements(By.CSS_SELECTOR, ".text img, .text script, .text i")
    links = browser.find_elements(By.CSS_SELECTOR, ".text a")
    assert [link.get_attribute("href") for link in links] == ["https://example.org/"]
    assert browser.find_elements(By.CSS_SELECTOR, ".text td.right, .text code .k")
    # Even markup that got through would do nothing: the policy holds the page to its own scripts and images.
    browser.execute_script("document.querySelector('.text').innerHTML = arguments[0]", HOSTILE)
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.body.append(s)"
    )
    time.sleep(0.2)
    assert browser.title == "<b>title</b> · Penstock"
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert all(url.startswith(server.url) for url in asked)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    browser.get_log("browser")  # what the policy refused


def test_the_choice_of_an_adapter(browser: webdriver.Chrome, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_model(model)
    adapter = LoraCase().write(tmp_path / "style", model, 1)
    with LLM.open(model, adapters=[adapter]) as llm, serving(llm, keep_alive_seconds=0.1) as server:
        page = Page(browser, server)
        eventually(lambda: page.texts("#models option") == ["demo", "style"])
        page.settle(max_tokens="2")
        Select(browser.find_element(By.ID, "models")).select_by_visible_text("style")
        page.say("hello", Keys.ENTER)
        eventually(lambda: page.text("#send") == "Send" and page.turns("assistant"))
        assert page.text("#problem") == ""
        browser.refresh()
        eventually(lambda: page.turns("user") == ["hello"])
        assert browser.find_element(By.ID, "models").get_attribute("value") == "style"


@pytest.mark.parametrize("width", [1280, 360])
def test_the_choice_of_a_model(browser: webdriver.Chrome, tmp_path: Path, width: int) -> None:
    write_model(tmp_path / "other")
    models = {"demo": "demo", "other": str(tmp_path / "other")}
    with Shelf.read(models, OpenOptions(memory="3GiB", longest_text=1 << 20)) as shelf:
        shelf.open_first()
        with serving_shelf(shelf, keep_alive_seconds=0.1) as server:
            page = Page(browser, server, width)
            eventually(lambda: page.texts("#models option") == ["demo", "other"])
            assert browser.find_element(By.ID, "models").is_displayed()
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
            page.settle(max_tokens="2")
            for answers, model in enumerate(("other", "demo"), 1):
                eventually(lambda model=model: choose_by_key(browser, model) and model_asked(browser, server) == model)
                page.say("hello", Keys.ENTER)
                eventually(lambda n=answers: page.text("#send") == "Send" and len(page.turns("assistant")) == n)
                assert (page.text("#problem"), server.worker.shelf.current) == ("", model)
            assert [line.startswith("by other") for line in page.texts(".turn.assistant .figures")] == [True, False]
            browser.refresh()
            eventually(lambda: page.turns("user") == ["hello", "hello"])
            assert browser.find_element(By.ID, "models").get_attribute("value") == "demo"
            browser.execute_script("localStorage.clear()")


def choose_by_key(browser: webdriver.Chrome, model: str) -> bool:
    """By the first letter: Chromium takes letters for those of one word that come within a second, so not all do."""
    choice = browser.find_element(By.ID, "models")
    if choice.get_attribute("value") != model:
        time.sleep(1.1)
        choice.send_keys(model[0])
    return choice.get_attribute("value") == model


def model_asked(browser: webdriver.Chrome, server: Serving) -> str:
    """Which model the next question is for: that of the conversation as the server has it, or of a new one."""
    id = browser.execute_script("return location.hash.slice(1)")
    if not id:
        return str(browser.find_element(By.ID, "models").get_attribute("value"))
    return str(httpx.get(f"{server.url}/chats/{id}").json()["settings"]["model"])


def test_a_key(browser: webdriver.Chrome, llm: LLM) -> None:
    with serving(llm, api_key="secret") as server:
        page = Page(browser, server)
        assert page.text("#model") == "needs an API key"
        eventually(lambda: browser.execute_script("return document.getElementById('settings').open"))
        browser.find_element(By.ID, "key").send_keys("secret", Keys.ENTER)
        eventually(lambda: page.text("#model") == "demo")
        browser.execute_script("localStorage.clear()")
