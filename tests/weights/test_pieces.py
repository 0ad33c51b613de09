from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.safetensors_header import DType, TensorInfo
from penstock.weights.pieces import Piece, split


def matrix(rows: int, columns: int) -> TensorInfo:
    return TensorInfo("m", DType.BF16, (rows, columns), Path("f"), 1000, 1000 + 2 * rows * columns)


def nbytes_of(piece: Piece) -> int:
    return sum(extent.nbytes for extent in piece.extents)


class TestSplitOfPlainMatrices:
    @settings(deadline=None)
    @given(rows=st.integers(1, 300), columns=st.integers(1, 50), piece_bytes=st.integers(1, 3000))
    def test_pieces_cover_a_matrix_in_order(self, rows: int, columns: int, piece_bytes: int) -> None:
        tensor = matrix(rows, columns)
        pieces = split(tensor, piece_bytes)
        assert [piece.rows.start for piece in pieces] == [0, *(piece.rows.stop for piece in pieces[:-1])]
        assert pieces[-1].rows.stop == rows
        assert len({nbytes_of(piece) for piece in pieces[:-1]}) <= 1
        assert all(nbytes_of(piece) <= max(piece_bytes, 2 * columns) for piece in pieces)
        assert nbytes_of(pieces[-1]) <= nbytes_of(pieces[0])

    @settings(deadline=None)
    @given(rows=st.integers(1, 300), columns=st.integers(1, 50), piece_bytes=st.integers(1, 3000))
    def test_their_extents_are_the_bytes_of_the_matrix(self, rows: int, columns: int, piece_bytes: int) -> None:
        tensor, at = matrix(rows, columns), 1000
        for piece in split(tensor, piece_bytes):
            assert (piece.extents[0].path, piece.extents[0].offset) == (tensor.path, at)
            at += nbytes_of(piece)
        assert at == tensor.end
