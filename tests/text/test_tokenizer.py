from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import ChatTemplateError, TokenizerError, UsageError
from penstock.text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "src" / "penstock" / "data" / "demo"
BOS, EOT = 0, 4
HELLO = [{"role": "user", "content": "hello"}]


def model(directory: Path, config: Any = None, **json_files: Any) -> Path:
    """A model directory with the demo's tokenizer.json; `config` is its tokenizer_config.json."""
    shutil.copy(DEMO / "tokenizer.json", directory)
    for name, content in {"tokenizer_config": config, **json_files}.items():
        if content is not None:
            (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def changed(directory: Path, **parts: Any) -> Path:
    """A model directory whose tokenizer.json has other values under these keys."""
    content = json.loads((DEMO / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps({**content, **parts}))
    return directory


def opened(directory: Path) -> Tokenizer:
    tokenizer = Tokenizer.open(directory)
    assert tokenizer is not None
    return tokenizer


def added(text: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {"content": text, **plain, **flags}


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return opened(DEMO)


def fails(directory: Path) -> TokenizerError:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.open(directory)
    assert "\n" not in caught.value.problem
    return caught.value


class TestOpen:
    def test_no_tokenizer(self, tmp_path: Path) -> None:
        assert Tokenizer.open(tmp_path) is None

    def test_another_form(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
        error = fails(tmp_path)
        assert "has a tokenizer.model but no tokenizer.json" in error.problem
        assert "save_pretrained" in error.remedy

    @pytest.mark.parametrize("text", ['{"model": ', "[]", '{"model": {"type": "Magic"}}', ""])
    def test_malformed(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "tokenizer.json").write_text(text)
        error = fails(tmp_path)
        assert f"{tmp_path / 'tokenizer.json'} is not a tokenizer: " in error.problem
        assert "Download" in error.remedy

    def test_panic_within_the_library(self, tmp_path: Path) -> None:
        step = [{"SpecialToken": {"id": "<nowhere>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        post_processor = {"type": "TemplateProcessing", "single": step, "pair": step, "special_tokens": {}}
        assert "is not a tokenizer" in fails(changed(tmp_path, post_processor=post_processor)).problem

    def test_lfs_pointer(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
        error = fails(tmp_path)
        assert "Git LFS pointer" in error.problem
        assert "git lfs pull" in error.remedy

    def test_directory_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").mkdir()
        assert "is a directory" in fails(tmp_path).problem

    def test_config_is_not_json(self, tmp_path: Path) -> None:
        (model(tmp_path) / "tokenizer_config.json").write_text("{")
        assert "tokenizer_config.json is not JSON" in fails(tmp_path).problem

    def test_leaves_jinja_alone(self) -> None:
        """It takes 11 MB that completing plain text can do without."""
        code = "import sys; from penstock.text.tokenizer import Tokenizer; Tokenizer.open(sys.argv[1]).encode('a')"
        code += "; sys.exit('jinja2' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code, str(DEMO)], check=False).returncode == 0


class TestEncode:
    def test_post_processor_adds_bos(self, demo: Tokenizer) -> None:
        assert demo.encode("def")[0] == BOS
        assert demo.encode("def") == [BOS, *demo.encode("def", add_special_tokens=False)]
        assert demo.encode("") == [BOS]

    @pytest.mark.parametrize("flag", [True, False])
    def test_flags_in_the_config_do_not_count(self, tmp_path: Path, demo: Tokenizer, flag: bool) -> None:
        config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        tokenizer = opened(model(tmp_path, {**config, "add_bos_token": flag, "add_eos_token": flag}))
        assert tokenizer.encode("def") == demo.encode("def")

    def test_special_tokens_in_the_text(self, demo: Tokenizer) -> None:
        assert demo.encode("a<|eot_id|>", add_special_tokens=False)[-1] == EOT

    def test_neither_cut_nor_filled(self, tmp_path: Path, demo: Tokenizer) -> None:
        truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        strategy = {"Fixed": 64}
        padding = {"strategy": strategy, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<|x|>"}
        padding["pad_to_multiple_of"] = None
        text = "for x in range(10): print(x)"
        tokenizer = opened(changed(tmp_path, truncation=truncation, padding=padding))
        assert tokenizer.encode(text) == demo.encode(text)

    def test_not_unicode(self, demo: Tokenizer) -> None:
        with pytest.raises(UsageError, match=r"unpaired surrogate \(its character 2\) cannot be encoded"):
            demo.encode("ab\ud800c")

    def test_not_text(self, demo: Tokenizer) -> None:
        with pytest.raises(UsageError, match="a int cannot be encoded"):
            demo.encode(5)  # type: ignore[arg-type]


class TestDecode:
    @pytest.mark.parametrize("text", ["  two , spaces .", "a\r\n\tb", "naïve 👩‍👩‍👧 你好", "don 't !"])
    def test_round_trip(self, demo: Tokenizer, text: str) -> None:
        assert demo.decode(demo.encode(text)) == text

    def test_special_tokens(self, demo: Tokenizer) -> None:
        ids = [BOS, *demo.encode("x", add_special_tokens=False), EOT]
        assert demo.decode(ids) == "x"
        assert demo.decode(ids, skip_special_tokens=False) == "<|begin_of_text|>x<|eot_id|>"

    def test_ids_of_padded_embeddings(self, demo: Tokenizer) -> None:
        assert demo.decode([10**9, *demo.encode("x")]) == "x"

    def test_numpy_ids(self, demo: Tokenizer) -> None:
        assert demo.decode(np.array(demo.encode("x = 1"))) == "x = 1"

    @pytest.mark.parametrize("bad", [-1, 2**32, 1.5, None])
    def test_not_ids(self, demo: Tokenizer, bad: Any) -> None:
        with pytest.raises(UsageError, match="these are not token ids"):
            demo.decode([bad])


class TestVocabulary:
    def test_ids_and_tokens(self, demo: Tokenizer) -> None:
        assert demo.token_id("<|eot_id|>") == EOT
        assert demo.token(EOT) == "<|eot_id|>"
        assert demo.token_id("<|nothing|>") is None
        assert demo.token(10**9) is None
        assert demo.vocab_size == 4096
        assert demo.special_ids == {0, 1, 2, 3, 4}

    def test_roles_as_texts(self, demo: Tokenizer) -> None:
        assert demo.special_tokens == {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}


class TestSpecialTokens:
    def test_objects_and_texts(self, tmp_path: Path) -> None:
        config = {"eos_token": "<|eot_id|>", "bos_token": added("<|begin_of_text|>"), "pad_token": None}
        tokenizer = opened(model(tmp_path, {**config, "image_token": "<|image|>", "add_bos_token": True}))
        expected = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "image_token": "<|image|>"}
        assert tokenizer.special_tokens == expected
        assert list(tokenizer.special_tokens) == list(expected)

    def test_older_form(self, tmp_path: Path) -> None:
        older = {"eos_token": {"content": "<|eot_id|>", "lstrip": False}, "additional_special_tokens": ["<|a|>"]}
        tokenizer = opened(model(tmp_path, {"eos_token": "<|end_of_text|>"}, special_tokens_map=older))
        assert tokenizer.special_tokens == {"eos_token": "<|eot_id|>"}
        assert tokenizer.token_id("<|a|>") in tokenizer.special_ids

    def test_newer_form_wins(self, tmp_path: Path) -> None:
        config = {"eos_token": "<|end_of_text|>", "added_tokens_decoder": {"1": added("<|end_of_text|>")}}
        older = {"eos_token": "<|eot_id|>"}
        assert opened(model(tmp_path, config, special_tokens_map=older)).special_tokens == {
            "eos_token": "<|end_of_text|>"
        }

    def test_tokens_missing_from_the_vocabulary(self, tmp_path: Path, demo: Tokenizer) -> None:
        """Their ids are beyond the model's vocabulary, which is no problem as long as nobody writes them."""
        config = {"added_tokens_decoder": {"4097": added("<|b|>"), "4096": added("<|a|>", special=False)}}
        tokenizer = opened(model(tmp_path, {**config, "extra_special_tokens": {"image_token": "<|c|>"}}))
        assert [tokenizer.token_id(token) for token in ("<|a|>", "<|b|>", "<|c|>")] == [4096, 4097, 4098]
        assert tokenizer.encode("<|b|>", add_special_tokens=False) == [4097]
        assert tokenizer.decode([4096, 4097, 4098]) == "<|a|>"
        assert tokenizer.special_tokens == {"image_token": "<|c|>"}
        assert tokenizer.encode("plain") == demo.encode("plain")

    def test_role_makes_a_token_special(self, tmp_path: Path) -> None:
        config = {"eos_token": "<|a|>", "added_tokens_decoder": {"4096": added("<|a|>", special=False)}}
        assert opened(model(tmp_path, config)).special_ids == {0, 1, 2, 3, 4, 4096}

    @pytest.mark.parametrize(
        ("config", "problem"),
        [
            ({"bos_token": 5}, "bos_token is 5, not a token"),
            ({"bos_token": {"text": "x"}}, "bos_token is {'text': 'x'}, not a token"),
            ({"bos_token": {"content": "x", "lstrip": 1}}, "not a token"),
            ({"additional_special_tokens": "x"}, "additional_special_tokens is 'x', not a list"),
            ({"extra_special_tokens": [3]}, "extra_special_tokens is 3, not a token"),
            ({"added_tokens_decoder": [1]}, "added_tokens_decoder is [1], not an object"),
            ({"added_tokens_decoder": {"x": "y"}}, "not an object with ids as keys"),
            ({"added_tokens_decoder": {"1": 2}}, "added_tokens_decoder is 2, not a token"),
        ],
    )
    def test_malformed(self, tmp_path: Path, config: Any, problem: str) -> None:
        error = fails(model(tmp_path, config))
        assert problem in error.problem
        assert str(tmp_path / "tokenizer_config.json") in error.problem


class TestChatTemplates:
    def test_one_bos(self, demo: Tokenizer) -> None:
        ids = demo.apply_chat_template(HELLO)
        assert ids.count(BOS) == 1
        text = demo.chat_template().render(HELLO)
        assert demo.decode(ids, skip_special_tokens=False) == text
        assert text.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")

    def test_options_reach_the_template(self, tmp_path: Path) -> None:
        source = "{{ mood }}{{ add_generation_prompt }}{{ tools | length }}{{ eos_token }}"
        tokenizer = opened(model(tmp_path, {"eos_token": "<|end_of_text|>", "chat_template": source}))
        ids = tokenizer.apply_chat_template(HELLO, tools=[{}, {}], add_generation_prompt=False, mood="calm")
        assert tokenizer.decode(ids, skip_special_tokens=False) == "calmFalse2<|end_of_text|>"

    def test_in_the_config(self, tmp_path: Path) -> None:
        tokenizer = opened(model(tmp_path, {"chat_template": "one"}, chat_template={"chat_template": "two"}))
        assert tokenizer.chat_template().source == "one"

    def test_named_in_the_config(self, tmp_path: Path) -> None:
        templates = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
        tokenizer = opened(model(tmp_path, {"chat_template": templates}))
        assert tokenizer.decode(tokenizer.apply_chat_template(HELLO)) == "one"
        assert tokenizer.decode(tokenizer.apply_chat_template(HELLO, tools=[])) == "two"
        assert tokenizer.decode(tokenizer.apply_chat_template(HELLO, tools=[], template="default")) == "one"

    def test_of_a_processor(self, tmp_path: Path) -> None:
        assert opened(model(tmp_path, chat_template={"chat_template": "two"})).chat_template().source == "two"

    def test_files_win(self, tmp_path: Path) -> None:
        (model(tmp_path, {"chat_template": "config"}) / "chat_template.jinja").write_bytes(b"a\r\nb\n")
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag é", encoding="utf-8")
        tokenizer = opened(tmp_path)
        assert tokenizer.chat_template().source == "a\nb\n"
        assert tokenizer.chat_template("rag").source == "rag é"
        assert tokenizer.chat_template("rag") is tokenizer.chat_template("rag")

    def test_none(self, tmp_path: Path) -> None:
        tokenizer = opened(model(tmp_path, {"chat_template": None}))
        assert not tokenizer.has_chat_template
        with pytest.raises(ChatTemplateError, match="has no chat template") as caught:
            tokenizer.apply_chat_template(HELLO)
        assert "--raw" in caught.value.remedy

    def test_unknown_name(self, tmp_path: Path) -> None:
        tokenizer = opened(model(tmp_path, {"chat_template": [{"name": "rag", "template": ""}]}))
        assert tokenizer.has_chat_template
        with pytest.raises(ChatTemplateError, match="no chat template named 'default'") as caught:
            tokenizer.chat_template()
        assert "'rag'" in caught.value.remedy

    def test_malformed_template_opens(self, tmp_path: Path) -> None:
        tokenizer = opened(model(tmp_path, {"chat_template": "a\n{% if %}"}))
        assert tokenizer.encode("x")
        with pytest.raises(ChatTemplateError) as caught:
            tokenizer.chat_template()
        assert f"the chat template of {tmp_path} is malformed: line 2" in caught.value.problem

    @pytest.mark.parametrize("source", [5, {"default": "x"}, ["x"], [{"name": "x"}], [{"template": "x", "name": 1}]])
    def test_malformed_entry(self, tmp_path: Path, source: Any) -> None:
        assert "chat_template is " in fails(model(tmp_path, {"chat_template": source})).problem

    def test_not_utf8(self, tmp_path: Path) -> None:
        (model(tmp_path) / "chat_template.jinja").write_bytes(b"ab\xff")
        assert "chat_template.jinja is not UTF-8 (at its byte 2)" in fails(tmp_path).problem
