"""Templates, special tokens and token ids are those of `transformers`, for the same files."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, processors

from penstock.errors import ChatTemplateError
from penstock.text.tokenizer import Tokenizer

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "src" / "penstock" / "data" / "demo"
TEMPLATES = ROOT / "tests" / "fixtures" / "chat"
LLAMA2_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Orléans <ß>", "days": 2}}}
SEARCH = {"type": "function", "function": {"name": "search", "arguments": {"query": "rain"}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"x": {"type": "é"}}}},
    }
    for name in ("weather", "clock")
]
DOCUMENTS = [{"title": "One", "text": "first"}, {"title": "Two", "text": "second"}]
USER = {"role": "user", "content": " Hello,\n 👩‍👩‍👧 <|eot_id|> world! "}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [USER],
    "system": [{"role": "system", "content": " Be brief. \n"}, USER],
    "turns": [USER, {"role": "assistant", "content": "Well, "}, USER, {"role": "assistant", "content": " I  "}],
    "call": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "rain"}],
    "built in": [
        USER,
        {"role": "assistant", "tool_calls": [SEARCH]},
        {"role": "ipython", "content": {"mm": [1, None]}},
    ],
    "two calls": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}],
    "reasoning": [USER, {"role": "assistant", "content": "4", "reasoning": "2 + 2"}, USER],
    "notes": [{"role": "note", "content": "x"}, USER, {"role": "end", "content": ""}, USER],
    "parts": [PARTS],
    "empty": [],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompt": {"add_generation_prompt": True},
    "continue": {"continue_final_message": True},
    "tools": {"tools": TOOLS, "add_generation_prompt": True},
    "no tools": {"tools": []},
    "tools apart": {"tools": TOOLS, "tools_in_user_message": False, "date_string": "today"},
    "built in": {"builtin_tools": ["search", "code_interpreter"], "add_generation_prompt": True},
    "documents": {"documents": DOCUMENTS, "mood": "bright"},
    "own tokens": {"bos_token": "<|eot_id|>", "eos_token": "!"},
}


def reference(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(directory))


def ours(directory: Path) -> Tokenizer:
    tokenizer = Tokenizer.open(directory)
    assert tokenizer is not None
    return tokenizer


def demo_copy(directory: Path, config: Any, **json_files: Any) -> Path:
    shutil.copy(DEMO / "tokenizer.json", directory)
    shutil.copy(DEMO / "config.json", directory)
    for name, content in {"tokenizer_config": config, **json_files}.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def llama2_form(directory: Path) -> Path:
    """A tokenizer like Llama 2's: a space put in front and kept as ▁, unknown characters as bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdehilno[]/INST,.:\n"]
    merges = [("▁", "h"), ("▁h", "i"), ("l", "l"), ("▁", "["), ("I", "N"), ("▁", "a")]
    vocab = {token: index for index, token in enumerate(tokens)}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    backend.save(str(directory / "tokenizer.json"))
    shutil.copy(DEMO / "config.json", directory)
    config = {**LLAMA2_TOKENS, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def fixed_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides read the same clock, so that no midnight comes between."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls(2031, 2, 3, 4, 5)

    import transformers.utils.chat_template_utils as theirs

    monkeypatch.setattr(theirs, "datetime", Clock)
    monkeypatch.setattr(Tokenizer.__init__, "__kwdefaults__", {"now": Clock.now})


def both(make_theirs: Any, make_ours: Any) -> tuple[Any, Any]:
    """The two results; None stands for an error."""
    try:
        expected = make_theirs()
    except Exception:
        expected = None
    try:
        actual = make_ours()
    except ChatTemplateError:
        actual = None
    return expected, actual


@pytest.fixture(scope="module", params=["headers", "chatml", "loops"])
def templated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The demo's tokenizer with each of the templates: theirs, and the directory."""
    directory = tmp_path_factory.mktemp(request.param)
    shutil.copytree(DEMO, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(TEMPLATES / f"{request.param}.jinja", directory / "chat_template.jinja")
    return reference(directory), directory


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_rendering(templated: tuple[Any, Path], fixed_day: None, conversation: str, option: str) -> None:
    theirs, mine = templated[0], ours(templated[1])
    messages = CONVERSATIONS[conversation]
    options = {"add_generation_prompt": False, **OPTIONS[option]}
    template = mine.chat_template(for_tools="tools" in options)
    expected, actual = both(
        lambda: theirs.apply_chat_template(messages, tokenize=False, **options),
        lambda: template.render(messages, **options),
    )
    assert actual == expected
    expected, actual = both(
        lambda: theirs.apply_chat_template(messages, **options)["input_ids"],
        lambda: mine.apply_chat_template(messages, **options),
    )
    assert actual == expected


def test_most_of_the_above_render(fixed_day: None) -> None:
    """Lest two errors pass for agreement."""
    from penstock.text.chat_template import ChatTemplate

    count = 0
    for name in ("headers", "chatml", "loops"):
        template = ChatTemplate(
            (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), {"bos_token": "", "eos_token": ""}
        )
        for messages in CONVERSATIONS.values():
            for options in OPTIONS.values():
                text, _ = both(lambda m=messages, o=options, t=template: t.render(m, **o), lambda: None)
                count += text is not None
    assert count >= 150


NAMED = '{{"name": "{0}", "template": "{0}"}}'


@pytest.mark.parametrize("tools", [None, [], TOOLS])
@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": '{"chat_template": "config"}'},
        {
            "tokenizer_config.json": '{"chat_template": ['
            + NAMED.format("default")
            + ","
            + NAMED.format("tool_use")
            + "]}"
        },
        {"tokenizer_config.json": '{"chat_template": [' + NAMED.format("tool_use") + "]}"},
        {"tokenizer_config.json": '{"chat_template": "config"}', "chat_template.jinja": "file\r\n\n"},
        {"tokenizer_config.json": '{"chat_template": "config"}', "additional_chat_templates/tool_use.jinja": "t"},
        {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "t"},
        {},
    ],
)
def test_choice_of_template(tmp_path: Path, files: dict[str, str], tools: Any) -> None:
    demo_copy(tmp_path, {})
    (tmp_path / "additional_chat_templates").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    expected, actual = both(
        lambda: reference(tmp_path).apply_chat_template([USER], tools=tools, tokenize=False),
        lambda: ours(tmp_path).chat_template(for_tools=tools is not None).render([USER], tools=tools),
    )
    assert actual == expected


