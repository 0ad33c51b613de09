"""The commands that disk_faults.py tries: sessions, batches, models that are opened, packed, unpacked and verified."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import zlib
from contextlib import suppress
from pathlib import Path

from disk_faults import READ, SYNC, TRUNCATE, WRITE, Scenario

import penstock.batch.lines
import penstock.batch.requests
import penstock.batch.run
import penstock.batch.watcher
import penstock.checkpoints.checkpoint
import penstock.cli
import penstock.disk.files
import penstock.llm
import penstock.packing.pack
import penstock.packing.unpack
import penstock.packing.verify
import penstock.sessions.log
import penstock.sessions.session
import penstock.text.tokenizer
from penstock.checkpoints.store import find_model
from penstock.errors import UsageError
from penstock.sampling import SamplingParams
from penstock.sessions.log import NewRecord

TESTS = Path(__file__).parents[2] / "tests"
sys.path.insert(0, str(TESTS))
from helpers import batch_damage, pulling  # noqa: E402

GOLDEN = TESTS / "golden"

RUN = ("--raw", "--temperature", "0", "--max-tokens", "3", "--threads", "1", "--draft", "none")
BATCH = ("batch", "demo", "in.jsonl", "out.jsonl", "--quiet", "--threads", "1", "--draft", "none", "--at-once", "3")


def begun_session(folder: Path) -> None:
    """A turn that is over, and one that was killed in its middle."""
    with penstock.llm.LLM.open("demo", threads=1, draft="none") as llm:
        session = penstock.sessions.session.Session(llm, folder / "talk.session")
        list(session.complete("def add(a, b):", SamplingParams(temperature=0, max_tokens=4)))
        session.told()
        pieces = session.complete("\nclass", SamplingParams(temperature=0, max_tokens=8))
        for _ in range(4):
            next(pieces)
        os._exit(0)


def finished_session(folder: Path) -> None:
    llm = penstock.llm.LLM.open("demo", threads=1, draft="none")
    with llm, penstock.sessions.session.Session(llm, folder / "talk.session") as session:
        list(session.complete("def add(a, b):", SamplingParams(temperature=0, max_tokens=4)))
        session.told()


def requests(folder: Path) -> None:
    def ask(custom_id: str, **body: object) -> dict[str, object]:
        body = {"model": "any", "max_tokens": 5, "temperature": 0, "prompt": "def add(a, b):"} | body
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}

    lines = [
        ask("greedy"),
        ask("sampled", temperature=1, n=2, logprobs=1, max_tokens=4),
        ask("short", prompt="class A", max_tokens=2),
        ask("long", prompt="import os", max_tokens=7),
        ask("last", prompt="for", max_tokens=3, temperature=0.5),
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(folder / "in.jsonl", (1_700_000_000, 1_700_000_000))


def begun_batch(folder: Path) -> None:
    """One that was killed after so many passes that some results are there and some are not."""
    requests(folder)

    class Ending(penstock.batch.watcher.Watcher):
        left = 5

        def passed(self) -> None:
            self.left -= 1
            if not self.left:
                os._exit(0)

    settings = penstock.batch.run.BatchSettings(
        model="demo",
        source=folder / "in.jsonl",
        out=folder / "out.jsonl",
        threads=1,
        draft="none",
        at_once=3,
    )
    penstock.batch.run.run(settings, Ending())


def original(folder: Path) -> None:
    """The demo model."""
    shutil.copytree(find_model("demo"), folder / "model")


def packed(folder: Path) -> None:
    """The same, packed."""
    penstock.packing.pack.pack(find_model("demo"), folder / "packed", threads=1)


def matrices(folder: Path) -> None:
    """A model in several files, large enough to be packed."""
    pulling.write_model(folder / "model", "split")


def packed_matrices(folder: Path) -> None:
    matrices(folder)
    penstock.packing.pack.pack(folder / "model", folder / "packed", threads=1)


def session_log() -> None:
    """Read, go on, rewrite, as sessions do; what is read may be of an earlier try."""
    log = penstock.sessions.log.SessionLog(Path("talk.session"))
    try:
        records = list(log.replay())
        assert [record.meta["size"] for record in records] in ([0, 700, 300], [0, 700, 300, 90], [0, 90])
        for record in records:
            assert b"".join(log.payload(record, 64)) == bytes(record.meta["size"])
        if len(records) == 3:
            log.append(NewRecord("pass", {"size": 90}, [bytes(90)], 90))
        log.rewrite([NewRecord("mod ", {"size": 0}), NewRecord("pass", {"size": 90}, [bytes(90)], 90)])
    finally:
        log.close()


def begun_log(folder: Path) -> None:
    log = penstock.sessions.log.SessionLog(folder / "talk.session")
    for kind, size in (("mod ", 0), ("pass", 700), ("pass", 300)):
        log.append(NewRecord(kind, {"size": size}, [bytes(size)], size))
    log.close()


def batch_state() -> None:
    """Go on with a batch that was killed, its answers made up."""
    batch_damage.finish(Path.cwd())
    for file in Path.cwd().glob("out.state*"):
        file.unlink()


def new_batch_state() -> None:
    """The same from its beginning."""
    batch_damage.begin(Path.cwd(), killed=False)
    batch_state()


def begun_state(folder: Path) -> None:
    batch_damage.begin(folder, killed=True)
    for file in (folder / "killed").iterdir():
        file.replace(folder / file.name)
    (folder / "killed").rmdir()


def batch_requests() -> None:
    with penstock.batch.requests.RequestFile(Path("in.jsonl")) as file:
        print(file.contents().digest)
        for line, _ in list(file.scan()):
            print(line.number, penstock.batch.lines.parse_line(file.read(line), line.number, True))


def extents() -> None:
    """Reads of weights, aligned or not."""
    files = penstock.disk.files.Files()
    for offset, nbytes in ((0, 4096), (3, 5), (4095, 2), (100_000, 200_000), (299_990, 10)):
        extent = penstock.disk.files.Extent(Path("weights").resolve(), offset, nbytes)
        print(zlib.crc32(files.read(extent, penstock.disk.files.aligned_buffer(nbytes))))


def weights(folder: Path) -> None:
    (folder / "weights").write_bytes(random.Random(0).randbytes(300_000))


def opening() -> None:
    """What is read of a checkpoint before any pass."""
    for name in ("original", "packed"):
        checkpoint = penstock.checkpoints.checkpoint.open_checkpoint(Path(name).resolve())
        print(sorted(checkpoint.tensors), penstock.checkpoints.checkpoint.generation_defaults(Path(name).resolve()))
    print(penstock.text.tokenizer.Tokenizer.open(Path("text").resolve()).encode("def add(a, b):"))


def models(folder: Path) -> None:
    """Small ones, and the demo model's texts."""
    shutil.copytree(GOLDEN / "tiny", folder / "original")
    penstock.packing.pack.pack(folder / "original", folder / "packed")
    (folder / "text").mkdir()
    for file in find_model("demo").glob("*.j*"):
        shutil.copy(file, folder / "text")


