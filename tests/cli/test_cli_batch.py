from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn

from helpers import in_process
from helpers.batches import CREATED, ask, mixed, records, write_requests
from helpers.thorough import quick
from penstock.batch.progress import Progress, Unfinished
from penstock.batch.results import state_path
from penstock.batch.state import Counts
from penstock.cli.batch_display import BarWatcher, LinesWatcher


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "penstock", "batch", "demo", *map(str, arguments)]


def batch(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "in.jsonl", [ask("a", max_tokens=4, ignore_eos=True), ask("b", temperature=9)])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def not_answered(out: Path, count: str, first: str) -> str:
    """What is said on standard error of requests that failed."""
    return (
        f"error: {count} requests failed; the first, result {first}\n"
        f'Of each, "error" in {out} says why. To ask for others, give another OUT, or --overwrite.\n'
    )


HOT = "2, 'b': temperature=9: Input should be less than or equal to 2."


def test_lines_and_a_summary(path: Path, out: Path) -> None:
    result = batch(path, out, "--draft", "none")
    assert result.returncode == 1
    begin, end = result.stdout.split(";")
    assert begin == f"{out}: 1 answered, 1 failed, 4 tokens"
    assert end.startswith(" 4 passes in ")
    assert end.endswith(" tokens/s\n")
    told = not_answered(out, "1 of 2", HOT)
    assert result.stderr == "0 of 2 done, pass 1, layer 1/6, 0 tokens, 1 running\n" + told
    again = batch(path, out, "--draft", "none")
    assert again.stdout == f"{out}: 1 answered, 1 failed, 4 tokens; nothing was left to do\n"
    assert (again.returncode, again.stderr) == (1, told)


def test_json_and_quiet(path: Path, out: Path) -> None:
    result = batch(path, out, "--json", "--quiet", "--draft", "none", "--max-tokens", "9", "--at-once", "3")
    assert (result.returncode, result.stderr) == (1, not_answered(out, "1 of 2", HOT))
    said = json.loads(result.stdout)
    assert said.pop("seconds") > 0
    assert said.pop("tokens_per_second") > 0
    assert said == {
        "out": str(out),
        "total": 2,
        "answered": 1,
        "failed": 1,
        "tokens": 4,
        "drawn": 4,
        "passes": 4,
        "complete_before": False,
    }


class TestExitCode:
    def test_all_answered(self, tmp_path: Path, out: Path) -> None:
        path = write_requests(tmp_path / "in.jsonl", [ask("a", max_tokens=1), ask("b", max_tokens=1)])
        for _ in range(2):
            result = batch(path, out, "--quiet")
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    @pytest.mark.parametrize("options", [("--json", "--quiet"), pytest.param(("--quiet",), marks=pytest.mark.thorough)])
    def test_nothing_answered(self, tmp_path: Path, out: Path, options: tuple[str, ...]) -> None:
        path = write_requests(tmp_path / "in.jsonl", [{"question": "Why?"}] * 20)
        for _ in range(2):
            result = batch(path, out, *options)
            assert result.returncode == 1
            first = '1: Line 1 has neither "prompt" nor "messages", nor what a line of OpenAI\'s batches has.'
            assert result.stderr == not_answered(out, "None of 20", first).replace("failed;", "was answered;")
            assert (json.loads(result.stdout)["answered"] if result.stdout else 0) == 0
            assert len(records(out)) == 20

    @pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
    @pytest.mark.parametrize("signal_number", quick([signal.SIGKILL], [signal.SIGINT, signal.SIGKILL]))
    def test_interrupted_and_gone_on_with(self, tmp_path: Path, out: Path, signal_number: signal.Signals) -> None:
        requests = [ask("hot", temperature=9), ask("long", max_tokens=300, ignore_eos=True)]
        path = write_requests(tmp_path / "in.jsonl", requests)
        begun = command(path, out, "--draft", "none", "--quiet")
        with subprocess.Popen(begun, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while process.poll() is None and not out.exists():
                time.sleep(0.001)
            process.send_signal(signal_number)
            process.communicate()
        assert process.returncode == (130 if signal_number == signal.SIGINT else -signal_number)
        result = batch(path, out, "--quiet")
        first = "1, 'hot': temperature=9: Input should be less than or equal to 2."
        assert (result.returncode, result.stderr) == (1, not_answered(out, "1 of 2", first))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("{path}", "{path}"), 2, "would overwrite the requests"),
        (("{path}.none", "{out}"), 2, "cannot be read: No such file or directory."),
        (("{path}", "{out}", "--max-tokens", "0"), 2, "--max-tokens 0: at least 1 is needed."),
        (("{path}", "{out}", "--memory", "1MiB"), 2, "The least that works is"),
        (("{path}", "{out}", "--draft", "no/such/model"), 1, "no such directory"),
        (("{path}", "{out}", "--no-such-option"), 2, "No such option"),
    ],
)
def test_one_message_no_traceback(
    arguments: tuple[str, ...], code: int, words: str, path: Path, out: Path, tmp_path: Path
) -> None:
    asked = (argument.format(path=path, out=out) for argument in arguments)
    result = in_process.penstock("batch", "demo", *asked)
    assert (result.returncode, result.stdout) == (code, "")
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


def growth(state: Path) -> int:
    """Bytes of a running batch's log, which every pass adds to; nobody else may read the database itself then."""
    try:
        return Path(f"{state}-wal").stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("times", quick([1], [1, 2]))
