from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.checkpoints import Tensors, random_tensors, tiny_config, to_float32, write_checkpoint
from helpers.drafting import open_to_draft, pass_over, write_pair
from helpers.thorough import examples
from penstock.architectures.base import Architecture
from penstock.architectures.registry import parse_config
from penstock.checkpoints.checkpoint import open_checkpoint
from penstock.compute.kernels import Kernels
from penstock.disk.files import buffer_bytes
from penstock.disk.reader import Ring
from penstock.errors import ReadError
from penstock.models.decoder import Decoder
from penstock.packed_format.tensor import PackedTensor
from penstock.weights import weights as weights_module
from penstock.weights.residency import draft_order, residency_order
from penstock.weights.weights import Weights

KERNELS = Kernels(1)


@contextmanager
def open_weights(
    path: Path, tensors: Tensors | None = None, order: Sequence[str] | None = None, **options: Any
) -> Iterator[tuple[Weights, Tensors]]:
    written = write_checkpoint(path, tensors=tensors)
    checkpoint = open_checkpoint(path)
    options = {"ring": Ring(4, 700)} | options
    resident = options.pop("resident_bytes", 0)
    weights = Weights(checkpoint.tensors, order or Architecture(checkpoint.config).pass_order, KERNELS, **options)
    weights.limit_resident(resident)
    try:
        yield weights, written
    finally:
        weights.close()


def walk(weights: Weights, tensors: Tensors) -> None:
    """One pass; every piece is where it belongs, and every matrix is whole."""
    for name in weights._by_name:
        seen = 0
        for piece in weights.pieces(name):
            assert piece.rows.start == seen
            assert piece.bytes.tobytes() == tensors[name][piece.rows].tobytes()
            seen = piece.rows.stop
        assert seen == len(tensors[name])


class TestResidencyOrder:
    @settings(deadline=None)
    @given(st.integers(0, 500))
    def test_every_index_once(self, count: int) -> None:
        assert sorted(residency_order(count)) == list(range(count))

    @settings(deadline=None)
    @given(st.integers(2, 500), st.data())
    def test_every_prefix_is_spread_evenly(self, count: int, data: Any) -> None:
        """No stretch between neighbours, around the cycle, is more than about twice the mean."""
        m = data.draw(st.integers(2, count))
        pinned = sorted(residency_order(count)[:m])
        gaps = [after - before for before, after in zip(pinned, [*pinned[1:], pinned[0] + count], strict=True)]
        assert max(gaps) <= 2 * count / (m - 1)

    def test_eight(self) -> None:
        assert residency_order(8) == [0, 4, 2, 6, 1, 5, 3, 7]


