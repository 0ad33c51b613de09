from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import control_group
import limit
import pytest
from control_group import CONTAINER, GroupV1, GroupV2, new_group
from limit import Limits, Report, run_limited, whole_disk

from penstock.errors import UsageError

Calls = list[tuple[list[str], Limits]]
NAME = f"penstock-{os.getpid()}"
V1_FILES = {
    "cgroup.procs": "",
    "memory.max_usage_in_bytes": "123456\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory.memsw.limit_in_bytes": "9223372036854771712\n",
    "memory.swappiness": "60\n",
}
V2_FILES = {
    "cgroup.procs": "",
    "cgroup.kill": "",
    "memory.peak": "123456\n",
    "memory.events": "low 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 1\n",
    "memory.swap.max": "max\n",
}


class Tree:
    """A directory that stands for the control group file system: a new directory has `files`, and goes with them."""

    def __init__(self, root: Path, files: dict[str, str]) -> None:
        self.root, self.files = root, dict(files)
        self.refuse: dict[str, int] = {}
        """File name: the error number that writing to it gives."""
        self.killed: list[int] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        make, write = Path.mkdir, Path.write_text

        def mkdir(path: Path, *args: Any, **options: Any) -> None:
            self._check(path)
            make(path, *args, **options)
            for name, text in self.files.items():
                write(path / name, text)

        def rmdir(path: Path) -> None:
            if (path / "cgroup.procs").read_text().strip():
                raise OSError(errno.EBUSY, "Device or resource busy")
            shutil.rmtree(path)

        def write_text(path: Path, text: str, *args: Any, **options: Any) -> int:
            self._check(path)
            if path.name == "cgroup.kill":
                write(path.with_name("cgroup.procs"), "")
            return write(path, text, *args, **options)

        for function in (mkdir, rmdir, write_text):
            patch.setattr(Path, function.__name__, function)
        patch.setattr(control_group, "os", SimpleNamespace(kill=self._kill, geteuid=lambda: 0, getpid=os.getpid))
        patch.setattr(limit, "drop_caches", lambda: None)

    def _check(self, path: Path) -> None:
        number = self.refuse.get(path.name)
        if number and self.root in path.parents:
            raise OSError(number, os.strerror(number))

    def _kill(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.killed.append(pid)
        for file in self.root.rglob("cgroup.procs"):
            file.write_text("")

    def parents(self) -> list[Path]:
        """Where groups are made."""
        return [self.root / c for c in GroupV1.CONTROLLERS if (self.root / c).exists()] or [self.root]

    def read(self, *path: str) -> str:
        return self.root.joinpath(*path).read_text()


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    tree = Tree(tmp_path, V1_FILES)
    for controller in GroupV1.CONTROLLERS:
        (tmp_path / controller).mkdir()
        (tmp_path / controller / "cgroup.procs").write_text("1\n")
    tree.install(monkeypatch)
    return tree


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    tree = Tree(tmp_path, V2_FILES)
    (tmp_path / "cgroup.procs").write_text("1\n")
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n")
    tree.install(monkeypatch)
    return tree


@pytest.fixture(params=["v1", "v2"])
def tree(request: pytest.FixtureRequest) -> Tree:
    tree: Tree = request.getfixturevalue(request.param)
    return tree


def fails(call: Callable[[], object], problem: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert (caught.value.problem, caught.value.remedy) == (problem, remedy)


class TestV1:
    def test_limits(self, v1: Tree) -> None:
        GroupV1(NAME, v1.root).limit(1 << 30, 524_000_000, "8:0")
        assert v1.read("memory", NAME, "memory.limit_in_bytes") == str(1 << 30)
        assert v1.read("memory", NAME, "memory.memsw.limit_in_bytes") == str(1 << 30)
        assert v1.read("blkio", NAME, "blkio.throttle.read_bps_device") == "8:0 524000000"

    def test_where_swap_is_not_counted_the_group_does_not_swap(self, v1: Tree) -> None:
        del v1.files["memory.memsw.limit_in_bytes"]
        GroupV1(NAME, v1.root).limit(1 << 30, None, "8:0")
        assert v1.read("memory", NAME, "memory.swappiness") == "0"

    def test_both_hierarchies_are_entered(self, v1: Tree) -> None:
        GroupV1(NAME, v1.root).enter()
        assert v1.read("memory", NAME, "cgroup.procs") == v1.read("blkio", NAME, "cgroup.procs") == str(os.getpid())

    def test_what_is_left_is_killed(self, v1: Tree) -> None:
        group = GroupV1(NAME, v1.root)
        (v1.root / "memory" / NAME / "cgroup.procs").write_text("12\n34\n")
        group.remove()
        assert v1.killed[0] == 12
        assert not list(v1.root.glob(f"*/{NAME}"))

    def test_no_half_of_a_group_stays(self, v1: Tree) -> None:
        (v1.root / "blkio" / NAME).mkdir()
        (v1.root / "blkio" / NAME / "cgroup.procs").write_text("77\n")
        path = v1.root / "blkio" / NAME
        fails(
            lambda: GroupV1(NAME, v1.root), f"The control group {path} is in use already.", "End its processes first."
        )
        assert not (v1.root / "memory" / NAME).exists()


class TestV2:
    def test_limits(self, v2: Tree) -> None:
        GroupV2(NAME, v2.root).limit(1 << 30, 524_000_000, "259:0")
        assert v2.read(NAME, "memory.max") == str(1 << 30)
        assert v2.read(NAME, "memory.swap.max") == "0"
        assert v2.read(NAME, "io.max") == "259:0 rbps=524000000"

    def test_a_kernel_without_swap(self, v2: Tree) -> None:
        del v2.files["memory.swap.max"]
        GroupV2(NAME, v2.root).limit(1 << 30, None, "")
        assert not (v2.root / NAME / "memory.swap.max").exists()
        assert not (v2.root / NAME / "io.max").exists()

    def test_only_missing_controllers_are_enabled(self, v2: Tree) -> None:
        GroupV2(NAME, v2.root)
        assert v2.read("cgroup.subtree_control") == "+io"
        (v2.root / "cgroup.subtree_control").write_text("cpu io memory\n")
        GroupV2(NAME + "0", v2.root)
        assert v2.read("cgroup.subtree_control") == "cpu io memory\n"

    def test_absent_controllers(self, v2: Tree) -> None:
        (v2.root / "cgroup.controllers").write_text("cpu memory\n")
        fails(lambda: GroupV2(NAME, v2.root), f"Control groups v2 at {v2.root} lack the controller io.", CONTAINER)

    def test_processes_at_the_root_of_a_container(self, v2: Tree) -> None:
        v2.refuse["cgroup.subtree_control"] = errno.EBUSY
        problem = f"{v2.root} is not the real root and holds processes, so v2 gives its children no limits."
        fails(lambda: GroupV2(NAME, v2.root), problem, CONTAINER)

    def test_no_permission_to_enable_controllers(self, v2: Tree) -> None:
        v2.refuse["cgroup.subtree_control"] = errno.EROFS
        problem = f"The kernel refused {v2.root / 'cgroup.subtree_control'}: Read-only file system."
        fails(lambda: GroupV2(NAME, v2.root), problem, CONTAINER)

    def test_no_peak_before_linux_5_19(self, v2: Tree) -> None:
        del v2.files["memory.peak"]
        assert GroupV2(NAME, v2.root).peak_bytes() is None

    @pytest.mark.parametrize("has_kill", [True, False])
    def test_what_is_left_is_killed(self, v2: Tree, has_kill: bool) -> None:
        if not has_kill:  # before Linux 5.14
            del v2.files["cgroup.kill"]
        group = GroupV2(NAME, v2.root)
        (v2.root / NAME / "cgroup.procs").write_text("12\n34\n")
        group.remove()
        assert bool(v2.killed) is not has_kill
        assert not (v2.root / NAME).exists()


class TestBoth:
    def test_the_mounted_version_is_taken_and_sets_no_limits_by_itself(self, tree: Tree) -> None:
        group = new_group(tree.root)
        assert isinstance(group, GroupV1 if tree.files == V1_FILES else GroupV2)
        before = sorted(tree.root.rglob("*"))
        group.limit(None, None, "")
        assert sorted(tree.root.rglob("*")) == before

    def test_peak_and_kills(self, tree: Tree) -> None:
        group = new_group(tree.root)
        assert (group.peak_bytes(), group.oom_kills()) == (123456, 2)

    def test_groups_of_dead_processes_are_removed(self, tree: Tree) -> None:
        dead, busy, alive = "penstock-999999999", "penstock-999999998", f"penstock-{os.getppid()}"
        for parent in tree.parents():
            for name in (dead, busy, alive, NAME):
                (parent / name).mkdir()
            (parent / busy / "cgroup.procs").write_text("77\n")
        new_group(tree.root)
        for parent in tree.parents():
            assert sorted(path.name for path in parent.glob("penstock-*")) == sorted([busy, alive, NAME])

    def test_a_group_of_the_same_name_that_is_in_use(self, tree: Tree) -> None:
        group = tree.parents()[0] / NAME
        group.mkdir()
        (group / "cgroup.procs").write_text("77\n")
        problem = f"The control group {group} is in use already."
        fails(lambda: new_group(tree.root), problem, "End its processes first.")

    def test_no_permission_to_make_a_group(self, tree: Tree) -> None:
        tree.refuse[NAME] = errno.EROFS
        problem = f"The kernel refused {tree.parents()[0] / NAME}: Read-only file system."
        fails(lambda: new_group(tree.root), problem, CONTAINER)

    def test_a_limit_that_the_kernel_refuses(self, tree: Tree) -> None:
        group = new_group(tree.root)
        tree.refuse |= {"io.max": errno.ENODEV, "blkio.throttle.read_bps_device": errno.ENODEV}
        with pytest.raises(UsageError, match=r"^The kernel refused '8:1 .*' for .*: No such device\.") as caught:
            group.limit(None, 10**6, "8:1")
        assert caught.value.remedy == CONTAINER

    def test_not_root(self, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control_group, "os", SimpleNamespace(geteuid=lambda: 1000))
        fails(lambda: new_group(tree.root), "Only root may make control groups.", "Run it with sudo.")

    def test_nothing_mounted(self, v1: Tree) -> None:
        (v1.root / "blkio/cgroup.procs").unlink()
        problem = f"No control groups with the controllers memory and blkio (v1), or of v2, are mounted at {v1.root}."
        fails(lambda: new_group(v1.root), problem, f"Mount them: mount -t cgroup2 none {v1.root}.")


class TestRun:
    """In a fake tree, so that nothing is limited."""

    def test_report(self, tree: Tree) -> None:
        report = run_limited(
            [sys.executable, "-c", "raise SystemExit(3)"], Limits(1 << 30, 10**6, "8:0"), root=tree.root
        )
        assert (report.exit_status, report.peak_bytes, report.oom_kills) == (3, 123456, 2)
        assert not report.timed_out
        assert not list(tree.root.rglob("penstock-*"))

    def test_the_command_is_in_the_group(self, tree: Tree, tmp_path: Path) -> None:
        program = "import os, sys; print(os.getpid(), *[open(name).read() for name in sys.argv[1:]])"
        files = [str(parent / NAME / "cgroup.procs") for parent in tree.parents()]
        with (tmp_path / "out").open("wb") as out:
            run_limited([sys.executable, "-c", program, *files], Limits(None, None, ""), stdout=out, root=tree.root)
        assert len(set((tmp_path / "out").read_text().split())) == 1

    def test_time_is_up(self, tree: Tree) -> None:
        program = "import time; time.sleep(60)"
        report = run_limited([sys.executable, "-c", program], Limits(None, None, ""), timeout=0.1, root=tree.root)
        assert (report.timed_out, report.exit_status) == (True, -signal.SIGKILL)

    def test_no_such_command(self, tree: Tree) -> None:
        problem = "no-such-command cannot be started: No such file or directory."
        limits = Limits(None, None, "")
        fails(lambda: run_limited(["no-such-command"], limits, root=tree.root), problem, "Check the command's name.")
        assert not list(tree.root.rglob("penstock-*"))

    def test_a_group_that_cannot_be_entered(self, tree: Tree) -> None:
        tree.refuse["cgroup.procs"] = errno.EACCES
        problem = "The command could not be moved into its control group."
        remedy = "Check that nothing else manages the groups."
        fails(lambda: run_limited(["true"], Limits(None, None, ""), root=tree.root), problem, remedy)

    @pytest.mark.parametrize("caps", [(0, None), (None, 0)])
    def test_a_cap_of_nothing(self, caps: tuple[int | None, int | None]) -> None:
        fails(lambda: Limits(*caps, "8:0"), "A cap of 0 bytes cannot be meant.", "Leave the option out for no cap.")

    def test_in_a_real_group(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limit, "drop_caches", lambda: None)
        limits, hog = Limits(64 << 20, None, ""), "bytearray(200 << 20)"
        try:
            report = run_limited([sys.executable, "-c", hog], limits)
        except UsageError as error:
            pytest.skip(error.problem)
        assert (report.exit_status, report.oom_kills) == (-signal.SIGKILL, 1)
        assert report.peak_bytes is None or 32 << 20 < report.peak_bytes <= 64 << 20


class TestDisk:
    @pytest.fixture
    def sys_dir(self, tmp_path: Path) -> Path:
        """A disk 8:0 with a partition that has the number of the disk that holds tmp_path."""
        disk = tmp_path / "sys/devices/sda"
        (disk / "sda1").mkdir(parents=True)
        for name, text in {"dev": "8:0\n", "sda1/dev": "8:1\n", "sda1/partition": "1\n"}.items():
            (disk / name).write_text(text)
        (tmp_path / "sys/dev/block").mkdir(parents=True)
        return tmp_path / "sys"

    def number(self, path: Path) -> str:
        device = path.stat().st_dev
        return f"{os.major(device)}:{os.minor(device)}"

    @pytest.mark.parametrize("entry", ["sda/sda1", "sda"])
    def test_of_a_partition_the_whole(self, sys_dir: Path, tmp_path: Path, entry: str) -> None:
        (sys_dir / "dev/block" / self.number(tmp_path)).symlink_to(f"../../devices/{entry}")
        assert whole_disk(tmp_path, sys_dir) == "8:0"

    def test_a_block_device_by_name(self, sys_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (sys_dir / "dev/block/8:1").symlink_to("../../devices/sda/sda1")
        status = SimpleNamespace(st_mode=0o060660, st_rdev=os.makedev(8, 1), st_dev=os.makedev(0, 5))
        device = SimpleNamespace(stat=lambda: status)
        assert whole_disk(device, sys_dir) == "8:0"  # type: ignore[arg-type]

    def test_a_file_system_on_no_single_device(self, sys_dir: Path, tmp_path: Path) -> None:
        number = self.number(tmp_path)
        problem = f"The disk that holds {tmp_path} is unknown: its file system ({number}) is not on one block device."
        fails(lambda: whole_disk(tmp_path, sys_dir), problem, "Name the disk itself, like --disk /dev/nvme0n1.")

    def test_no_such_path(self, tmp_path: Path) -> None:
        path = tmp_path / "nothing"
        fails(lambda: whole_disk(path), f"{path}: No such file or directory.", "Name a path on the disk to cap.")


class TestDropCaches:
    @pytest.fixture(autouse=True)
    def _no_effects(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limit, "DROP_CACHES", tmp_path / "drop_caches")
        monkeypatch.setattr(os, "sync", lambda: None)

    def test_everything_is_dropped(self, tmp_path: Path) -> None:
        limit.drop_caches()
        assert (tmp_path / "drop_caches").read_text() == "3"

    def test_not_allowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limit, "DROP_CACHES", tmp_path / "none/drop_caches")
        problem = f"The page cache cannot be dropped: {tmp_path / 'none/drop_caches'}: No such file or directory."
        fails(limit.drop_caches, problem, "Run it as root, outside of containers that mount /proc/sys read-only.")


class TestMain:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> Calls:
        calls: Calls = []

        def run(command: list[str], limits: Limits) -> Report:
            calls.append((command, limits))
            return Report(-9, 5 << 20, 1, 2.5)

        monkeypatch.setattr(limit, "run_limited", run)
        monkeypatch.setattr(limit, "whole_disk", lambda _: "8:0")
        monkeypatch.setattr(limit, "exit_on_signals", lambda: None)
        monkeypatch.setattr(limit, "check_system", lambda: None)
        return calls

    def main(self, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["limit.py", *words])
        return limit.main()

    def test_summary(self, calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--memory", "3GiB", "--read", "524MB", "--", "sleep", "--x"]
        assert self.main(monkeypatch, *words) == 128 + signal.SIGKILL
        assert calls == [(["sleep", "--x"], Limits(3 << 30, 524_000_000, "8:0"))]
        assert capsys.readouterr().err == "peak 5 MiB, 1 killed, 2.5 s\n"

    @pytest.mark.usefixtures("calls")
    def test_report_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.main(monkeypatch, "--report", str(tmp_path / "report"), "--", "sleep")
        assert json.loads((tmp_path / "report").read_text())["peak_bytes"] == 5 << 20

    @pytest.mark.usefixtures("calls")
    def test_errors_are_lines(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.main(monkeypatch, "--memory", "lots", "--", "sleep") == 2
        remedy = "Write it like 512MiB, 3G (the same as 3GiB), 2.5 GiB or 3GB (10**9 bytes each)."
        assert capsys.readouterr().err == f"error: 'lots' is not a size.\n{remedy}\n"
