"""The tokenizer that a GGUF file's metadata stands for, beside the tokenizer.json that it was made of."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from helpers.cases import DEMO
from helpers.checkpoints import random_tensors, tiny_config
from helpers.gguf import write_gguf_of
from penstock import LLM
from penstock.errors import CheckpointWarning, FormatError, TokenizerError, UnsupportedError
from penstock.gguf.divisions import DIVISIONS
from penstock.gguf.tokenizer import tokenizer_config_json, tokenizer_json
from penstock.packing.pack import pack
from penstock.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]
TEXTS = [
    "def add(a, b):\n    return a + b\n\n\nclass Stack:\n\tdef push(self, x):\r\n        self.items.append(x)\n",
    "Penstock runs large models. It's WE'LL don't, 'Tis O'Brien's 12345 3.14 1,000,000 half ½ Ⅻ ٣",
    "Привет мир! 你好世界。こんにちは 안녕하세요 مرحبا שלום नमस्ते สวัสดี",
    "😀👩‍👩‍👧‍👦🇩🇪 é vs e\u0301, ﬁ \u200b ▁ \ufeff",
    "  two   three    four\n\n\n\n",
    "CamelCaseHTTPServer snake_case http://a.b/c?d=e&f=g#h",
    "",
    " ",
    "\n",
]


def metadata_of(tokenizer: dict[str, Any], pre: str, bos: str, eos: str) -> dict[str, Any]:
    """As llama.cpp's converter makes it of a tokenizer.json."""
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    ids = tokenizer["model"]["vocab"] | {token["content"]: index for index, token in added.items()}
    tokens = {index: token for token, index in ids.items()}
    count = max(tokens) + 4  # rows that fill up the embedding
    kinds = {index: 3 if token["special"] else 4 for index, token in added.items()}
    merges = tokenizer["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [tokens.get(index, f"[PAD{index}]") for index in range(count)],
        "tokenizer.ggml.token_type": [kinds.get(index, 1 if index in tokens else 5) for index in range(count)],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": ids[bos],
        "tokenizer.ggml.eos_token_id": ids[eos],
    }


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEMO / "tokenizer.json").read_text())
    return content


def backend_of(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(metadata, "m.gguf")))


class TestByteLevel:
    def test_tokens_of_the_demo_model(self, demo: dict[str, Any], tmp_path: Path) -> None:
        metadata = metadata_of(demo, "gpt-2", "<|begin_of_text|>", "<|eot_id|>")
        original = Tokenizer.open(DEMO)
        assert original is not None
        adds_bos = original.encode("a") != original.encode("a", add_special_tokens=False)
        metadata |= {"tokenizer.ggml.add_bos_token": adds_bos, "tokenizer.chat_template": "{{ bos_token }}hi"}
        config = tiny_config()
        write_gguf_of(tmp_path / "m.gguf", config, random_tensors(config), metadata)
        ours = Tokenizer.open(tmp_path / "m.gguf")
        assert ours is not None
        for text in [*TEXTS, "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"]:
            ids = original.encode(text)
            assert ours.encode(text) == ids
            assert ours.decode(ids) == original.decode(ids)
        assert ours.special_ids == original.special_ids
        assert ours.vocab_size == original.vocab_size
        assert ours.special_tokens["eos_token"] == "<|eot_id|>"
        assert ours.chat_template().render(MESSAGES) == "<|begin_of_text|>hi"

    def test_packed_beside_the_weights(self, demo: dict[str, Any], tmp_path: Path) -> None:
        metadata = metadata_of(demo, "llama-bpe", "<|begin_of_text|>", "<|eot_id|>")
        metadata |= {"tokenizer.chat_template": "default", "tokenizer.chat_template.tool_use": "tools"}
        config = tiny_config()
        write_gguf_of(tmp_path / "m.gguf", config, random_tensors(config), metadata)
        pack(tmp_path / "m.gguf", tmp_path / "packed")
        raw, packed = Tokenizer.open(tmp_path / "m.gguf"), Tokenizer.open(tmp_path / "packed")
        assert raw is not None
        assert packed is not None
        assert raw.has_same_tokens(packed, raw.vocab_size)
        assert [raw.encode(text) for text in TEXTS] == [packed.encode(text) for text in TEXTS]
        assert raw.special_tokens == packed.special_tokens
        for name in ("default", "tool_use"):
            assert raw.chat_template(name).render(MESSAGES) == packed.chat_template(name).render(MESSAGES)

    @pytest.mark.parametrize("name", DIVISIONS)
    def test_divisions_lose_nothing(self, name: str, demo: dict[str, Any]) -> None:
        backend = backend_of(metadata_of(demo, name, "<|begin_of_text|>", "<|eot_id|>"))
        for text in TEXTS:
            expected = text if DIVISIONS[name].normalizer is None else backend.normalizer.normalize_str(text)
            assert backend.decode(backend.encode(text).ids) == expected

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("gpt-2", "ab 1234's", ["ab", "Ġ1234", "'s"]),
            ("smollm", "ab 1234's", ["ab", "Ġ", "1", "2", "3", "4", "'s"]),
            ("llama-bpe", "ab 1234'S", ["ab", "Ġ", "123", "4", "'S"]),
            ("qwen2", "ab 1234'S", ["ab", "Ġ", "1", "2", "3", "4", "'S"]),
            ("tekken", "abCd 12/\n", ["ab", "Cd", "Ġ", "1", "2", "/Ċ"]),
            ("gpt-4o", "abCd's 1234/\n", ["ab", "Cd's", "Ġ", "123", "4", "/Ċ"]),
        ],
    )
    def test_divisions(self, name: str, text: str, words: list[str], demo: dict[str, Any]) -> None:
        backend = backend_of(metadata_of(demo, name, "<|begin_of_text|>", "<|eot_id|>"))
        assert [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == words

    def test_begin_and_end(self, demo: dict[str, Any]) -> None:
        metadata = metadata_of(demo, "llama-bpe", "<|begin_of_text|>", "<|eot_id|>")
        bos, eos = metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]
        assert backend_of(metadata).encode("").ids == [bos]
        assert backend_of(metadata | {"tokenizer.ggml.add_bos_token": False}).encode("").ids == []
        both = metadata | {"tokenizer.ggml.add_eos_token": True}
        assert backend_of(both).encode("").ids == [bos, eos]

    def test_a_division_that_is_not_known(self, demo: dict[str, Any], tmp_path: Path) -> None:
        metadata = metadata_of(demo, "made-up", "<|begin_of_text|>", "<|eot_id|>")
        config = tiny_config()
        write_gguf_of(tmp_path / "m.gguf", config, random_tensors(config), metadata)
        with pytest.warns(CheckpointWarning, match="tokenizer.ggml.pre is 'made-up'.*token ids work and text does not"):
            llm = LLM.open(tmp_path / "m.gguf")
        with llm:
            assert llm.logits([1, 2]).shape == (2, 96)
            with pytest.raises(TokenizerError, match="has no tokenizer"):
                llm.generate(["text"])


