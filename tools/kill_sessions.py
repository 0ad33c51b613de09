"""Kill `penstock run --session` at random moments, again and again, and compare what comes out in the end.

python tools/kill_sessions.py --kills 50 --model demo -- --temperature 0.8 --max-tokens 200

The same questions are put to two sessions. One is left in peace. In the other each command is killed (SIGKILL) at a
random moment and repeated until one of them ends by itself. Both have to print the same answers, and to hold the same
tokens and conversation. Exits with 1 where they do not.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from penstock.sessions.log import SessionLog

EARLY = 0.2
"""The share of kills whose moment counts from the start of the command; most of that time nothing is written yet."""
QUESTIONS = ("write a class", "and another one", "now a test of it", "shorter", "once more", "and the last one")


@dataclass
class Outcome:
    """What was done, and what came of it."""

    kills: int = 0
    nothing_new: int = 0
    """Kills that found the file as it was before the command."""
    answers: int = 0
    most_kills_of_one: int = 0
    torn: int = 0
    """Times that a last record was torn."""
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What became of a command."""

    killed: bool
    out: str
    errors: str
    wrote: bool
    seconds: float
    writing_seconds: float
    """From when it first wrote to its session."""


def command(model: str, question: str, session: Path, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "penstock", "run", model, question, "--session", str(session), *options]


def run(arguments: list[str], session: Path, wait: float | None = None, early: bool = False) -> Run:
    """Run a command, and kill it `wait` seconds after it first wrote to its session, or, where `early`, after it began.

    Raises RuntimeError where it fails.
    """
    size, begin = _size(session), time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
        while process.poll() is None and _size(session) == size and not early:
            time.sleep(0.001)
        wrote = time.perf_counter()
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
        code = process.wait()
        end = time.perf_counter()
        out.seek(0)
        errors.seek(0)
        if code > 0:
            raise RuntimeError(errors.read())
        return Run(code < 0, out.read(), errors.read(), _size(session) != size, end - begin, end - wrote)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def held(path: Path) -> list[object]:
    """What the records of a session say but for keys and values: where passes begin and end depends on the clock."""
    log, turns = SessionLog(path), []
    for record in log.replay():
        if record.kind == "turn":
            asked = {key: value for key, value in record.meta.items() if key not in ("cached", "limit")}
            turns.append(asked | {"drawn": []})
        elif record.kind == "pass":
            turns[-1]["drawn"][record.meta["first"] :] = record.meta["drawn"]
            turns[-1]["end"] = record.meta["end"]
    log.close()
    return turns


def kill_sessions(folder: Path, kills: int, model: str, options: list[str], chance: random.Random) -> Outcome:
    """Kill until it has been done so often; then let the question at hand be answered."""
    outcome = Outcome()
    peace, war = folder / "peace", folder / "war"
    number = 0
    while outcome.kills < kills or number == 0:
        question, seeded = QUESTIONS[number % len(QUESTIONS)], [*options, "--seed", str(number)]
        number += 1
        left = run(command(model, question, peace, seeded), peace)
        of_this = 0
        while True:
            early = chance.random() < EARLY
            wait = chance.uniform(0, left.seconds if early else left.writing_seconds)
            last = run(command(model, question, war, seeded), war, wait if outcome.kills < kills else None, early)
            outcome.torn += "is torn" in last.errors
            if not last.killed:
                break
            of_this += 1
            outcome.kills += 1
            outcome.nothing_new += not last.wrote
            if not left.out.startswith(last.out):
                outcome.differences.append(f"{question}: a killed run printed {last.out!r}, not {left.out!r}")
        outcome.answers += 1
        outcome.most_kills_of_one = max(outcome.most_kills_of_one, of_this)
        if last.out != left.out:
            outcome.differences.append(f"{question}: {last.out!r}, not {left.out!r}")
    if held(peace) != held(war):
        outcome.differences.append("the sessions hold different tokens")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--random", type=int, default=0, help="what the moments follow from")
    parser.add_argument("options", nargs="*", help="of penstock run, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        outcome = kill_sessions(Path(folder), given.kills, given.model, given.options, random.Random(given.random))
        size = (Path(folder) / "war").stat().st_size
    print(
        f"{outcome.kills} kills of {outcome.answers} answers (at most {outcome.most_kills_of_one} of one), "
        f"{outcome.nothing_new} of them before anything was written, {outcome.torn} torn records dropped; "
        f"{size} bytes in the end; {time.perf_counter() - begin:.0f} s"
    )
    print("\n".join(outcome.differences) or "all answers, tokens and conversations are identical")
    sys.exit(bool(outcome.differences))


if __name__ == "__main__":
    main()