def packing() -> None:
    """There and back, and verified."""
    with suppress(UsageError):  # where it is complete
        penstock.packing.pack.pack("tiny", "packed", threads=1)
    penstock.packing.unpack.unpack("packed", "again", threads=1)
    report = penstock.packing.verify.verify("packed", "tiny", threads=1)
    for place in (*report.damage, *report.differences):
        print(f"damaged: {place}")
    sys.exit(not report.sound)


def tiny(folder: Path) -> None:
    shutil.copytree(GOLDEN / "tiny", folder / "tiny")


SCENARIOS = [
    Scenario("packing", packing, "*/case*", tiny, results=("packed", "again")),
    Scenario("log of a session", session_log, "*/case*", begun_log, results=("talk.session",)),
    Scenario(
        "state of a batch",
        batch_state,
        "*/case*",
        begun_state,
        kinds=(READ, WRITE, SYNC, TRUNCATE),
        results=("out", "out.ordered"),
    ),
    Scenario(
        "new state of a batch",
        new_batch_state,
        "*/case*",
        kinds=(READ, WRITE, SYNC, TRUNCATE),
        results=("out", "out.ordered"),
    ),
    Scenario("requests of a batch", batch_requests, "*in.jsonl", requests, kinds=(READ,)),
    Scenario("reads of weights", extents, "*/weights", weights, kinds=(READ,)),
    Scenario("opening", opening, "*/case/*", models, kinds=(READ,)),
    Scenario("session, new", ("run", "demo", "def add", "--session", "talk.session", *RUN), "*talk.session*"),
    Scenario(
        "session, follow-up",
        ("run", "demo", "\nclass", "--session", "talk.session", *RUN),
        "*talk.session*",
        finished_session,
    ),
    Scenario(
        "session, resumed", ("run", "demo", "--raw", "--session", "talk.session"), "*talk.session*", begun_session
    ),
    Scenario("batch, new", BATCH, "*.jsonl*", requests, results=("out.jsonl",)),
    Scenario("batch, resumed", BATCH, "*.jsonl*", begun_batch, results=("out.jsonl",)),
    Scenario("model, opened and run", ("run", "model", "def add", *RUN), "*/case/model/*", original, kinds=(READ,)),
    Scenario(
        "packed model, opened and run", ("run", "packed", "def add", *RUN), "*/case/packed/*", packed, kinds=(READ,)
    ),
    Scenario(
        "pack", ("pack", "model", "new"), "*/case*", matrices, results=("new",), prints=False, once="and complete"
    ),
    Scenario("unpack", ("unpack", "packed", "new"), "*/case*", packed_matrices, results=("new",), prints=False),
    Scenario(
        "verify",
        ("verify", "packed", "--against", "model"),
        "*/case/*",
        packed_matrices,
        kinds=(READ,),
        prints=False,
    ),
]
