from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penstock import LLM
from penstock.architectures.registry import parse_config
from penstock.checkpoints.store import find_model
from penstock.compute.kernels import Kernels
from penstock.compute.levels import nibble_bytes
from penstock.errors import UsageError
from penstock.forecast.draft_shape import draft_ahead, draft_here
from penstock.models.kv_planes import KvShape
from penstock.packing.pack import pack
from penstock.speculate.draft_model import LOADING, DraftModel
from penstock.synth.shapes import shape_config

DEMO = find_model("demo")
KERNELS = Kernels(1)


def test_a_draft_that_is_here_takes_what_it_takes_when_it_is_open(tmp_path: Path) -> None:
    pack(DEMO, tmp_path / "packed")
    with LLM.open("demo", draft="demo", memory="4GiB", threads=1) as llm:
        assert llm.draft is not None
        shape = draft_here("demo", DEMO, llm.config, DEMO, KERNELS, "bf16")
        assert shape.likely_bytes["whole"] == llm.draft.nbytes
        assert (shape.name, shape.architecture.config) == ("demo", llm.config)
        assert shape.kv_shape == llm.draft.kv_shape
    packed = draft_here("packed", tmp_path / "packed", shape.architecture.config, None, KERNELS, "bf16")
    assert packed.likely_bytes["whole"] < shape.likely_bytes["whole"]
    assert packed.likely_bytes["4 bits"] == pytest.approx(shape.likely_bytes["4 bits"], abs=LOADING.nbytes)


def test_a_shape_takes_what_the_model_of_that_shape_does() -> None:
    here = draft_here("demo", DEMO, config := LLM.open("demo").config, None, KERNELS, "f32")
    assert draft_ahead("demo", config, config, "f32") == replace(here, name="demo")


def test_a_shape_by_hand() -> None:
    config = parse_config(shape_config("llama-3.2-1b"), "shape")
    shape = draft_ahead("llama-3.2-1b", config, parse_config(shape_config("llama-3.1-8b"), "shape"), "bf16")
    assert shape.likely_bytes["whole"] == 2_471_493_632 + LOADING.nbytes
    square, wide, kv, head = (nibble_bytes(*size) for size in ((2048, 2048), (8192, 2048), (512, 2048), (128256, 2048)))
    down = nibble_bytes(2048, 8192)
    assert shape.likely_bytes["4 bits"] == 16 * (2 * square + 2 * kv + 2 * wide + down) + head + LOADING.nbytes
    assert shape.kv_shape == KvShape(16, 8, 64, "bf16")


REMEDY = "A draft has to have the target's tokenizer: give a smaller model of the same family."
TARGET = parse_config(shape_config("llama-3.1-8b"), "shape")


def test_a_draft_that_is_here_with_another_vocabulary() -> None:
    with pytest.raises(UsageError) as caught:
        draft_here("demo", DEMO, TARGET, None, KERNELS, "bf16")
    assert caught.value.problem == "The draft demo has a vocabulary of 4096 tokens, and the model has 128256."
    assert caught.value.remedy == REMEDY


def test_a_shape_with_another_vocabulary() -> None:
    config = parse_config(shape_config("smollm2-135m"), "shape")
    with pytest.raises(UsageError) as caught:
        draft_ahead("smollm2-135m", config, TARGET, "bf16")
    assert caught.value.problem == "The draft smollm2-135m has a vocabulary of 49152 tokens, and the model has 128256."
    assert caught.value.remedy == REMEDY


def test_a_draft_at_the_targets_side_is_checked_as_when_it_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(DraftModel, "check_tokens_of", lambda self, path, config: asked.append((path, config)))
    with LLM.open("demo") as llm:
        draft_here("demo", DEMO, llm.config, DEMO, KERNELS, "bf16")
        assert asked == [(DEMO, llm.config)]
