from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.drafting import PROMPT, coarse_drafter, correlation, keep, new_cache, open_to_draft, pass_over, write_pair
from helpers.guessing import root
from helpers.rooms import keep_at_most
from penstock import LLM, SamplingParams
from penstock.architectures.base import Architecture
from penstock.compute.corrections import Correction
from penstock.compute.kernels import F32
from penstock.models.decoder import Decoder
from penstock.options import OpenOptions
from penstock.speculate.coarse import CoarseData, CoarseDrafter, CoarseWeights
from penstock.speculate.drafter import Guess
from penstock.speculate.tree import Tree
from penstock.weights.residency import draft_order
from penstock.weights.weights import Weights

LAYERS = 8
GATE, KEYS, HEAD = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("model"), num_hidden_layers=LAYERS)


@pytest.fixture
def opened(pair: tuple[Path, Path]) -> Iterator[tuple[Decoder, Weights]]:
    with open_to_draft(pair[1], resident=1) as (model, weights):
        pass_over(model)
        yield model, weights


def prompted(model: Decoder) -> Tree:
    """A tree after PROMPT, all but the last token of which is in the cache."""
    cache = new_cache(model)
    model.forward(PROMPT[:-1], 0, cache)
    tree = root(PROMPT)
    tree.cache = cache
    return tree


def guesses(drafter: CoarseDrafter, tree: Tree) -> list[Guess]:
    drafter.begin([tree])
    return drafter.expand([(tree, 0)])[0]


def limit_to(weights: Weights, names: list[str]) -> None:
    """Room for what these need, which come first, and nothing else."""
    weights.limit_resident(
        sum(p.nbytes for i, p in enumerate(weights._parts) if i in weights._draft and p.piece.name in names)
    )