class TestPasses:
    @pytest.mark.parametrize("piece_bytes", [1, 64, 700, 1 << 20])
    @pytest.mark.parametrize("depth", [2, 4])
    def test_pieces_in_order(self, tmp_path: Path, piece_bytes: int, depth: int) -> None:
        with open_weights(tmp_path, ring=Ring(depth, piece_bytes)) as (weights, tensors):
            for _ in range(3):
                walk(weights, tensors)
            assert weights.totals.bytes_read == 3 * weights.pass_bytes

    def test_the_ring(self, tmp_path: Path) -> None:
        with open_weights(tmp_path, ring=Ring(3, 700)) as (weights, tensors):
            rows = 700 // (2 * 32)
            assert weights.ring_bytes == 3 * buffer_bytes(max(2 * 32 * rows, 2 * 48 * (700 // (2 * 48))))
            assert weights.pass_bytes == sum(
                array.nbytes for name, array in tensors.items() if array.ndim == 2 and "embed_tokens" not in name
            )

    def test_a_walk_that_ends_early_gives_its_buffer_back(self, tmp_path: Path) -> None:
        with open_weights(tmp_path, ring=Ring(2, 700)) as (weights, tensors):
            for _ in range(10):
                pieces = weights.pieces("model.layers.1.self_attn.q_proj.weight")
                next(pieces)
                pieces.close()
            walk(weights, tensors)

    def test_a_read_error_ends_one_pass_not_all(self, tmp_path: Path) -> None:
        with open_weights(tmp_path) as (weights, tensors):
            file = tmp_path / "model.safetensors"
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2])
            with pytest.raises(ReadError, match=r"model\.safetensors: reading at offset \d+ failed: the file ends"):
                walk(weights, tensors)
            file.write_bytes(content)
            walk(weights, tensors)


class TestResidency:
    @pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 1])
    def test_a_budget_is_used_and_kept(self, tmp_path: Path, share: float) -> None:
        with open_weights(tmp_path) as (weights, tensors):
            budget = int(share * weights.pass_bytes)
            weights.limit_resident(budget)
            assert weights.resident_bytes == 0
            walk(weights, tensors)
            largest = max(piece.nbytes for piece in weights._parts)
            assert weights.resident_bytes <= budget
            assert weights.resident_bytes > budget - largest or share == 1
            streamed = weights.pass_bytes - weights.resident_bytes
            before = weights.totals.bytes_read
            walk(weights, tensors)
            assert weights.totals.bytes_read - before == streamed
        assert weights.resident_bytes == 0

    def test_what_is_kept_is_read_to_its_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """And copied there only where it was read before it was known to be kept."""
        copied: list[int] = []
        copy = weights_module._copy
        monkeypatch.setattr(weights_module, "_copy", lambda data: copied.append(data.nbytes) or copy(data))
        with open_weights(tmp_path, resident_bytes=10_000) as (weights, tensors):
            walk(weights, tensors)
            assert copied == []
            walk(weights, tensors)
            weights.limit_resident(20_000)
            walk(weights, tensors)
            assert sum(copied) <= 4 * 700
            assert 19_000 < weights.resident_bytes <= 20_000
            walk(weights, tensors)
            assert len(weights._stream._free) + len(weights._stream._pending) == len(weights._stream._buffers)

    @pytest.mark.parametrize("more", [0, 3000])
    def test_the_first_ones_come_first(self, tmp_path: Path, more: int) -> None:
        head = "lm_head.weight"
        with open_weights(tmp_path, first=[head]) as (weights, tensors):
            nbytes = tensors[head].nbytes
            weights.limit_resident(nbytes + more)
            for _ in range(2):
                walk(weights, tensors)
            kept = [weights._parts[index].piece.name for index in weights._resident]
            assert kept.count(head) == len(weights._by_name[head])
            assert (len({*kept}) > 1) == (more > 0)

    def test_a_smaller_budget_keeps_a_part_of_what_a_larger_one_keeps(self, tmp_path: Path) -> None:
        with open_weights(tmp_path) as (weights, _):
            kept: set[int] = set()
            for percent in range(101):
                weights.limit_resident(weights.pass_bytes * percent // 100)
                assert kept <= weights._keep
                kept = weights._keep
            assert kept == set(range(len(weights._parts)))

    def test_down_and_up_again(self, tmp_path: Path) -> None:
        with open_weights(tmp_path, resident_bytes=1 << 30) as (weights, tensors):
            walk(weights, tensors)
            assert weights.resident_bytes == weights.pass_bytes
            for percent in (50, 20, 80, 0, 100):
                budget = weights.pass_bytes * percent // 100
                before = weights.resident_bytes
                weights.limit_resident(budget)
                assert weights.resident_bytes <= min(before, budget)  # at once
                walk(weights, tensors)
                assert weights.resident_bytes <= budget
                walk(weights, tensors)
            assert weights.resident_bytes == weights.pass_bytes

    def test_a_piece_in_use_outlives_its_residency(self, tmp_path: Path) -> None:
        with open_weights(tmp_path, resident_bytes=1 << 30) as (weights, tensors):
            walk(weights, tensors)
            name = "model.layers.1.self_attn.q_proj.weight"
            for piece in weights.pieces(name):
                weights.limit_resident(0)
                assert piece.bytes.tobytes() == tensors[name][piece.rows].tobytes()
            walk(weights, tensors)

    def test_resident_pieces_are_no_part_of_the_ring(self, tmp_path: Path) -> None:
        with open_weights(tmp_path, resident_bytes=5_000) as (weights, tensors):
            walk(weights, tensors)
            weights._stream._drain()
            ring = weights._stream._free
            assert weights._resident
            for index, data in weights._resident.items():
                assert not any(np.shares_memory(data, buffer) for buffer in ring)
                assert data.nbytes == weights._parts[index].nbytes


class TestSmallReads:
    @pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
    def test_vectors(self, tmp_path: Path, dtype: str) -> None:
        tensors = random_tensors(tiny_config(), dtype)
        with open_weights(tmp_path, tensors) as (weights, _):
            vector = weights.vector("model.norm.weight")
            assert vector.dtype == np.float32
            assert vector.shape == (32,)
            assert (vector == to_float32(tensors["model.norm.weight"])).all()

    @pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
    @pytest.mark.parametrize("indices", [[0], [95], [5, 5, 5], [9, 3, 9, 0, 95, 3]])
    def test_rows(self, tmp_path: Path, dtype: str, indices: list[int]) -> None:
        tensors, name = random_tensors(tiny_config(), dtype), "model.embed_tokens.weight"
        with open_weights(tmp_path, tensors) as (weights, _):
            rows = weights.rows(name, np.array(indices))
            assert rows.dtype == np.float32
            assert (rows == to_float32(tensors[name])[indices]).all()
            assert weights.totals.bytes_read == 0


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Decoder, Weights]]:
    """A packed model that is to guess with its coarse tier; a test says what may stay in memory."""
    _, packed = write_pair(tmp_path_factory.mktemp("model"), num_hidden_layers=5)
    with open_to_draft(packed) as opened:
        yield opened


