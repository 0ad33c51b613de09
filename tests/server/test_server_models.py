"""Several models behind one server: who is answered when, and what becomes of the others where one cannot be opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from helpers.http_siege import write_model
from helpers.serving import PATIENCE, Serving, braked, eventually, serving_shelf
from penstock import LLM, SamplingParams
from penstock.known_model import KnownModel
from penstock.options import OpenOptions
from penstock.server.shelf import Shelf

TEXT = "/v1/completions"
PROMPT = "def add(a, b):"
BODY = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
OPTIONS = OpenOptions(memory="1GiB", draft="none", longest_text=1 << 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model `other`."""
    path = tmp_path_factory.mktemp("models") / "other"
    write_model(path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, str]:
    """What each says alone."""
    return {name: alone(model) for name, model in (("demo", "demo"), ("other", folder))}


def alone(model: str | Path) -> str:
    with LLM.open(model, memory="1GiB", draft="none") as llm:
        params = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
        return llm.generate([PROMPT], params)[0].text


@pytest.fixture
def server(folder: Path) -> Iterator[Serving]:
    with Shelf.read({"demo": "demo", "other": str(folder)}, OPTIONS) as shelf:
        shelf.open_first()
        with serving_shelf(shelf, keep_alive_seconds=0.05) as running:
            yield running


