from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from helpers.thorough import examples
from penstock.errors import UsageError
from penstock.text.text_stream import StopStrings, TextStream
from penstock.text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "src" / "penstock" / "data" / "demo"
EMOJI = "👍🏽 👩‍👩‍👧‍👦 naïve 你好 🇺🇦\u2028é\u0301"
SPECIALS = ["<s>", "</s>", "<unk>"]
WORDS = ["▁", "▁▁", "a", "▁a", "b", "▁the", "\n", "你", "\ufffd", "<0xg1>", "▁▁▁▁", "!"]


def built(vocab: Iterable[str], decoder: decoders.Decoder | None) -> Tokenizer:
    """A tokenizer of these tokens; only its decoding is of use. The last of the special tokens is not declared so."""
    ids = {token: index for index, token in enumerate(dict.fromkeys([*SPECIALS, *vocab]))}
    backend = tokenizers.Tokenizer(models.BPE(ids, []))
    backend.add_special_tokens(SPECIALS[:2])
    if decoder is not None:
        backend.decoder = decoder
    return Tokenizer(backend)


def byte_tokens() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(*ending: decoders.Decoder) -> Tokenizer:
    """Llama 2's form, with a decoder that ends in `ending`."""
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ending]
    return built([*byte_tokens(), *WORDS], decoders.Sequence(parts))


def byte_level() -> Tokenizer:
    """Every byte, and tokens that begin or end anywhere in a character."""
    letter = dict(zip(sorted(range(256)), byte_alphabet(), strict=True))
    pieces = [b"\xf0\x9f", b"\x91\xa9", b"\x9f\x91\xa9", b" \xe4", b"\xbd\xa0", b"\xa0 \xf0", b"\x80\x80\x80\x80\x80"]
    pieces += [b"\xef\xbf\xbd", b"\xef\xbf", "é".encode(), b"ab", b" a", b"\xc3", b"\xa9b\xe4\xbd"]
    return built([*letter.values(), *("".join(letter[b] for b in piece) for piece in pieces)], decoders.ByteLevel())


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


TOKENIZERS = {
    "demo": Tokenizer.open(DEMO),
    "byte level": byte_level(),
    "sentencepiece, stripped": sentencepiece(decoders.Strip(" ", 1, 0)),
    "sentencepiece, stripped of many": sentencepiece(decoders.Strip(" ", 8, 0)),
    "sentencepiece": sentencepiece(),
    "metaspace": built(WORDS, decoders.Metaspace()),
    "joined by spaces": built(WORDS, None),
    "word ends": built(["a</w>", "b</w>", "c", "d"], decoders.BPEDecoder()),
}


def streamed(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*map(stream.push, ids), stream.finish()]


def test_alphabet_of_the_test() -> None:
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert TOKENIZERS["byte level"].decode([TOKENIZERS["byte level"].token_id("Ċ")]) == "\n"


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=examples(200))
def test_pieces_are_the_text(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    # The highest ids are long tokens, the lowest special; two are unknown.
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=60))
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["demo", "byte level"])
@given(text=st.one_of(st.text(), st.binary().map(lambda data: data.decode("latin-1"))))
@example(text=EMOJI)
@settings(max_examples=examples(150))
def test_bytes_of_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    letters = byte_alphabet()
    ids = [tokenizer.token_id(letters[byte]) for byte in text.encode()]
    assert None not in ids
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == text
    # Never a piece of a character: U+FFFD appears only where the text has it.
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")
    assert all(len(piece) <= 2 for piece in pieces)


@pytest.mark.parametrize("name", ["byte level", "sentencepiece", "sentencepiece, stripped"])
@given(
    data=st.lists(st.one_of(st.binary(max_size=6), st.sampled_from(list("aé你👩\ufffd")).map(str.encode)), max_size=12)
)
@settings(max_examples=examples(200))
def test_broken_bytes(name: str, data: list[bytes]) -> None:
    """Lone continuation bytes, characters cut short, overlong forms and surrogates, a byte a token."""
    tokenizer = TOKENIZERS[name]
    letters = byte_alphabet() if name == "byte level" else byte_tokens()
    words = ["a", "!", "</s>"] if name == "byte level" else ["▁a", "▁", "</s>", "\ufffd"]
    ids = []
    for index, part in enumerate(data):
        ids += [tokenizer.token_id(letters[byte]) for byte in part]
        ids += [tokenizer.token_id(words[index % len(words)])] if index % 3 else []
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_emoji_come_whole() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = [tokenizer.token_id(letter) for letter in (byte_alphabet()[byte] for byte in "👩!".encode())]
    assert streamed(tokenizer, ids) == ["", "", "", "👩", "!", ""]


