"""A session that Penstock wrote before its code was rearranged goes on where it was."""

from __future__ import annotations

import shutil
from pathlib import Path

from helpers.golden_values import MODELS
from penstock import LLM, SamplingParams, Session

GOLDEN = Path(__file__).parents[1] / "golden" / "session"
PARAMS = SamplingParams(temperature=0.8, seed=11, max_tokens=24, ignore_eos=True)
PROMPT, DRAWN = [5, 6, 7, 8], [64, 50, 54, 54, 16, 16, 71, 95, 81]
"""What it was begun with, and what had been drawn when it was left."""


def test_it_goes_on(tmp_path: Path) -> None:
    shutil.copy(GOLDEN, tmp_path / "talk")
    with LLM.open(MODELS["tiny"], threads=1, draft="none") as llm:
        [whole] = llm.generate([PROMPT], PARAMS)
        with Session(llm, tmp_path / "talk") as session:
            assert session.rows_to_come == 2, "its keys and values count, and the last of them are computed again"
            assert session.turn is not None
            assert session.turn.drawn == DRAWN
            more = [token for piece in session.go_on() for token in piece.token_ids]
    assert whole.token_ids[: len(DRAWN)] == DRAWN
    assert more == whole.token_ids


def test_what_is_written_today_is_what_was_written_then(tmp_path: Path) -> None:
    with LLM.open(MODELS["tiny"], threads=1, draft="none") as llm, Session(llm, tmp_path / "talk") as session:
        pieces = session.complete(PROMPT, PARAMS)
        drawn: list[int] = []
        while len(drawn) < len(DRAWN):
            drawn += next(pieces).token_ids
        pieces.close()  # type: ignore[attr-defined]
    assert _without_path((tmp_path / "talk").read_bytes()) == _without_path(GOLDEN.read_bytes())


def _without_path(content: bytes) -> bytes:
    """All but the record of the model, which has the path of its directory, and so a size and a checksum of its own."""
    return content[content.index(b"turn") :]