def added(text: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": text, **plain, **flags}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {}},
        {"tokenizer_config": {"bos_token": "<|begin_of_text|>", "add_bos_token": False, "add_eos_token": True}},
        {"tokenizer_config": {"eos_token": {"__type": "AddedToken", **added("<|eot_id|>")}, "pad_token": None}},
        {"tokenizer_config": {"eos_token": "a"}, "special_tokens_map": {"eos_token": {"content": "b", "lstrip": True}}},
        {"tokenizer_config": {"eos_token": "<|x|>", "added_tokens_decoder": {"4096": added("<|x|>", special=False)}}},
        {"tokenizer_config": {"added_tokens_decoder": {"4097": added("<|y|>"), "4096": added("<|x|>", rstrip=True)}}},
        {"tokenizer_config": {"added_tokens_decoder": {"4": added("<|eot_id|>", special=False)}}},
        {"tokenizer_config": {"image_token": "<|x|>", "additional_special_tokens": ["<|y|>", "return"]}},
        {"tokenizer_config": {"extra_special_tokens": {"x_token": "<|x|>"}}},
        {"tokenizer_config": {"extra_special_tokens": ["<|x|>"], "unk_token": "<|unk|>"}},
        {"tokenizer_config": {"eos_token": "def"}, "special_tokens_map": {"additional_special_tokens": ["<|x|>"]}},
    ],
)
def test_special_tokens(tmp_path: Path, files: dict[str, Any]) -> None:
    demo_copy(tmp_path, files.pop("tokenizer_config"), **files)
    theirs, mine = reference(tmp_path), ours(tmp_path)
    assert mine.special_tokens == theirs.special_tokens_map
    assert mine.vocab_size == len(theirs)
    text = "def f(x):  <|x|>  return<|y|> b a<|eot_id|>\n<|unk|>"
    for special in (True, False):
        ids = mine.encode(text, add_special_tokens=special)
        assert ids == theirs.encode(text, add_special_tokens=special)
        assert mine.decode(ids, skip_special_tokens=special) == theirs.decode(ids, skip_special_tokens=special)


@pytest.fixture(scope="module", params=["demo", "llama 2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    directory = DEMO if request.param == "demo" else llama2_form(tmp_path_factory.mktemp("llama2"))
    return reference(directory), ours(directory)


TEXTS = st.text(
    st.one_of(st.sampled_from("abhil [INST]\n▁你👩"), st.characters(exclude_categories=["Cs"])), max_size=40
)
PIECES = st.lists(st.one_of(TEXTS, st.sampled_from(["<s>", "</s>", "<|eot_id|>", " ", "  hi"])), max_size=6)


@given(text=PIECES.map("".join), special=st.booleans())
@settings(max_examples=300, deadline=None)
def test_ids_of_text(pair: tuple[Any, Tokenizer], text: str, special: bool) -> None:
    theirs, mine = pair
    ids = mine.encode(text, add_special_tokens=special)
    assert ids == theirs.encode(text, add_special_tokens=special)
    assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_text_of_ids(pair: tuple[Any, Tokenizer], data: st.DataObject) -> None:
    theirs, mine = pair
    ids = data.draw(st.lists(st.integers(0, mine.vocab_size + 2), max_size=30))
    for skip in (True, False):
        assert mine.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "note"]), "content": TEXTS}),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("name", ["headers", "chatml", "loops"])
@given(messages=MESSAGES, goes_on=st.booleans(), tools=st.sampled_from([None, TOOLS]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_conversation(
    pair: tuple[Any, Tokenizer], fixed_day: None, name: str, messages: Any, goes_on: bool, tools: Any
) -> None:
    theirs, mine = pair
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    renderer = Tokenizer(mine._backend, mine.special_tokens, {"default": source})
    options = {"tools": tools, "add_generation_prompt": not goes_on, "continue_final_message": goes_on}
    expected, actual = both(
        lambda: theirs.apply_chat_template(messages, chat_template=source, **options)["input_ids"],
        lambda: renderer.apply_chat_template(messages, **options),
    )
    assert actual == expected