class TestWeights:
    def test_what_is_in_memory(self, opened: tuple[Decoder, Weights]) -> None:
        model, weights = opened
        coarse = CoarseWeights(weights, model.kernels)
        names = list(dict.fromkeys(draft_order(Architecture(model.config))))
        assert coarse.load_all(names)
        for name in names:
            rows = [piece.rows for piece in coarse.pieces(name)]
            assert [rows[0].start, *(r.stop for r in rows)] == [0, *(r.stop for r in rows)]
            assert rows[-1].stop == weights.tensors[name].shape[0]
        assert all(isinstance(piece, CoarseData) for piece in coarse.pieces(GATE))
        assert not any(isinstance(piece, CoarseData) for piece in coarse.pieces(KEYS))  # too small to be packed

    def test_products_are_near_those_of_the_weights(self, opened: tuple[Decoder, Weights]) -> None:
        model, weights = opened
        coarse = CoarseWeights(weights, model.kernels)
        coarse.load_all([GATE, KEYS])
        x = np.random.default_rng(0).standard_normal((4, model.config.hidden_size), dtype=np.float32)
        for name, least in ((GATE, 0.95), (KEYS, 1 - 1e-6)):
            outs = []
            for source in (weights, coarse):
                out = np.empty((4, weights.tensors[name].shape[0]), np.float32)
                for piece in source.pieces(name):
                    piece.matmul(model.kernels, x, out[:, piece.rows], None, False)
                outs.append(out)
            assert correlation(*outs) > least

    def test_what_left_memory_is_not_there(self, opened: tuple[Decoder, Weights]) -> None:
        model, weights = opened
        coarse = CoarseWeights(weights, model.kernels)
        assert coarse.load(GATE)
        keep(weights, 0)
        assert not coarse.load(GATE)
        assert not coarse.load_all([GATE, KEYS])

    def test_what_comes_back_is_taken_anew(self, opened: tuple[Decoder, Weights]) -> None:
        model, weights = opened
        coarse = CoarseWeights(weights, model.kernels)
        coarse.load(GATE)
        [first], [second] = (list(coarse.pieces(GATE)) for _ in range(2) if coarse.load(GATE))
        assert isinstance(first, CoarseData)
        assert isinstance(second, CoarseData)
        assert first.coarse.scales is second.coarse.scales, "levels were counted twice"
        before = [array.tobytes() for array in first.coarse.chunks.arrays]
        scales = first.coarse.scales.tobytes()
        for share in (0, 1):  # gone and back, while nobody looked
            keep(weights, share)
            pass_over(model)
        assert coarse.load(GATE)
        resident = weights.draft(GATE)
        assert resident is not None
        [piece] = coarse.pieces(GATE)
        assert isinstance(piece, CoarseData)
        for array, old, held in zip(piece.coarse.chunks.arrays, before, resident, strict=True):
            assert array.ctypes.data == held.bytes.ctypes.data
            assert array.tobytes() == old
        assert piece.coarse.scales.tobytes() == scales

    def test_what_leaves_memory_is_gone(self, pair: tuple[Path, Path]) -> None:
        """At once: a pass needs the room, and the next guess is after it."""
        with open_to_draft(pair[1], resident=1) as (model, weights):
            pass_over(model)
            drafter = coarse_drafter(model, weights)
            assert guesses(drafter, prompted(model))
            arrays = [weakref.ref(array) for array in weights._resident.values()]
            keep(weights, 0)
            gc.collect()
            left = [array for ref in arrays if (array := ref()) is not None]
            assert sum(array.nbytes for array in left) == 0

    def test_a_head_without_its_rarer_rows(self, tmp_path: Path) -> None:
        """Their tokens are not guessed; the products of the others are the same bits, corrected or not."""
        _, packed = write_pair(tmp_path, num_hidden_layers=LAYERS, vocab_size=12_000)
        with open_to_draft(packed, resident=1, piece_bytes=1) as (model, weights):
            pass_over(model)
            rows, cols = weights.tensors[HEAD].shape
            rng = np.random.default_rng(3)
            levels = (rng.integers(-127, 128, shape, np.int8) for shape in ((5, cols), (5, rows)))
            corrections = {HEAD: Correction(*levels, rng.random(5, np.float32) / 1e4)}
            x = rng.standard_normal((3, cols), dtype=np.float32)

            def product(coarse: CoarseWeights) -> F32:
                assert coarse.load(HEAD)
                out = np.zeros((3, rows), np.float32)
                for piece in coarse.pieces(HEAD):
                    piece.matmul(model.kernels, x, out[:, piece.rows], None, False)
                return out

            whole = product(CoarseWeights(weights, model.kernels, corrections))
            assert np.isfinite(whole).all()
            weights.limit_resident(weights.least_draft_bytes)
            found = product(CoarseWeights(weights, model.kernels, corrections))
            there = np.isfinite(found[0])
            assert there[: rows // 2].all()
            assert there[-1]
            assert 0.5 * rows < there.sum() < 0.9 * rows
            assert found[:, there].tobytes() == whole[:, there].tobytes()
            assert (found[:, ~there] == -np.inf).all()
            drafter = coarse_drafter(model, weights)
            tokens = [guess.token for guess in guesses(drafter, prompted(model))]
            assert tokens
            assert there[tokens].all()
            weights.limit_resident(weights.least_draft_bytes - 1)
            assert CoarseWeights(weights, model.kernels).load(HEAD), "a layer is the next to go"
            assert not guesses(drafter, prompted(model)) or len(drafter._layers) < LAYERS

    def test_embedding_rows_are_exact(self, opened: tuple[Decoder, Weights]) -> None:
        model, weights = opened
        tokens = np.array(PROMPT)
        name = "model.embed_tokens.weight"
        assert (
            CoarseWeights(weights, model.kernels).rows(name, tokens).tobytes() == weights.rows(name, tokens).tobytes()
        )


class TestDrafter:
    def test_it_guesses_much_as_the_target(self, opened: tuple[Decoder, Weights]) -> None:
        model, weights = opened
        drafter = coarse_drafter(model, weights)
        logits = pass_over(model)
        tree = prompted(model)
        found = guesses(drafter, tree)
        likely = np.argsort(-logits[-1])[:60].tolist()
        assert sum(guess.token in likely for guess in found) >= 3
        assert list(drafter._layers) == list(range(LAYERS))

    def test_it_reads_nothing_that_a_pass_streams(self, opened: tuple[Decoder, Weights]) -> None:
        model, weights = opened
        tree, drafter = prompted(model), coarse_drafter(model, weights)
        before = weights.totals.bytes_read
        assert guesses(drafter, tree)
        assert weights.totals.bytes_read == before

    def test_a_few_layers_may_be_missing(self, opened: tuple[Decoder, Weights]) -> None:
        """Those that matter least are the first to go; with fewer than three of four it rests."""
        model, weights = opened
        tree, drafter = prompted(model), coarse_drafter(model, weights)
        order = draft_order(Architecture(model.config))
        layers = list(dict.fromkeys(int(name.split(".")[2]) for name in order[1:-1]))
        assert layers[:3] == [0, 1, LAYERS - 1]
        for count in range(LAYERS, -1, -1):
            matrices = model.architecture.layer_matrices
            limit_to(weights, [HEAD, *(name for layer in layers[:count] for name in matrices(layer))])
            found = guesses(drafter, tree)
            assert list(drafter._layers) == sorted(layers[:count])
            assert bool(found) == (count >= 0.75 * LAYERS)

    def test_without_its_head_it_rests(self, opened: tuple[Decoder, Weights]) -> None:
        model, weights = opened
        tree, drafter = prompted(model), coarse_drafter(model, weights)
        assert guesses(drafter, tree)
        for index in weights._by_name[HEAD][0][:1]:
            del weights._resident[index]
        weights.draft_changes += 1
        assert guesses(drafter, tree) == []
        keep(weights, 0)
        assert guesses(drafter, tree) == []
        keep(weights, 1)
        pass_over(model)
        assert guesses(drafter, tree)

    def test_a_tied_head(self, tmp_path: Path) -> None:
        _, path = write_pair(tmp_path, tie_word_embeddings=True)
        with open_to_draft(path, resident=1) as (model, weights):
            pass_over(model)
            assert Architecture(model.config).head == "model.embed_tokens.weight"
            assert guesses(coarse_drafter(model, weights), prompted(model))

    def test_biases(self, tmp_path: Path) -> None:
        _, path = write_pair(tmp_path, attention_bias=True, mlp_bias=True)
        with open_to_draft(path, resident=1) as (model, weights):
            logits = pass_over(model)
            found = guesses(coarse_drafter(model, weights), prompted(model))
            assert any(guess.token in np.argsort(-logits[-1])[:60] for guess in found)

    def test_indexed_rows_beside_it(self, pair: tuple[Path, Path]) -> None:
        """A packed model that is in memory whole guesses too."""
        with open_to_draft(pair[1]) as (model, weights):
            weights.limit_resident(weights.indexed_bytes)
            pass_over(model)
            assert weights._indexed
            assert guesses(coarse_drafter(model, weights), prompted(model))


class TestInTheEngine:
    PARAMS = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)

    def test_a_raw_model_has_none(self, pair: tuple[Path, Path]) -> None:
        with LLM(pair[0], OpenOptions(threads=1)) as llm:
            assert llm.weights.draft_bytes == 0
            assert llm.engine.speculator.drafters
            assert "coarse" not in [drafter.name for drafter in llm.engine.speculator.drafters]

    def test_residency_that_comes_and_goes(self, pair: tuple[Path, Path]) -> None:
        """Between two passes of the same text, whatever the drafter held."""
        raw, packed = pair
        with LLM(raw, OpenOptions(threads=1, draft="none")) as llm:
            [expected] = llm.generate([PROMPT], self.PARAMS)
        rng = np.random.default_rng(0)
        with LLM(packed, OpenOptions(threads=1, draft_nodes=4)) as llm:
            for _ in range(3):
                [completion] = llm._start([PROMPT], self.PARAMS)
                while completion.runs:
                    keep_at_most(llm, int(rng.uniform(0, 1.3) * llm.weights.draft_bytes))
                    llm.engine.step()
                assert completion.output().token_ids == expected.token_ids
                llm.engine.cancel(completion.sequence)

    @pytest.mark.parametrize("threads", [2])
    def test_threads_change_no_guess(self, pair: tuple[Path, Path], threads: int) -> None:
        counts = []
        for count in (1, threads):
            with LLM(pair[1], OpenOptions(threads=count, draft_nodes=4)) as llm:
                [output] = llm.generate([PROMPT], self.PARAMS)
                counts.append((output.stats.passes, output.token_ids))
        assert counts[0] == counts[1]
