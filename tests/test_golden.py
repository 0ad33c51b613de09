from __future__ import annotations

import numpy as np
import pytest

from helpers.golden_values import MODELS, digest, measure, read
from helpers.reference import Reference
from helpers.rounding_noise import expected_logits
from penstock import LLM

VALUES = read()


@pytest.mark.parametrize("kv", ["bf16", "f32"])
@pytest.mark.parametrize("name", MODELS)
def test_bits_are_those_of_every_machine_and_version(name: str, kv: str) -> None:
    """A difference is a bug, or a deliberate change: then golden_values.py writes them anew."""
    assert measure(MODELS[name], kv, VALUES[name]["tokens"]) == VALUES[name][kv]


def test_the_golden_bits_are_right_ones() -> None:
    """They are within float32's reach of the reference, and not just what the code gave when they were written."""
    tokens = VALUES["tiny"]["tokens"]
    with LLM.open(MODELS["tiny"], kv_dtype="f32") as llm:
        logits = llm.logits(tokens)
    assert digest(logits) == VALUES["tiny"]["f32"]["sha256"]
    expected_logits(Reference(MODELS["tiny"]), tokens).assert_near(logits)


def test_the_digest_sees_every_bit() -> None:
    logits = np.ones((2, 3), np.float32)
    other = logits.copy()
    other[1, 2] = np.nextafter(np.float32(1), np.float32(2))
    assert digest(logits) != digest(other)
    assert digest(logits[:, ::-1]) == digest(logits)