@pytest.fixture
def openings(server: Serving, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are opened from now on, in their order."""
    found: list[str] = []
    real = server.worker.shelf.open

    def opening(name: str, *more: Any) -> LLM:
        found.append(name)
        return real(name, *more)

    monkeypatch.setattr(server.worker.shelf, "open", opening)
    return found


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def ask(server: Serving, model: str | None, **more: Any) -> httpx.Response:
    body = BODY if model is None else BODY | {"model": model}
    return server.post(TEXT, json=body | more)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


def queue_up(
    server: Serving, pool: ThreadPoolExecutor, models: list[str], asked: Callable[..., Any] = ask
) -> list[Future[Any]]:
    """Requests for these models that wait in this order."""
    futures = []
    for model in models:
        before = server.worker.queued
        futures.append(pool.submit(asked, server, model))
        eventually(lambda before=before: server.worker.queued == before + 1)
    return futures


def test_the_list(server: Serving) -> None:
    models = server.client().models.list().data
    assert [model.id for model in models] == ["demo", "other"]
    assert server.client().models.retrieve("other").id == "other"
    lengths = {name: server.worker.shelf.known(name).context for name in ("demo", "other")}
    assert {model.id: model.context_length for model in models} == lengths  # type: ignore[attr-defined]
    assert len(set(lengths.values())) == 2


def test_by_name(server: Serving, expected: dict[str, str], openings: list[str]) -> None:
    assert expected["demo"] != expected["other"]
    for model in ("demo", "other", "other", "demo"):
        answer = ask(server, model)
        assert text(answer) == expected[model]
        assert answer.json()["model"] == model
        assert httpx.get(f"{server.url}/health").json()["model"] == model
    assert openings == ["other", "demo"]
    assert server.metric('penstock_openings_total{model="other"}') == 1


def test_no_name_means_the_one_that_is_open(server: Serving, expected: dict[str, str], openings: list[str]) -> None:
    for model in ("demo", "other"):
        ask(server, model)
        answer = ask(server, None)
        assert (answer.json()["model"], text(answer)) == (model, expected[model])
    assert openings == ["other"]


def test_in_the_order_of_their_arrival(
    server: Serving, expected: dict[str, str], openings: list[str], pool: ThreadPoolExecutor
) -> None:
    order = ["demo", "other", "other", "demo", "other"]
    with braked(server.llm) as brake:
        running = pool.submit(ask, server, "demo")
        assert brake.holds.wait(PATIENCE)
        waiting = queue_up(server, pool, order)
        assert openings == []
        brake.release()
        assert [text(one.result()) for one in [running, *waiting]] == [expected[model] for model in ["demo", *order]]
    assert openings == ["other", "demo", "other"]


def test_a_running_answer_is_finished_first(server: Serving, pool: ThreadPoolExecutor, openings: list[str]) -> None:
    with braked(server.llm) as brake:
        running = pool.submit(ask, server, "demo", max_tokens=40)
        assert brake.holds.wait(PATIENCE)
        [other] = queue_up(server, pool, ["other"])
        [late] = queue_up(server, pool, ["demo"])
        passes = server.worker.progress.passes
        brake.release()
        assert running.result().json()["usage"]["completion_tokens"] == 40
        assert other.result().status_code == late.result().status_code == 200
    assert openings == ["other", "demo"]
    assert server.worker.progress.passes - passes == 40 + 6 + 6  # nobody shared a pass


def test_unknown_names_and_bad_bodies_are_told_at_once(server: Serving, openings: list[str]) -> None:
    with braked(server.llm) as brake, ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, server, "demo")
        assert brake.holds.wait(PATIENCE)
        assert error(ask(server, "third"))[0] == 404
        assert ask(server, "other", temperature=7).status_code == 400
        context = server.worker.shelf.known("other").context
        status, said = error(ask(server, "other", prompt=[1] * context))
        assert (status, f"a context of {context}" in said) == (400, True)
        assert server.worker.queued == 0
        brake.release()
        assert running.result().status_code == 200
    assert openings == []


def test_texts_and_tokens_of_a_closed_model(server: Serving, openings: list[str]) -> None:
    asked = {"model": "other", "prompt": PROMPT, "add_special_tokens": False}
    tokens = server.post("/tokenize", json=asked).json()
    assert tokens["max_model_len"] == server.worker.shelf.known("other").context
    back = server.post("/detokenize", json={"model": "other", "tokens": tokens["tokens"]}).json()
    assert back["prompt"] == PROMPT
    assert server.post("/tokenize", json={"model": "third", "prompt": PROMPT}).status_code == 404
    assert openings == []


def test_other_ways_to_ask(server: Serving, openings: list[str]) -> None:
    vectors = [server.client().embeddings.create(model=model, input="x") for model in ("other", "demo")]
    assert [one.model for one in vectors] == ["other", "demo"]
    assert len(vectors[0].data[0].embedding) == server.worker.shelf.known("other").config.hidden_size
    response = server.client().responses.create(model="other", input="hello", max_output_tokens=2)
    assert response.model == "other"
    stream = server.client().completions.create(model="demo", prompt="x", max_tokens=2, stream=True)
    assert {chunk.model for chunk in stream} == {"demo"}
    assert openings == ["other", "demo", "other", "demo"]


def test_a_request_that_nobody_wants_any_more_opens_nothing(server: Serving, openings: list[str]) -> None:
    with braked(server.llm) as brake, ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, server, "demo")
        assert brake.holds.wait(PATIENCE)
        with httpx.stream("POST", server.url + TEXT, json=BODY | {"model": "other", "stream": True}) as stream:
            lines = stream.iter_lines()
            eventually(lambda: '"waiting": 1' in next(lines))
        eventually(lambda: server.worker.queued == 0)
        brake.release()
        assert running.result().status_code == 200
    assert openings == []


def test_a_model_that_cannot_be_opened(
    server: Serving, folder: Path, expected: dict[str, str], pool: ThreadPoolExecutor, openings: list[str]
) -> None:
    weights = next(folder.glob("*.safetensors"))
    with braked(server.llm) as brake:
        running = pool.submit(ask, server, "demo")
        assert brake.holds.wait(PATIENCE)
        waiting = queue_up(server, pool, ["other", "demo", "other"])
        aside = weights.rename(folder.parent / "aside")
        try:
            brake.release()
            assert [text(one.result()) for one in (running, waiting[1])] == [expected["demo"]] * 2
            for one in (waiting[0], waiting[2]):
                status, said = error(one.result())
                assert (status, str(folder) in said) == (500, True)
            status, _ = error(ask(server, "other"))
            assert status == 500
            assert text(ask(server, None)) == expected["demo"]
        finally:
            aside.rename(weights)
    assert text(ask(server, "other")) == expected["other"]
    assert openings == ["other", "demo", "other", "demo", "other"]


def test_a_ceiling_that_one_does_not_fit_under(
    server: Serving, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.worker.shelf, "_options", OpenOptions(memory="1MiB"))
    status, said = error(ask(server, "other"))
    assert (status, "The least that works is" in said) == (500, True)
    assert server.metric("penstock_memory_ceiling_bytes") == 0
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "model": "demo", "running": 0, "queued": 0}
    monkeypatch.undo()
    assert text(ask(server, "demo")) == expected["demo"]
    assert server.metric("penstock_memory_ceiling_bytes") == 1 << 30


def test_a_fault_of_our_own_in_opening(
    server: Serving, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("a secret of the server's")

    monkeypatch.setattr(server.worker.shelf, "_read_again", broken)
    stream = server.client().completions.create(model="other", prompt="x", max_tokens=2, stream=True)
    with pytest.raises(openai.APIError, match="its log says why"):
        list(stream)
    assert any(record.exc_info for record in caplog.records)
    monkeypatch.undo()
    assert server.worker.alive
    assert text(ask(server, "other")) == expected["other"]


def test_those_that_wait_are_told_what_they_wait_for(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = server.worker.shelf
    seen: list[str] = []
    read = shelf._read_again
    named = []

    def reading(name: str) -> KnownModel:
        eventually(lambda: seen)
        named.append(httpx.get(f"{server.url}/health").json()["model"])
        return read(name)

    monkeypatch.setattr(shelf, "_read_again", reading)
    with httpx.stream("POST", server.url + TEXT, json=BODY | {"model": "other", "stream": True}) as stream:
        for line in stream.iter_lines():
            if '"opening": true' in line:
                seen.append(line)
    assert seen
    assert '"waiting": 1' in seen[0]
    assert named == ["other"]
    assert server.worker.progress.layers == server.llm.config.num_hidden_layers


def test_the_server_ends_while_one_waits(folder: Path, pool: ThreadPoolExecutor) -> None:
    with Shelf.read({"demo": "demo", "other": str(folder)}, OPTIONS) as shelf:
        shelf.open_first()
        with serving_shelf(shelf) as server, braked(server.llm) as brake:
            pool.submit(ask, server, "demo")
            assert brake.holds.wait(PATIENCE)
            [waits] = queue_up(server, pool, ["other"])
            server.worker.close()
            assert error(waits.result()) == (503, "The server is shutting down.")