class TestDraftOrder:
    """What guesses are made with is kept first, by need."""

    def by_need(self, model: Decoder, weights: Weights) -> list[int]:
        names = draft_order(Architecture(model.config))
        every = range(len(weights._parts))
        first = {i: weights._parts[i].piece.name for i in every if not weights._parts[i].index}
        return [i for name in dict.fromkeys(names) for i in first if first[i] == name]

    @settings(deadline=None, max_examples=examples(25))
    @given(share=st.floats(0, 1.4))
    def test_at_any_budget_what_is_kept_is_a_prefix_by_need(
        self, drafting: tuple[Decoder, Weights], share: float
    ) -> None:
        model, weights = drafting
        order = self.by_need(model, weights)
        budget = min(int(share * weights.draft_bytes), weights.indexed_bytes - 1)
        weights.limit_resident(budget)
        pass_over(model)
        kept, spent = [], 0
        for index in order:
            spent += weights._parts[index].nbytes
            if spent > budget:
                break
            kept.append(index)
        resident = set(weights._resident)
        assert resident & set(order) == set(kept)
        assert len(kept) == len(order) or resident == set(kept), "others came before what guesses need"
        assert weights.resident_bytes <= budget
        for name in draft_order(Architecture(model.config)):
            whole = all(index in kept for index in order if weights._parts[index].piece.name == name)
            assert (weights.draft(name) is not None) == whole

    def test_it_is_all_that_is_needed_to_guess_with(self, drafting: tuple[Decoder, Weights]) -> None:
        """The coarse tier of packed matrices, and small ones as they are; the embedding's rows are read one by one."""
        model, weights = drafting
        parts = [weights._parts[index] for index in self.by_need(model, weights)]
        assert weights.draft_bytes == sum(part.nbytes for part in parts)
        assert 0.2 < weights.draft_bytes / weights.pass_bytes < 0.5
        assert "model.embed_tokens.weight" not in weights.draft_names
        assert {part.piece.name for part in parts} == set(Architecture(model.config).pass_order)

    def test_the_head_first_and_the_middle_last(self, drafting: tuple[Decoder, Weights]) -> None:
        names = draft_order(drafting[0].architecture)
        layers = list(dict.fromkeys(int(name.split(".")[2]) for name in names[1:-1]))
        assert names[0] == names[-1] == "lm_head.weight"
        assert layers[:3] == [0, 1, 4]
        assert sorted(layers) == list(range(5))

    def test_rarer_rows_of_the_head_come_last(self, tmp_path: Path) -> None:
        with open_to_draft(write_pair(tmp_path, vocab_size=12_000)[1], piece_bytes=1) as (_, weights):
            order = sorted(weights._draft, key=lambda index: (weights._draft[index], index))
            heads = [i for i, index in enumerate(order) if weights._parts[index].piece.name == "lm_head.weight"]
            common = next(i for i in range(len(order)) if heads[i] != i)
            spare = len(heads) - common
            assert heads == [*range(common), *range(len(order) - spare, len(order))]
            rows = [weights._parts[order[i]].piece.rows for i in heads]
            count = weights.tensors["lm_head.weight"].shape[0]
            assert all(r.start < count / 2 or r.stop == count for r in rows[:common])
            assert all(count / 2 <= r.start < r.stop < count for r in rows[common:])
            assert weights.draft_bytes - weights.least_draft_bytes == sum(
                weights._parts[order[i]].nbytes for i in heads[common:]
            )

    def test_indexed_rows_beside_the_coarse_tier(self, drafting: tuple[Decoder, Weights]) -> None:
        model, weights = drafting
        weights.limit_resident(weights.indexed_bytes)
        for _ in range(2):
            pass_over(model)
            assert weights._indexed
            assert weights.streamed_bytes == 0
            assert weights.resident_bytes <= weights.indexed_bytes
            assert all(weights.draft(name) is not None for name in weights.draft_names)
        weights.limit_resident(weights.indexed_bytes - 1)
        assert not weights._indexed
        assert all(weights.draft(name) is not None for name in weights.draft_names)
        weights.limit_resident(0)
        assert weights.resident_bytes == 0
        assert all(weights.draft(name) is None for name in weights.draft_names)

    def test_its_bytes_are_those_of_the_file(self, drafting: tuple[Decoder, Weights]) -> None:
        model, weights = drafting
        weights.limit_resident(weights.draft_bytes)
        pass_over(model)
        name = "model.layers.2.mlp.up_proj.weight"
        tensor = weights.tensors[name]
        assert isinstance(tensor, PackedTensor)
        extent = tensor.coarse_extent(0, tensor.n_chunks)
        pieces = weights.draft(name)
        assert pieces is not None
        content = b"".join(piece.bytes.tobytes() for piece in pieces)
        assert content == tensor.path.read_bytes()[extent.offset : extent.offset + extent.nbytes]

    def test_without_an_order_nothing_is_kept_for_guesses(self, drafting: tuple[Decoder, Weights]) -> None:
        path = next(iter(drafting[1].tensors.values())).path.parent
        checkpoint = open_checkpoint(path)
        weights = Weights(checkpoint.tensors, Architecture(checkpoint.config).pass_order, KERNELS, Ring(4, 1 << 20))
        weights.limit_resident(1 << 30)
        pass_over(drafting[0].over(weights))
        assert weights.draft_bytes == 0
        assert weights.draft_names == ()
        assert weights.draft("lm_head.weight") is None
        weights.close()

    def test_a_raw_model_has_nothing_to_guess_with(self, tmp_path: Path) -> None:
        with open_weights(tmp_path, draft_order=draft_order(Architecture(parse_config(tiny_config(), "config")))) as (
            weights,
            _,
        ):
            assert weights.draft_bytes == 0
            assert weights.draft("lm_head.weight") is None
