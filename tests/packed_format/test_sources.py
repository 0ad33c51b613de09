from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from helpers.packed_files import file_content
from penstock.disk.files import Files
from penstock.errors import ReadError
from penstock.packed_format.sources import LocalSource


def test_a_file_of_this_machine(tmp_path: Path) -> None:
    content = file_content([("w", "U8", (100_003,))])
    (tmp_path / "x").write_bytes(content)
    ranges = [(0, 8), (100, 50_000), (50_100, 1), (99_000, 1_000), (5, 3)]
    files = Files()
    with ThreadPoolExecutor(2) as pool:
        source = LocalSource(tmp_path / "x", "x", files, pool)
        assert (source.name, source.size) == ("x", len(content))
        assert source.header() == content[:-100_003]
        parts = list(source.ranges(ranges))
        assert [part.tobytes() for part in parts] == [content[begin : begin + nbytes] for begin, nbytes in ranges]
        assert not any(np.shares_memory(part, other) for part in parts for other in parts if part is not other)
        with pytest.raises(ReadError, match="the file ends there"):
            list(source.ranges([(len(content) - 5, 6)]))
    files.close()
