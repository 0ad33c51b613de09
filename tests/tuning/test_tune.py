from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from helpers.cases import DEMO
from helpers.drafting import open_to_draft, pass_over, write_pair
from helpers.tuning import corrections_of
from penstock import LLM, SamplingParams
from penstock.compute.kernels import F32
from penstock.errors import UsageError
from penstock.packed_format.draft_file import NAME
from penstock.packing.pack import pack
from penstock.speculate.coarse import CoarseData, CoarseWeights
from penstock.tuning import listening
from penstock.tuning.tune import tune

GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def packed_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "packed"
    pack(DEMO, path)
    return path


@pytest.fixture(scope="module")
def tuned_demo(packed_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "tuned"
    shutil.copytree(packed_demo, path)
    tune(path, threads=1)
    return path


def test_corrections_bring_products_nearer(tmp_path: Path) -> None:
    _, packed = write_pair(tmp_path)
    corrections = corrections_of(packed, 300)
    with open_to_draft(packed, resident=1) as (model, weights):
        pass_over(model)
        x = np.random.default_rng(1).standard_normal((40, model.config.hidden_size), dtype=np.float32)

        def product(coarse: CoarseWeights | None) -> F32:
            out = np.empty((40, weights.tensors[GATE].shape[0]), np.float32)
            if coarse is not None:
                coarse.load(GATE)
            for piece in (coarse or weights).pieces(GATE):
                piece.matmul(model.kernels, x, out[:, piece.rows], None, False)
            return out

        exact = product(None)
        errors = [np.square(product(CoarseWeights(weights, model.kernels, c)) - exact).sum() for c in ({}, corrections)]
        # 32 of 280 directions at least, whatever the activations were.
        assert errors[1] < 0.9 * errors[0]


def test_what_fitting_takes_for_the_coarse_tier_is_what_drafting_multiplies_with(tmp_path: Path) -> None:
    _, packed = write_pair(tmp_path)
    with open_to_draft(packed, resident=1) as (model, weights):
        pass_over(model)
        coarse = CoarseWeights(weights, model.kernels)
        assert coarse.load(GATE)
        [whole] = coarse.pieces(GATE)
        assert isinstance(whole, CoarseData)
        rows, cols = weights.tensors[GATE].shape
        by_kernel = np.empty((cols, rows), np.float32)
        whole.matmul(model.kernels, np.eye(cols, dtype=np.float32), by_kernel, None, False)
        inward = np.zeros((rows, cols), np.float32)
        exact = np.empty((cols, rows), np.float32)
        for piece in weights.pieces(GATE):
            piece.matmul(model.kernels, np.eye(cols, dtype=np.float32), exact[:, piece.rows], None, False)
        for piece in weights.stored(GATE):
            vectors = np.ascontiguousarray(np.eye(rows, dtype=np.float32)[:, piece.rows])
            listening._lead(piece, vectors, inward, model.kernels)
        np.testing.assert_allclose(inward, (exact - by_kernel).T, atol=1e-5)


def test_a_tuned_model_says_the_same_and_guesses_better(packed_demo: Path, tuned_demo: Path) -> None:
    outputs = []
    for path in (packed_demo, tuned_demo):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with LLM.open(str(path), threads=1, draft_nodes=16) as llm:
                llm.engine.speculator.drafters = [d for d in llm.engine.speculator.drafters if d.name == "coarse"]
                prompts = [llm.encode("def main(arguments):\n    "), llm.encode("import os\nimport sys\n\nclass ")]
                outputs.append(llm.generate(prompts, SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)))
    plain, tuned = outputs
    assert [o.token_ids for o in plain] == [o.token_ids for o in tuned]
    walks = [sum(o.stats.guesses.walks for o in some) for some in outputs]
    assert walks[1] <= walks[0]


def test_the_same_weights_and_text_give_the_same_file(packed_demo: Path, tuned_demo: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(packed_demo, again)
    tune(again, threads=1)
    assert (again / NAME).read_bytes() == (tuned_demo / NAME).read_bytes()
    assert sorted(file.name for file in again.iterdir()) == sorted([*(f.name for f in packed_demo.iterdir()), NAME])


def test_text_of_ones_own(packed_demo: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(packed_demo, model)
    tuned = tune(model, text="def add(a, b):\n    return a + b\n\n" * 40, threads=1)
    assert tuned.path == model / NAME
    assert 64 <= tuned.tokens <= 512
    assert tuned.nbytes <= tuned.path.stat().st_size


def test_a_short_text_is_refused(packed_demo: Path) -> None:
    with pytest.raises(UsageError, match=r"The text has \d+ tokens"):
        tune(packed_demo, text="short", threads=1)
    assert not (packed_demo / NAME).exists()


def test_a_model_that_is_not_packed_is_refused() -> None:
    with pytest.raises(UsageError, match="is not packed"):
        tune(DEMO, threads=1)
