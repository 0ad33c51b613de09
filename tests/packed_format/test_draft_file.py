from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.drafting import write_pair
from helpers.tuning import tune_to
from penstock import LLM, SamplingParams
from penstock.checkpoints.checkpoint import Checkpoint, open_checkpoint
from penstock.compute.corrections import Correction
from penstock.errors import CheckpointWarning, ChecksumError, FormatError, ReadError
from penstock.packed_format.draft_file import NAME, identity, read_corrections, write_corrections
from penstock.packing.verify import verify
from penstock.safetensors_header import encode_header

PROMPT = list(range(3, 20))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Correction]]:
    _, packed = write_pair(tmp_path_factory.mktemp("model"))
    return packed, tune_to(packed, 80)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def read(file: Path, checkpoint: Checkpoint) -> dict[str, Correction]:
    own = identity(checkpoint.files)
    assert own is not None
    return read_corrections(file, own, checkpoint.tensors)


def test_what_was_written_comes_back(tuned: tuple[Path, dict[str, Correction]]) -> None:
    path, written = tuned
    found = read(path / NAME, open_checkpoint(path))
    assert found.keys() == written.keys()
    for name, correction in written.items():
        for part in ("inward", "outward", "scales"):
            assert np.array_equal(getattr(correction, part), getattr(found[name], part))
    assert not (path / f"{NAME}.unfinished").exists()


@given(data=st.data())
def test_a_flipped_bit_is_found(tuned: tuple[Path, dict[str, Correction]], scratch: Path, data: st.DataObject) -> None:
    path, _ = tuned
    content = bytearray((path / NAME).read_bytes())
    begin = int.from_bytes(content[:8], "little") + 8
    place = data.draw(st.one_of(st.integers(0, begin - 1), st.integers(begin, len(content) - 1)))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    damaged = scratch / NAME
    damaged.write_bytes(content)
    with pytest.raises((ChecksumError, FormatError)) as raised:
        read(damaged, open_checkpoint(path))
    assert str(damaged) in str(raised.value)


def test_damage_is_named_and_costs_no_answer(tuned: tuple[Path, dict[str, Correction]], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tuned[0], model)
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    with LLM.open(str(model), threads=1) as llm:
        expected = llm.generate([PROMPT], params)[0].token_ids
    content = bytearray((model / NAME).read_bytes())
    content[int.from_bytes(content[:8], "little") + 8 + 5] ^= 1
    (model / NAME).write_bytes(content)
    with pytest.warns(CheckpointWarning, match=r"draft\.safetensors: tensor .*inward.*damaged"):
        llm = LLM.open(str(model), threads=1)
    with llm:
        assert llm.generate([PROMPT], params)[0].token_ids == expected


def test_verify_finds_it(tuned: tuple[Path, dict[str, Correction]], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tuned[0], model)
    assert verify(model).sound
    content = bytearray((model / NAME).read_bytes())
    content[len(content) // 2] ^= 4
    (model / NAME).write_bytes(content)
    [place] = verify(model).damage
    assert str(model / NAME) in place
    assert "only guesses are made with it" in place


def test_a_file_that_is_cut_off(tuned: tuple[Path, dict[str, Correction]], tmp_path: Path) -> None:
    path, _ = tuned
    whole = (path / NAME).read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / NAME).write_bytes(whole[:size])
        with pytest.raises((FormatError, ReadError)):
            read(tmp_path / NAME, open_checkpoint(path))


def test_other_weights(tuned: tuple[Path, dict[str, Correction]], tmp_path: Path) -> None:
    _, other = write_pair(tmp_path, num_hidden_layers=3)
    shutil.copy(tuned[0] / NAME, other)
    with pytest.raises(FormatError, match="was made for other weights"):
        read(other / NAME, open_checkpoint(other))


@pytest.mark.parametrize(
    ("name", "correction"),
    [
        (
            "no.such.weight",
            Correction(np.zeros((1, 4), np.int8), np.zeros((1, 4), np.int8), np.ones(1, np.float32)),
        ),
        (
            "lm_head.weight",
            Correction(np.zeros((1, 4), np.int8), np.zeros((1, 4), np.int8), np.ones(1, np.float32)),
        ),
        (
            "lm_head.weight",
            Correction(np.zeros((1, 280), np.int8), np.zeros((1, 700), np.int8), np.full(1, np.nan, np.float32)),
        ),
    ],
)
def test_a_sound_file_that_means_nothing(
    tuned: tuple[Path, dict[str, Correction]], tmp_path: Path, name: str, correction: Correction
) -> None:
    checkpoint = open_checkpoint(tuned[0])
    own = identity(checkpoint.files)
    assert own is not None
    write_corrections(tmp_path, own, {name: correction})
    with pytest.raises(FormatError, match=r"draft\.safetensors"):
        read(tmp_path / NAME, checkpoint)


def test_no_content_of_one_that_is_too_large_is_read(tuned: tuple[Path, dict[str, Correction]], tmp_path: Path) -> None:
    size = 1 << 36
    services = {"penstock.model": 8, "penstock.hashes": 8, "penstock.seal": 64}
    tensors = {"lm_head.weight.inward": ("I8", (1, size), size)} | {n: ("U8", (b,), b) for n, b in services.items()}
    header = encode_header(tensors)
    with (tmp_path / NAME).open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size + sum(services.values()))
    with pytest.raises(FormatError, match=r"draft\.safetensors"):
        read(tmp_path / NAME, open_checkpoint(tuned[0]))


def test_what_is_not_packed_has_no_identity(tmp_path: Path) -> None:
    raw, packed = write_pair(tmp_path)
    assert identity(open_checkpoint(raw).files) is None
    assert identity(open_checkpoint(packed).files) is not None
