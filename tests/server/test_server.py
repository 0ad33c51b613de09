"""The server as clients see it: the `openai` package, and bare HTTP where that is not enough."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from helpers.serving import MODEL, Serving, braked, eventually, serving
from helpers.thorough import quick
from penstock import LLM, SamplingParams

MESSAGES: Any = [{"role": "user", "content": "print it"}]
GREEDY: Any = {"model": MODEL, "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM.open("demo", memory="1GiB") as llm:
        yield llm


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Serving]:
    with serving(llm) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def spare() -> Iterator[LLM]:
    """For servers of single tests: a model belongs to one server."""
    with LLM.open("demo", memory="1GiB") as llm:
        yield llm


@pytest.fixture(scope="module")
def expected() -> Iterator[LLM]:
    """The same model in other hands."""
    with LLM.open("demo", memory="1GiB", draft="none") as llm:
        yield llm


class TestWithTheOpenaiClient:
    def test_chat(self, client: openai.OpenAI, expected: LLM) -> None:
        got = client.chat.completions.create(messages=MESSAGES, **GREEDY)
        output = expected.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=8))
        assert got.choices[0].message.content == output.text
        assert got.choices[0].message.role == "assistant"
        assert got.choices[0].finish_reason == "length"
        assert got.usage is not None
        assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (output.stats.prompt_tokens, 8)
        assert got.model == MODEL

    def test_completions(self, client: openai.OpenAI, expected: LLM) -> None:
        prompts = ["def add(a, b):", "class Stack:"]
        got = client.completions.create(prompt=prompts, **GREEDY)
        outputs = expected.generate(prompts, SamplingParams(temperature=0, max_tokens=8))
        assert [choice.text for choice in got.choices] == [output.text for output in outputs]

    def test_token_ids(self, client: openai.OpenAI, expected: LLM) -> None:
        ids = expected.encode("def add(a, b):")
        got = client.completions.create(prompt=ids, **GREEDY)
        assert got.choices[0].text == client.completions.create(prompt="def add(a, b):", **GREEDY).choices[0].text

    def test_streamed_chat(self, client: openai.OpenAI) -> None:
        whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)
        with client.chat.completions.create(
            messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
        ) as stream:
            chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-2].choices[0].finish_reason == "length"
        assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
        assert len({chunk.id for chunk in chunks}) == 1

    def test_streamed_text(self, client: openai.OpenAI) -> None:
        whole = client.completions.create(prompt="def add(a, b):", **GREEDY)
        with client.completions.create(prompt="def add(a, b):", stream=True, **GREEDY) as stream:
            assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text

    def test_several_choices(self, client: openai.OpenAI) -> None:
        options: Any = {"model": MODEL, "messages": MESSAGES, "n": 3, "seed": 1, "temperature": 1, "max_tokens": 6}
        whole = [choice.message.content for choice in client.chat.completions.create(**options).choices]
        assert len(set(whole)) > 1
        texts = ["", "", ""]
        with client.chat.completions.create(stream=True, **options) as stream:
            for chunk in stream:
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == whole

    def test_logprobs(self, client: openai.OpenAI) -> None:
        got = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=2, **GREEDY)
        told = got.choices[0].logprobs
        assert told is not None
        assert told.content is not None
        assert "".join(entry.token for entry in told.content) == got.choices[0].message.content
        assert all(len(entry.top_logprobs) == 2 for entry in told.content)
        text = client.completions.create(prompt="def ", logprobs=1, **GREEDY).choices[0]
        assert text.logprobs is not None
        assert "".join(text.logprobs.tokens or []) == text.text

    def test_a_seed_and_a_stop_string(self, client: openai.OpenAI) -> None:
        options: Any = {"model": MODEL, "prompt": "def ", "temperature": 1, "max_tokens": 20, "seed": 11}
        first = client.completions.create(**options).choices[0].text
        assert client.completions.create(**options).choices[0].text == first
        stop = first[5:8]
        stopped = client.completions.create(stop=stop, **options).choices[0]
        assert stopped.text == first[: first.index(stop)]
        assert stopped.finish_reason == "stop"

    def test_our_own_parameters(self, client: openai.OpenAI, expected: LLM) -> None:
        extra = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.2}
        got = client.completions.create(
            model=MODEL, prompt="def ", temperature=1, seed=4, max_tokens=10, extra_body=extra
        )
        params = SamplingParams(temperature=1, seed=4, max_tokens=10, top_k=5, min_p=0.05, repetition_penalty=1.2)
        assert got.choices[0].text == expected.generate(["def "], params)[0].text

    def test_models(self, client: openai.OpenAI, llm: LLM) -> None:
        [model] = client.models.list().data
        assert model == client.models.retrieve(MODEL)
        assert (model.id, model.to_dict()["context_length"]) == (MODEL, llm.context)
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.models.retrieve("gpt-4")

    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ({"temperature": 2.5}, "temperature"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
            ({"messages": []}, "messages"),
        ],
    )
    def test_bad_requests_name_the_parameter(self, client: openai.OpenAI, options: Any, param: str) -> None:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(**{"messages": MESSAGES, **GREEDY, **options, "stream": stream})
            assert caught.value.param == param
            assert param in caught.value.message

    def test_another_model_is_not_found(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here"):
            client.chat.completions.create(model="gpt-4", messages=MESSAGES)

    def test_a_prompt_longer_than_the_context(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt=[5] * 140000)
        assert caught.value.code == "context_length_exceeded"


class TestPlainHttp:
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/nothing", 404),
            ("GET", "/v1/chat/completions", 405),
            ("DELETE", "/v1/models", 405),
            ("POST", "/v1/audio/speech", 404),
        ],
    )
    def test_what_is_not_there(self, server: Serving, method: str, path: str, status: int) -> None:
        response = httpx.request(method, server.url + path)
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b"\xff\xfe", b"[" * 5000, b'{"prompt": "\\ud800"}']
    )
    def test_what_is_no_request(self, server: Serving, body: bytes) -> None:
        response = server.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400
        assert response.json()["error"]["message"]

    def test_what_is_not_declared_to_be_json(self, server: Serving) -> None:
        response = server.post("/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"})
        assert response.status_code == 415

    def test_a_stream_is_an_event_stream(self, server: Serving) -> None:
        body = {"prompt": "x", "stream": True, "max_tokens": 2}
        response = server.post("/v1/completions", json=body)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.text.endswith("data: [DONE]\n\n")
        for event in response.text.removesuffix("\n\n").split("\n\n"):
            assert event.startswith(("data: ", ": "))

    def test_health(self, server: Serving) -> None:
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "model": "demo", "running": 0, "queued": 0}

    def test_the_page_brings_all_that_it_needs(self, server: Serving) -> None:
        page = httpx.get(server.url)
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "://" not in page.text.replace("http://www.w3.org/2000/svg", "")

    def test_metrics(self, server: Serving, client: openai.OpenAI) -> None:
        before = {name: server.metric(name) for name in COUNTERS}
        client.completions.create(prompt="def add(a, b):", **GREEDY)
        server.post("/v1/completions", json={})
        grown = {name: server.metric(name) - before[name] for name in COUNTERS}
        assert grown['penstock_requests_total{outcome="completed"}'] == 1
        assert grown['penstock_requests_total{outcome="rejected"}'] == 1
        assert grown["penstock_completion_tokens_total"] == 8
        assert grown["penstock_prompt_tokens_total"] == 8
        assert 1 <= grown["penstock_passes_total"] == grown["penstock_pass_seconds_count"]
        assert server.metric("penstock_memory_ceiling_bytes") == 1 << 30
        assert server.metric("penstock_resident_bytes") > 0
        assert server.metric("penstock_queue_requests") == server.metric("penstock_running_requests") == 0


COUNTERS = (
    'penstock_requests_total{outcome="completed"}',
    'penstock_requests_total{outcome="rejected"}',
    "penstock_completion_tokens_total",
    "penstock_prompt_tokens_total",
    "penstock_passes_total",
    "penstock_pass_seconds_count",
)


class TestWhoMayAsk:
    def test_a_key(self, spare: LLM) -> None:
        with serving(spare, api_key="secret") as server:
            for options in (
                {},
                {"headers": {"Authorization": "Bearer wrong"}},
                {"headers": {"Authorization": "secret"}},
            ):
                response = server.post("/v1/completions", json={"prompt": "x"}, **options)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                assert httpx.get(server.url + path).status_code == 401
            for path in ("/", "/health"):
                assert httpx.get(server.url + path).status_code == 200
            with pytest.raises(openai.AuthenticationError):
                server.client().models.list()
            assert server.client(api_key="secret").completions.create(prompt="x", **GREEDY).choices[0].text

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost:99", "[::1]:8000", "penstock.localhost"])
    def test_names_of_this_machine(self, server: Serving, host: str) -> None:
        assert httpx.get(f"{server.url}/health", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize("host", ["example.com", "127.0.0.1.example.com", "localhost.example.com", "[", "10.0.0.1"])
    def test_other_names_may_be_a_trap(self, server: Serving, host: str) -> None:
        response = httpx.get(f"{server.url}/health", headers={"Host": host})
        assert response.status_code == 403
        assert "not this machine" in response.json()["error"]["message"]

    def test_other_names_where_others_are_served(self, spare: LLM) -> None:
        with serving(spare, loopback=False) as server:
            assert httpx.get(f"{server.url}/health", headers={"Host": "box.lan"}).status_code == 200

    @pytest.mark.parametrize("origin", ["https://example.com", "null", "http://127.0.0.1:1"])
    def test_pages_from_elsewhere(self, server: Serving, origin: str) -> None:
        response = server.post("/v1/completions", json={"prompt": "x"}, headers={"Origin": origin})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers

    def test_its_own_page(self, server: Serving) -> None:
        body = {"prompt": "x", "max_tokens": 1}
        assert server.post("/v1/completions", json=body, headers={"Origin": server.url}).status_code == 200

    def test_no_permission_for_browsers_to_ask_from_elsewhere(self, server: Serving) -> None:
        headers = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
        response = httpx.options(f"{server.url}/v1/completions", headers=headers)
        assert response.status_code == 403


class TestTogether:
    """Twenty requests of all kinds at once, some given up midway: each gets what it gets alone."""

    def bodies(self) -> list[dict[str, Any]]:
        texts = ["def add(a, b):", "class Stack:\n    def ", "import os\n", "x = [", "def add(a, b):\n    return"]
        return [
            {
                "prompt": texts[i % 5] * (1 + 7 * (i % 3)),
                "max_tokens": 6 + i,
                "temperature": (0, 0.7, 1.3)[i % 3],
                "seed": i,
                "logprobs": i % 4,
                "top_p": 1 - 0.02 * i,
                "stop": ["\n\n\n"] if i % 2 else None,
                "stream": i % 4 == 1,
            }
            for i in range(20)
        ]

    @pytest.mark.parametrize("count", quick([6], [6, 20]))
    def test_bit_identical_to_alone(self, server: Serving, count: int) -> None:
        bodies = self.bodies()[:count]
        alone = [self.ask(server, body) for body in bodies]
        with ThreadPoolExecutor(20) as pool:
            together = list(pool.map(lambda i: self.ask(server, bodies[i], give_up=i % 5 == 4), range(count)))
        for i in range(count):
            if i % 5 != 4:
                assert together[i] == alone[i]
        eventually(lambda: server.metric("penstock_running_requests") == 0)
        assert not server.llm.busy

    @staticmethod
    def ask(server: Serving, body: dict[str, Any], give_up: bool = False) -> Any:
        if give_up:
            with httpx.stream("POST", f"{server.url}/v1/completions", json={**body, "stream": True}) as response:
                for count, _ in enumerate(response.iter_lines()):
                    if count == 6:
                        return None
        response = server.post("/v1/completions", json=body)
        if not body["stream"]:
            return response.json()["choices"]
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        choices = [chunk["choices"][0] for chunk in chunks]
        told = [choice["logprobs"]["token_logprobs"] for choice in choices if choice["logprobs"]]
        return [
            "".join(choice["text"] for choice in choices),
            choices[-1]["finish_reason"],
            [value for values in told for value in values],
        ]

    def test_a_pass_serves_all_that_wait(self, server: Serving) -> None:
        with braked(server.llm) as brake, ThreadPoolExecutor(8) as pool:
            first = pool.submit(server.post, "/v1/completions", json={"prompt": "x", "max_tokens": 1})
            assert brake.holds.wait(60)
            before = server.worker.progress.passes
            others = [
                pool.submit(server.post, "/v1/completions", json={"prompt": "y", "max_tokens": 1}) for _ in range(7)
            ]
            eventually(lambda: server.worker.queued == 7)
            assert httpx.get(f"{server.url}/health").json()["queued"] == 7
            brake.release()
            assert all(answer.result().status_code == 200 for answer in [first, *others])
        assert server.worker.progress.passes - before == 2


class TestShutdown:
    def test_what_runs_ends_with_the_server(self, spare: LLM) -> None:
        lines: list[str] = []
        statuses: list[int] = []

        def stream(url: str) -> None:
            body = {"prompt": "x", "stream": True, "max_tokens": 100000, "ignore_eos": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
                lines.extend(response.iter_lines())

        def whole(url: str) -> None:
            body = {"prompt": "x", "max_tokens": 100000, "ignore_eos": True}
            statuses.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code)

        with serving(spare) as server:
            threads = [threading.Thread(target=target, args=(server.url,)) for target in (stream, whole)]
            for thread in threads:
                thread.start()
            eventually(lambda: server.worker.running == 2 and server.worker.progress.passes > 3)
        for thread in threads:
            thread.join(60)
        assert "The server is shutting down." in lines[-2]
        assert statuses == [503]
        assert not spare.busy
