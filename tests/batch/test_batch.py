from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.batches import CHAT, CREATED, TEXT, ask, by_id, mixed, records, run_batch, write_requests
from helpers.packed_files import contents
from helpers.thorough import quick
from penstock import LLM
from penstock.batch.bench import MOST_HELD
from penstock.batch.run import BatchSettings
from penstock.errors import CheckpointError, MemoryCeilingError, UsageError
from penstock.openai_api.requests import parse

GOLDEN = Path(__file__).parents[1] / "golden" / "batch"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of `mixed`."""
    folder = tmp_path_factory.mktemp("batch")
    summary = run_batch(write_requests(folder / "in.jsonl", mixed()), folder / "out.jsonl")
    assert (summary.total, summary.answered, summary.failed) == (20, 14, 6)
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl", "out.jsonl"]
    return folder / "out.jsonl"


class TestFormat:
    def test_golden(self, tmp_path: Path) -> None:
        """A difference is a bug, or a deliberate change: `python tests/test_batch.py` writes the results anew."""
        assert results_of(GOLDEN / "requests.jsonl", tmp_path) == (GOLDEN / "results.jsonl").read_bytes()

    def test_of_an_answer(self, done: Path) -> None:
        record = by_id(done)["greedy"]
        assert set(record) == {"id", "custom_id", "response", "error"}
        assert re.fullmatch(r"batch_req_[0-9a-f]{24}", record["id"])
        assert record["error"] is None
        response = record["response"]
        assert response["status_code"] == 200
        assert re.fullmatch(r"req_[0-9a-f]{24}", response["request_id"])
        body = response["body"]
        assert (body["object"], body["created"], body["model"]) == ("text_completion", CREATED, "demo")
        assert body["usage"]["completion_tokens"] == 20
        assert body["choices"][0]["finish_reason"] == "length"

    def test_ids_differ(self, done: Path) -> None:
        assert len({record["id"] for record in records(done)}) == 20

    def test_results_are_in_the_order_of_the_requests(self, done: Path) -> None:
        ids = [json.loads(line).get("custom_id") for line in map(_line, mixed()) if line not in (b"", b"{not json")]
        assert [record["custom_id"] for record in records(done) if record["custom_id"]] == ids

    def test_a_line_break_of_unicode_breaks_no_line(self, tmp_path: Path) -> None:
        path = write_requests(tmp_path / "in.jsonl", [ask("a\u2028b\x85c\u2029d"), ask("e")])
        run_batch(path, tmp_path / "out.jsonl")
        lines = (tmp_path / "out.jsonl").read_text().splitlines()
        assert [json.loads(line)["custom_id"] for line in lines] == ["a\u2028b\x85c\u2029d", "e"]


class TestAnswers:
    def test_are_those_of_a_prompt_alone(self, done: Path) -> None:
        with LLM.open("demo") as llm:
            for request in (
                r for r in mixed() if isinstance(r, dict) and r["custom_id"] in ("again", "seeded", "last")
            ):
                body = by_id(done)[request["custom_id"]]["response"]["body"]
                params = parse(TEXT, request["body"]).params(default_seed=body["seed"])
                [output] = llm.generate([request["body"]["prompt"]], params)
                assert body["choices"][0]["text"] == output.text

    def test_unseeded_requests_have_seeds_of_their_own(self, done: Path) -> None:
        seeds = [r["response"]["body"]["seed"] for r in records(done) if not r["error"]]
        assert len(set(seeds)) == len(seeds)
        assert all(0 <= seed < 2**53 for seed in seeds)
        assert by_id(done)["seeded"]["response"]["body"]["seed"] == 7

    def test_chat(self, tmp_path: Path) -> None:
        asked = ask(
            "chat", CHAT, messages=[{"role": "user", "content": "def add(a, b):"}], logprobs=True, top_logprobs=1
        )
        run_batch(write_requests(tmp_path / "in.jsonl", [asked]), tmp_path / "out.jsonl")
        [record] = records(tmp_path / "out.jsonl")
        body = record["response"]["body"]
        assert (body["object"], body["id"][:9]) == ("chat.completion", "chatcmpl-")
        [choice] = body["choices"]
        assert choice["message"]["role"] == "assistant"
        assert len(choice["logprobs"]["content"]) == body["usage"]["completion_tokens"] == 6

    def test_what_names_no_limit_has_that_of_the_batch(self, tmp_path: Path) -> None:
        asked = [ask("a", max_tokens=None, ignore_eos=True), ask("b", max_tokens=None, ignore_eos=True)]
        summary = run_batch(write_requests(tmp_path / "in.jsonl", asked), tmp_path / "out.jsonl", max_tokens=17)
        assert summary.tokens == 34

    def test_the_model_of_a_request_is_not_looked_at(self, tmp_path: Path) -> None:
        asked = [ask("a", model="gpt-4o"), ask("b")]
        del asked[1]["body"]["model"]
        assert run_batch(write_requests(tmp_path / "in.jsonl", asked), tmp_path / "out.jsonl").answered == 2


class TestPasses:
    def test_requests_share_them(self, tmp_path: Path) -> None:
        path = write_requests(tmp_path / "in.jsonl", [ask(f"{i}", prompt=[i, 9], max_tokens=8) for i in range(12)])
        summary = run_batch(path, tmp_path / "out.jsonl")
        assert (summary.passes, summary.tokens, summary.drawn) == (8, 96, 96)

    def test_as_many_at_once_as_they_may(self, tmp_path: Path) -> None:
        requests = [ask(f"{i}", prompt=[i, 9], max_tokens=4, ignore_eos=True) for i in range(6)]
        path = write_requests(tmp_path / "in.jsonl", requests)
        assert run_batch(path, tmp_path / "out.jsonl", at_once=2).passes == 12
        assert run_batch(path, tmp_path / "other.jsonl", at_once=1).passes == 24
        assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "other.jsonl").read_bytes()

    def test_few_wait_for_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Requests that there is no room for are not even submitted, save for the next one."""
        waiting: list[int] = []
        step = LLM.step

        def look(llm: LLM) -> Any:
            waiting.append(llm.waiting)
            return step(llm)

        monkeypatch.setattr(LLM, "step", look)
        with LLM.open("demo") as llm:
            one = llm.kv_shape.bytes_for(600)
        monkeypatch.setattr("penstock.memory.budget.Budget.most_kv", lambda self, sequences: 3 * one + one // 2)
        requests = [ask(f"{i}", prompt=[i, 9], max_tokens=598, stop="\n", temperature=0.9) for i in range(20)]
        summary = run_batch(write_requests(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl")
        assert summary.answered == 20
        assert max(waiting) == 1


class TestFailures:
    @pytest.mark.parametrize(
        ("custom_id", "status", "code", "words"),
        [
            ("hot", 400, "invalid_value", "temperature=3"),
            ("long", 400, "context_length_exceeded", "140000 tokens"),
            ("nowhere", None, "invalid_url", '"url" is "/v1/embeddings", not /v1/chat/completions or /v1/completions.'),
            ("streams", 400, "unsupported_parameter", "stream has no meaning in a batch"),
            (None, None, "invalid_json_line", "Line 9 is not JSON"),
        ],
    )
    def test_have_records(self, done: Path, custom_id: str | None, status: int | None, code: str, words: str) -> None:
        record = by_id(done)[custom_id]
        assert record["error"]["code"] == code
        assert words in record["error"]["message"]
        if status is None:
            assert record["response"] is None
        else:
            assert record["response"]["status_code"] == status
            assert record["response"]["body"]["error"]["message"] == record["error"]["message"]

    def test_the_second_of_two_with_one_id(self, done: Path) -> None:
        first, second = (record for record in records(done) if record["custom_id"] == "greedy")
        assert first["error"] is None
        assert second["error"] == {"code": "duplicate_custom_id", "message": "Line 1 has the same custom_id."}

    @pytest.mark.parametrize(
        ("line", "code", "words"),
        quick(
            4,
            [
                (b'{"custom_id": "a"}', "invalid_method", '"method" is missing, not "POST".'),
                (b"[1]", "invalid_json_line", "is [1], not a JSON object"),
                (b'"text"', "invalid_json_line", "not a JSON object"),
                (b"\xff\xfe", "invalid_json_line", "is not UTF-8"),
                (b'{"a": 1, "a": 2}', "invalid_json_line", "has the key 'a' twice"),
                (b'{"a": NaN}', "invalid_json_line", "NaN is not a JSON value"),
                (b"{}", "invalid_line", 'has neither "prompt" nor "messages"'),
                (b'{"method": "POST"}', "missing_custom_id", '"custom_id" is missing'),
                (b'{"custom_id": 7}', "missing_custom_id", '"custom_id" is 7, not'),
                (b'{"custom_id": ""}', "missing_custom_id", '"custom_id" is "", not'),
                (b'{"custom_id": "a", "method": "GET"}', "invalid_method", '"method" is "GET", not "POST".'),
                (b'{"custom_id": "a", "method": "POST", "url": []}', "invalid_url", '"url" is [], not'),
                (
                    b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": "x"}',
                    "invalid_body",
                    '"body" is "x", not a JSON object.',
                ),
            ],
        ),
    )
    def test_lines_that_are_no_requests(self, tmp_path: Path, line: bytes, code: str, words: str) -> None:
        path = write_requests(tmp_path / "in.jsonl", [line, ask("sound", max_tokens=1)])
        assert run_batch(path, tmp_path / "out.jsonl").answered == 1
        bad, sound = records(tmp_path / "out.jsonl")
        assert (bad["error"]["code"], bad["response"]) == (code, None)
        assert words in bad["error"]["message"]
        assert sound["custom_id"] == "sound"

    def test_one_that_does_not_fit_in_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("penstock.memory.budget.Budget.most_kv", lambda self, sequences: 1 << 20)
        path = write_requests(tmp_path / "in.jsonl", [ask("a", max_tokens=5000), ask("b", max_tokens=1)])
        assert run_batch(path, tmp_path / "out.jsonl").failed == 1
        a, b = records(tmp_path / "out.jsonl")
        assert "The least that works is" in a["error"]["message"]
        assert b["error"] is None

    def test_one_that_fails_in_a_pass(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        step = LLM.step

        def fail(llm: LLM) -> Any:
            stats = step(llm)
            if (victim := llm.engine.scheduler.active[0]).sampler.seed == 13:
                victim.error = MemoryCeilingError("It does not fit.", "Raise --memory.")
                llm.engine.cancel(victim, "error")
                raise victim.error
            return stats

        monkeypatch.setattr(LLM, "step", fail)
        path = write_requests(tmp_path / "in.jsonl", [ask("a", seed=13), ask("b"), ask("c")])
        assert run_batch(path, tmp_path / "out.jsonl").answered == 2
        assert by_id(tmp_path / "out.jsonl")["a"]["error"]["message"] == "It does not fit. Raise --memory."

    def test_very_many_of_them_need_no_pass(self, tmp_path: Path) -> None:
        path = write_requests(tmp_path / "in.jsonl", [b"?"] * (3 * MOST_HELD + 5))
        summary = run_batch(path, tmp_path / "out.jsonl")
        assert (summary.failed, summary.passes) == (3 * MOST_HELD + 5, 0)
        assert len(records(tmp_path / "out.jsonl")) == summary.failed


class TestRefusals:
    """Nothing of the user's is touched, and no state is left behind."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write_requests(tmp_path / "in.jsonl", [ask("a", max_tokens=2)])

    def check(self, path: Path, out: Path, words: str, error: type[Exception] = UsageError, **settings: Any) -> None:
        before = contents(path.parent)
        with pytest.raises(error) as caught:
            run_batch(path, out, **settings)
        assert words in str(caught.value)
        assert contents(path.parent) == before

    def test_a_file_that_is_there(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "out.jsonl").write_text("mine\n")
        self.check(path, tmp_path / "out.jsonl", "does not hold the results of this batch")
        run_batch(path, tmp_path / "out.jsonl", overwrite=True)
        assert len(records(tmp_path / "out.jsonl")) == 1

    def test_results_of_other_requests_or_options(self, path: Path, tmp_path: Path) -> None:
        run_batch(path, tmp_path / "out.jsonl")
        self.check(path, tmp_path / "out.jsonl", "does not hold the results", max_tokens=41)
        self.check(path, tmp_path / "out.jsonl", "does not hold the results", kv_dtype="f32")
        write_requests(path, [ask("a", max_tokens=3)])
        self.check(path, tmp_path / "out.jsonl", "does not hold the results")

    def test_results_and_more(self, path: Path, tmp_path: Path) -> None:
        run_batch(path, tmp_path / "out.jsonl")
        with (tmp_path / "out.jsonl").open("ab") as file:
            file.write(b"more")
        self.check(path, tmp_path / "out.jsonl", "does not hold the results")

    def test_requests_in_place_of_results(self, path: Path) -> None:
        self.check(path, path, "would overwrite the requests")

    def test_no_requests(self, path: Path, tmp_path: Path) -> None:
        self.check(tmp_path / "none.jsonl", tmp_path / "out.jsonl", "cannot be read: No such file")
        self.check(write_requests(path, [b"", b"  "]), tmp_path / "out.jsonl", "has no requests")
        (tmp_path / "folder").mkdir()
        self.check(tmp_path / "folder", tmp_path / "out.jsonl", "is not a regular file")

    def test_no_place(self, path: Path, tmp_path: Path) -> None:
        self.check(path, tmp_path / "none" / "out.jsonl", "is no directory")
        self.check(path, tmp_path, "is not a regular file")

    def test_a_model_that_does_not_open(self, path: Path, tmp_path: Path) -> None:
        self.check(path, tmp_path / "out.jsonl", "no such directory", CheckpointError, model="no/such/model")
        self.check(path, tmp_path / "out.jsonl", "The least that works", memory="1MiB")
        self.check(path, tmp_path / "out.jsonl", "kv_dtype='int8'", kv_dtype="int8")

    @pytest.mark.parametrize("name", ["max_tokens", "at_once"])
    def test_counts(self, name: str, path: Path) -> None:
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} 0: at least 1 is needed"):
            BatchSettings(model="demo", source=path, out=path, **{name: 0})


def test_a_batch_that_is_complete_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_requests(tmp_path / "in.jsonl", [ask("a"), ask("b", temperature=9)])
    run_batch(path, tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.delattr(LLM, "open")
    summary = run_batch(path, tmp_path / "out.jsonl")
    assert summary.complete_before
    assert (summary.answered, summary.failed, summary.tokens) == (1, 1, 6)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    path = write_requests(tmp_path / "in.jsonl", [ask("a")])
    (tmp_path / "link").symlink_to(tmp_path / "out.jsonl")
    run_batch(path, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(records(tmp_path / "out.jsonl")) == 1


def _line(one: Any) -> bytes:
    return one if isinstance(one, bytes) else json.dumps(one).encode()


def results_of(requests: Path, folder: Path) -> bytes:
    """Of the golden requests, wherever and whenever their file was written."""
    path = folder / "in.jsonl"
    path.write_bytes(requests.read_bytes())
    write_requests(path, path.read_bytes().splitlines())
    run_batch(path, folder / "out.jsonl")
    return (folder / "out.jsonl").read_bytes()


def write_golden(folder: Path) -> None:
    GOLDEN.mkdir(exist_ok=True)
    kept = [
        one for one in mixed() if not (isinstance(one, dict) and ("logprobs" in str(one) or one["custom_id"] == "long"))
    ]
    write_requests(GOLDEN / "requests.jsonl", kept)
    (GOLDEN / "results.jsonl").write_bytes(results_of(GOLDEN / "requests.jsonl", folder))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_golden(Path(folder))