def test_broken_bytes_come_as_soon_as_they_are_known_to_be() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = [tokenizer.token_id(byte_alphabet()[byte]) for byte in b"\x80\x80a\xf0\x9f"]
    assert streamed(tokenizer, ids) == ["", "\ufffd", "\ufffda", "", "", "\ufffd"]


def test_byte_fallback_waits_for_the_end_of_the_run() -> None:
    """A later byte can turn the whole run into U+FFFD."""
    tokenizer = TOKENIZERS["sentencepiece, stripped"]
    run = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "你".encode()]
    word = tokenizer.token_id("▁a")
    assert streamed(tokenizer, [*run, word]) == ["", "", "", "你 a", ""]
    assert streamed(tokenizer, [*run, run[0], word]) == ["", "", "", "", "\ufffd" * 4 + " a", ""]


def test_only_the_first_space_is_stripped() -> None:
    tokenizer = TOKENIZERS["sentencepiece, stripped"]
    ids = [tokenizer.token_id(token) for token in ("<s>", "▁", "▁a", "▁a", "▁", "▁", "a")]
    assert streamed(tokenizer, ids) == ["", "", " a", " a", " ", " ", "a", ""]


def test_more_spaces_are_stripped_than_the_context_holds() -> None:
    tokenizer = TOKENIZERS["sentencepiece, stripped of many"]
    ids = [tokenizer.token_id("▁")] * 10 + [tokenizer.token_id("a")]
    assert streamed(tokenizer, ids) == [*[""] * 8, " ", " ", "a", ""]


def test_words_come_at_once() -> None:
    tokenizer = TOKENIZERS["demo"]
    ids = tokenizer.encode("def f(x):\n    return x")
    pieces = streamed(tokenizer, ids)
    assert pieces[0] == ""
    assert all(pieces[1:-1])
    assert pieces[-1] == ""


class Counting(Tokenizer):
    decoded = 0

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        ids = list(ids)
        self.decoded += len(ids)
        return super().decode(ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("name", ["byte level", "sentencepiece, stripped"])
@given(data=st.data())
@settings(max_examples=examples(10))
def test_work_is_linear(name: str, data: st.DataObject) -> None:
    """Counted in tokens decoded; also where no byte is text."""
    tokenizer = Counting(TOKENIZERS[name]._backend)
    pattern = data.draw(st.lists(st.integers(3, tokenizer.vocab_size - 1), min_size=1, max_size=8))
    ids = pattern * (2000 // len(pattern))
    streamed(tokenizer, ids)
    assert tokenizer.decoded <= 12 * len(ids) + 100


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: grow the text until some stop string is complete, and leave the longest such out."""
    for end in range(len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            longest = max(met, key=len)
            return text[: end - len(longest)], longest
    return text, None


def fed(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    strings = StopStrings(stops)
    return "".join([*map(strings.push, pieces), strings.finish()]), strings.met


@given(
    pieces=st.lists(st.text("ab\n", max_size=5), max_size=12),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4),
)
@example(pieces=["a", "abc"], stops=["abcd", "bc"])
@settings(max_examples=examples(1000))
def test_any_split_gives_the_same(pieces: list[str], stops: list[str]) -> None:
    assert fed(stops, pieces) == cut("".join(pieces), stops)


@given(text=st.text("ab", max_size=30), stop=st.text("ab", min_size=1, max_size=5), at=st.integers(0, 30))
def test_one_stop_string_cuts_at_its_first_occurrence(text: str, stop: str, at: int) -> None:
    assert fed([stop], [text[:at], text[at:]])[0] == text.partition(stop)[0]


def test_text_comes_as_soon_as_it_is_certain() -> None:
    strings = StopStrings(["\n\nUser:"])
    assert [strings.push(piece) for piece in ["Hi", ".\n", "\nUs", "e it", "\n\n", "User", ": x", "y"]] == [
        "Hi", ".", "", "\n\nUse it", "", "", "", "",
    ]  # fmt: skip
    assert strings.met == "\n\nUser:"
    assert strings.finish() == ""


def test_held_back_text_comes_at_the_end() -> None:
    strings = StopStrings(["END"])
    assert strings.push("the EN") == "the "
    assert strings.finish() == "EN"
    assert strings.finish() == ""
    assert strings.met is None


def test_no_stop_strings() -> None:
    assert fed([], ["a", "b"]) == ("ab", None)


def test_empty_stop_string() -> None:
    with pytest.raises(UsageError, match="a stop string is empty"):
        StopStrings(["a", ""])