def test_ctrl_c_keeps_what_there_is(tmp_path: Path, out: Path, times: int) -> None:
    requests = [ask(f"{number}", max_tokens=150, ignore_eos=True) for number in range(3)]
    path = write_requests(tmp_path / "in.jsonl", requests)
    with subprocess.Popen(
        command(path, out, "--draft", "none"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        sizes: set[int] = set()
        while process.poll() is None and len(sizes) < 8:  # so that some passes are over
            time.sleep(0.001)
            sizes.add(growth(state_path(out)) * out.exists())
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        said, errors = process.communicate()
    assert (process.returncode, said) == (130, "")
    assert "Traceback" not in errors
    if times == 1:
        assert errors.endswith("interrupted; the same command goes on from here\n")
    assert state_path(out).exists()
    summary = json.loads(batch(path, out, "--draft", "none", "--json").stdout)
    assert (summary["answered"], summary["tokens"]) == (3, 450)
    assert summary["drawn"] < 450
    assert len(records(out)) == 3


@pytest.mark.thorough
def test_it_keeps_its_own_ceiling(tmp_path: Path, out: Path) -> None:
    """Also where its requests are long, and many."""
    requests = [ask("long", prompt="x = 1\n" * 700, max_tokens=2)]
    requests += [ask(f"{number}", prompt=f"def f{number}(", max_tokens=3) for number in range(60)]
    path = write_requests(tmp_path / "in.jsonl", requests)
    code = (
        "import sys; sys.argv[0] = 'penstock'; from penstock.system import machine; from penstock.cli import app;"
        "app(standalone_mode=False); print(machine.peak_process_bytes())"
    )
    arguments = ["batch", "demo", str(path), str(out), "--memory", "300MiB", "--quiet"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) <= 300 << 20
    assert [record["error"] for record in records(out) if record["error"]] == []


def test_a_cut_needs_a_cluster(path: Path, out: Path) -> None:
    result = in_process.penstock("batch", "demo", path, out, "--cut", "dealt")
    assert result.returncode == 2
    assert "Give --cluster too" in result.stderr


class TestDisplay:
    def progress(self) -> Progress:
        one = Progress(Counts(total=20, done=5, failed=0, tokens=50))
        one.count_pass(3.0)
        one.count([], [Unfinished(4, 9)], 0, 0.0)
        return one

    def test_machines(self, capsys: pytest.CaptureFixture[str]) -> None:
        progress = self.progress()
        progress.nodes = ["one", "two"]
        lines = LinesWatcher()
        lines.working(progress, 0)
        lines.passed()
        lines.lost("two", "its process has ended")
        assert capsys.readouterr().err.splitlines() == [
            "5 of 20 done, 2 machines at work (one, two), 54 tokens, 3 s a pass, 1 running",
            "warning: two does not take part any more: its process has ended",
        ]
        screen = StringIO()
        with Bar(TextColumn("{task.description}"), console=Console(file=screen, width=80), transient=True) as bar:
            shown = BarWatcher(bar)
            shown.working(progress, 0)
            shown.lost("two", "its [process] has ended")
            assert bar.tasks[0].description.startswith("5 of 20 done, 2 machines at work")
        assert "two does not take part any more: its [process] has ended" in " ".join(screen.getvalue().split())

    def test_lines_come_now_and_then(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr("penstock.cli.batch_display.time.perf_counter", lambda: now[0])
        lines = LinesWatcher(every=30.0)
        lines.scanning(1, 2)
        lines.opening()
        assert capsys.readouterr().err == ""
        lines.working(self.progress(), 32)
        for layer in range(20):
            now[0] += 2.0
            lines.layer(layer)
        lines.passed()
        assert capsys.readouterr().err.splitlines() == [
            "5 of 20 done, pass 2, layer 1/32, 54 tokens, 3 s a pass, 1 running",
            "5 of 20 done, pass 2, layer 16/32, 54 tokens, 3 s a pass, 1 running",
        ]

    @pytest.mark.parametrize(
        ("columns", "words"),
        [(60, "5 of 20 done, layer 32/32"), (120, "5 of 20 done, pass 2, layer 32/32, 54")],
    )
    def test_a_bar_fits_the_terminal(self, columns: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("penstock.cli.batch_display.DRAW_SECONDS", 0.0)
        console = Console(file=StringIO(), force_terminal=True, width=columns)
        with Bar(TextColumn("{task.description}", markup=False), console=console, auto_refresh=False) as bar:
            watcher = BarWatcher(bar)
            watcher.scanning(1, 2)
            assert bar.tasks[0].percentage == 50
            watcher.opening()
            assert bar.tasks[0].description == "opening the model"
            watcher.working(self.progress(), 32)
            watcher.layer(31)
            task = bar.tasks[0]
            assert (task.completed, task.total) == (5, 20)
            assert task.description.startswith(words)
            assert len(task.description) <= columns - 28
            watcher.passed()
            assert "layer 0/32" in bar.tasks[0].description


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_terminal_shows_a_bar_that_goes_away(tmp_path: Path, out: Path) -> None:
    path = write_requests(tmp_path / "in.jsonl", [one for one in mixed() if len(str(one)) < 1000], CREATED)
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        command(path, out, "--max-tokens", "40"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65_536):
            shown += part
    except OSError:  # Linux's way to say that nobody writes to it any more
        pass
    os.close(ours)
    said = process.communicate()[0]
    assert process.returncode == 1  # some of them are errors
    assert said.count(b"\n") == 1
    assert b" done, pass " in shown
    assert b"/6" in shown
    bar, _, error = shown.partition(b"error: ")
    assert bar.rstrip().endswith(b"\x1b[2K")
    assert error.startswith(b"5 of 19 requests failed; ")
