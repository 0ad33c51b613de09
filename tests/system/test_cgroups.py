from __future__ import annotations

from pathlib import Path

import pytest

from penstock.system.cgroups import Group, limited_groups

GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def group(path: Path, **numbers: int | str) -> None:
    """A cgroup's files; `memory__max` stands for memory.max."""
    path.mkdir(parents=True, exist_ok=True)
    for name, value in numbers.items():
        (path / name.replace("__", ".")).write_text(f"{value}\n")


def free(root: Path, membership: str) -> list[int]:
    member = root.parent / "self"
    member.write_text(membership)
    return [group.free for group in limited_groups(root, member)]


class TestVersion2:
    def test_limits_of_every_level_above(self, root: Path) -> None:
        group(root, memory__stat="anon 1")
        group(root / "a", memory__max=4 * GIB, memory__current=GIB, memory__stat="inactive_file 0")
        group(root / "a/b", memory__max="max", memory__current=GIB)
        group(root / "a/b/c", memory__max=2 * GIB, memory__current=GIB)
        group(root / "a/other", memory__max=1, memory__current=1)
        assert free(root, "0::/a/b/c\n") == [GIB, 3 * GIB]

    def test_page_cache_is_free(self, root: Path) -> None:
        stat = f"anon 500\nfile {GIB}\ninactive_file 300\nactive_file 20\nslab 7"
        group(root / "a", memory__max=1000, memory__current=900, memory__stat=stat)
        assert free(root, "0::/a\n") == [420]

    def test_a_limit_that_is_overrun_leaves_nothing(self, root: Path) -> None:
        group(root / "a", memory__max=1000, memory__current=1200)
        assert free(root, "0::/a\n") == [0]

    def test_a_container_that_is_its_own_root(self, root: Path) -> None:
        group(root, memory__max=GIB, memory__current=0)
        assert free(root, "0::/\n") == [GIB]

    @pytest.mark.parametrize("path", ["/gone/from/here", "/../../elsewhere"])
    def test_a_group_that_is_not_visible(self, root: Path, path: str) -> None:
        """The path is the host's; what the mount shows is the container's own group."""
        group(root, memory__max=GIB, memory__current=0)
        assert GIB in free(root, f"0::{path}\n")

    def test_no_limit(self, root: Path) -> None:
        group(root / "a", memory__max="max", memory__current=10)
        assert free(root, "0::/a\n") == []


class TestVersion1:
    def test_limits_of_every_level_above(self, root: Path) -> None:
        unlimited = 0x7FFFFFFFFFFFF000
        base = root / "memory"
        group(base, memory__limit_in_bytes=unlimited, memory__usage_in_bytes=0)
        group(base / "docker", memory__limit_in_bytes=4 * GIB, memory__usage_in_bytes=GIB)
        group(base / "docker/x", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB)
        assert free(root, "9:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n1:name=systemd:/docker/x\n") == [GIB, 3 * GIB]

    def test_page_cache_is_free_with_that_of_the_groups_below(self, root: Path) -> None:
        stat = "cache 9\ninactive_file 1\nactive_file 2\ntotal_cache 90\ntotal_inactive_file 30\ntotal_active_file 40"
        group(root / "memory/a", memory__limit_in_bytes=1000, memory__usage_in_bytes=950, memory__stat=stat)
        assert free(root, "5:memory:/a\n") == [120]

    def test_both_versions_at_once(self, root: Path) -> None:
        """Memory is limited by one of them; the other has no such files."""
        group(root / "memory/a", memory__limit_in_bytes=1000, memory__usage_in_bytes=400)
        group(root / "unified")
        assert free(root, "5:memory:/a\n0::/a\n") == [600]


def test_damaged_files_count_as_no_limit(root: Path) -> None:
    group(root / "a", memory__max="", memory__current="many")
    group(root / "b", memory__max=1000, memory__current=100, memory__stat="inactive_file lots")
    assert free(root, "0::/a\n") == []
    assert free(root, "0::/b\n") == [900]


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert limited_groups(tmp_path, tmp_path / "absent") == []
    assert free(tmp_path / "cgroup", "") == []


def test_what_processes_hold_of_their_own(root: Path) -> None:
    group(root / "a", memory__max=1000, memory__current=900, memory__stat="anon 500\ninactive_file 300")
    group(
        root / "memory/b",
        memory__limit_in_bytes=70,
        memory__usage_in_bytes=20,
        memory__stat="total_cache 1\ntotal_rss 6",
    )
    member = root.parent / "self"
    member.write_text("0::/a\n5:memory:/b\n")
    assert limited_groups(root, member) == [Group(400, 500), Group(50, 6)]