class TestSentencePiece:
    """Beside a plain implementation: what merges is what makes the token with the highest score, again and again."""

    PIECES = ("▁", *"abcdehimnorstu.,", "th", "he", "▁t", "the", "▁the", "in", "er", "▁th", "an", "and", "▁a", "▁and")

    def metadata(self, **changes: Any) -> dict[str, Any]:
        special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("  ", 4), ("<tag>", 4)]
        special += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
        tokens = [token for token, _ in special] + list(self.PIECES)
        scores = [-1000.0] * len(special) + [-float(rank) for rank in range(len(self.PIECES))]
        return {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": [kind for _, kind in special] + [1] * len(self.PIECES),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
        }

    def plain(self, metadata: dict[str, Any], text: str) -> list[int]:
        ids = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        scores, pieces = metadata["tokenizer.ggml.scores"], list(text)
        while True:
            pairs = [(ids.get(a + b), at) for at, (a, b) in enumerate(pairwise(pieces))]
            made = [(-scores[token], at) for token, at in pairs if token is not None]
            if not made:
                break
            _, at = min(made)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        found = [[ids[p]] if p in ids else [ids[f"<0x{byte:02X}>"] for byte in p.encode()] for p in pieces]
        return [token for one in found for token in one]

    def test_beside_a_plain_one(self) -> None:
        metadata, rng = self.metadata(add_space_prefix=False), random.Random(7)
        backend = backend_of(metadata)
        for _ in range(200):
            words = [
                "".join(rng.choices("abcdehimnorstu.,é", k=rng.randrange(1, 9))) for _ in range(rng.randrange(1, 9))
            ]
            text = " ".join([*words, *rng.choices(["the", "and", "in", "then"], k=3)])
            assert backend.encode(text).ids == [1, *self.plain(metadata, text.replace(" ", "▁"))]
            assert backend.decode(backend.encode(text).ids) == text

    def test_a_space_comes_first(self) -> None:
        backend = backend_of(self.metadata())
        assert backend.encode("the").tokens == ["<s>", "▁the"]
        assert backend.decode(backend.encode("the the").ids) == "the the"

    def test_tokens_that_a_user_defined(self) -> None:
        backend = backend_of(self.metadata(add_space_prefix=False))
        assert backend.encode("a  the<tag>t<unk>").tokens == ["<s>", "a", "▁▁", "the", "<tag>", "t", "<unk>"]

    def test_no_scores(self) -> None:
        metadata = self.metadata()
        del metadata["tokenizer.ggml.scores"]
        with pytest.raises(FormatError, match=r"tokenizer.ggml.scores is None, not a list of numbers"):
            tokenizer_json(metadata, "m.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": []}, "tokens is [], not a list of tokens"),
        ({"tokens": [1, 2]}, "tokens is [1, 2], not a list of strings"),
        ({"token_type": [1]}, "token_type is [1], not a list of 3, one for each token"),
        ({"token_type": ["a"]}, "token_type is ['a'], not a list of numbers"),
        ({"merges": ["a b c"]}, "the merge 'a b c' is not of two tokens"),
        ({"eos_token_id": 3}, "eos_token_id is 3, not a token's id, below 3"),
        ({"add_bos_token": 1}, "add_bos_token is 1, not true or false"),
        ({"tokens": ["a" * 5000, "b", "c"]}, "a token has more than 4096 characters"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    metadata = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "c"], "merges": [], **changes}
    whole = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    with pytest.raises(FormatError) as caught:
        (tokenizer_json(whole, "m.gguf"), tokenizer_config_json(whole, "m.gguf"))
    assert message in caught.value.problem


def test_kinds_and_templates_that_are_not_known() -> None:
    metadata = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"]}
    with pytest.raises(UnsupportedError, match=r"tokenizer.ggml.model is 'bert'"):
        tokenizer_json(metadata, "m.gguf")
    with pytest.raises(FormatError, match="the chat template 'default' is 1, not a text"):
        tokenizer_config_json(metadata | {"tokenizer.chat_template": 1}, "m.gguf")


def test_merges_of_no_token(tmp_path: Path) -> None:
    metadata = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b"], "merges": ["a b"]}
    config = tiny_config()
    whole = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    write_gguf_of(tmp_path / "m.gguf", config, random_tensors(config), whole)
    with pytest.raises(TokenizerError, match="is not a tokenizer"):
        Tokenizer.open(tmp_path / "m.gguf")
