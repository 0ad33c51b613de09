"""Processes that share a folder: the limit holds, and nobody reads what nobody wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.thorough import quick

WRITER = """
import os, sys, numpy as np
from hashlib import sha256
from pathlib import Path
from penstock.prefix_cache import folder as folder_module
from penstock.prefix_cache.block_file import file_bytes
from penstock.prefix_cache.folder import BlockFolder

path, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
N = 50000
folder_module.RUN_BYTES = 3 * file_bytes(N)
folder_module.POLL_SECONDS = 0.001
folder = BlockFolder(path, 20 * file_bytes(N), N)
rng, out, read = np.random.default_rng(seed), np.empty(N, np.uint8), 0

def block(key):
    return np.frombuffer(key * (N // 32 + 1), np.uint8)[:N].copy()

for _ in range(rounds):
    prompt, count = int(rng.integers(12)), int(rng.integers(1, 9))
    keys = [sha256(f"{prompt} {i}".encode()).digest() for i in range(count)]
    for key in keys:
        if not folder.has(key):
            break
        if folder.read(key, out):
            assert np.array_equal(out, block(key))
            read += 1
    folder.keep(keys, lambda i: [block(keys[i])])
    with folder._locked():  # nobody writes now
        sizes = [os.stat(entry.path).st_size for entry in os.scandir(folder.path)]
    assert sum(sizes) <= folder.most_bytes, (len(sizes), sum(sizes))
assert read
print("read", read)
"""


@pytest.mark.skipif(os.name != "posix", reason="writers wait for each other by flock")
@pytest.mark.parametrize("rounds", quick(1, [40, 1000]))
def test_two_writers_keep_the_limit(tmp_path: Path, rounds: int) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path, str(seed), str(rounds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    for writer in writers:
        out, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, "")
        assert out.startswith("read ")


@pytest.mark.skipif(os.name != "posix", reason="writers wait for each other by flock")
@pytest.mark.parametrize("kills", quick(1, [3, 30]))
def test_a_writer_that_is_killed_stops_nobody(tmp_path: Path, kills: int) -> None:
    for kill in range(kills):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(kill), "1000000"])
        until = time.monotonic() + 60
        while not list(tmp_path.rglob("*.kv")) and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.013 * kill)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    done = subprocess.run(
        [sys.executable, "-c", WRITER, tmp_path, "99", "20"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(tmp_path.rglob("*.new"))
