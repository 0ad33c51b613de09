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

from penstock.session_log import SessionLog

QUESTIONS = ("write a class", "and another one", "now a test of it", "shorter", "once more", "and the last one")


@dataclass
class Outcome:
    """What was done, and what came of it."""

    kills: int = 0
    before_the_session: int = 0
    """Kills before the session was opened, or just after, which left the file as it was."""
    answers: int = 0
    most_kills_of_one: int = 0
    torn: int = 0
    """Times that a last record was torn."""
    differences: list[str] = field(default_factory=list)


def command(model: str, question: str, session: Path, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "penstock", "run", model, question, "--session", str(session), *options]


def run(arguments: list[str]) -> tuple[str, str]:
    """What a command prints on standard output and on standard error."""
    result = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return result.stdout, result.stderr


def killed_after(arguments: list[str], seconds: float) -> tuple[bool, str, str]:
    """Start a command and kill it after so long: whether that was before it ended, and what it printed."""
    process = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
    if process.returncode > 0:
        raise RuntimeError(errors)
    return process.returncode < 0, out, errors


def held(path: Path) -> list[object]:
    """What the records of a session say but for keys and values: where passes begin and end depends on the clock."""
    log, turns = SessionLog(path), []
    for record in log.replay():
        if record.kind == "turn":
            turn = {key: value for key, value in record.meta.items() if key != "cached"} | {"drawn": []}
            turns.append(turn)
        elif record.kind == "pass":
            turns[-1]["drawn"] += record.meta["drawn"]
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
        begin = time.perf_counter()
        expected, _ = run(command(model, question, peace, seeded))
        seconds = time.perf_counter() - begin
        of_this = 0
        while True:
            size = war.stat().st_size if war.exists() else 0
            wait = chance.uniform(0, 1.1 * seconds) if outcome.kills < kills else 600.0
            killed, out, errors = killed_after(command(model, question, war, seeded), wait)
            outcome.torn += "is torn" in errors
            if not killed:
                break
            of_this += 1
            outcome.kills += 1
            outcome.before_the_session += size == (war.stat().st_size if war.exists() else 0)
            if not expected.startswith(out):
                outcome.differences.append(f"{question}: a killed run printed {out!r}, not {expected!r}")
        outcome.answers += 1
        outcome.most_kills_of_one = max(outcome.most_kills_of_one, of_this)
        if out != expected:
            outcome.differences.append(f"{question}: {out!r}, not {expected!r}")
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
        f"{outcome.before_the_session} of them before anything was written, {outcome.torn} torn records dropped; "
        f"{size} bytes in the end; {time.perf_counter() - begin:.0f} s"
    )
    print("\n".join(outcome.differences) or "all answers, tokens and conversations are identical")
    sys.exit(bool(outcome.differences))


if __name__ == "__main__":
    main()
