from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import in_process
from penstock.cli import app
from penstock.cli.config_file import config_path, read_defaults
from penstock.cli.declared import declared
from penstock.errors import UsageError

COMMANDS = {info.name or info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
SHORT = ("run", "demo", "--raw", "def add(a, b):", "--json", "--draft", "none")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my config.toml"
    monkeypatch.setenv("PENSTOCK_CONFIG", str(path))
    return path


def test_every_option_of_every_command_has_a_key() -> None:
    keys = {name: {one.key for one in declared(command) if one.is_option} for name, command in COMMANDS.items()}
    assert {"memory", "max-tokens", "stdin", "json", "quiet", "adapter", "stats"} <= keys["run"]
    assert "yes" in keys["rm"]
    assert all("--" not in key and key for names in keys.values() for key in names)


class TestWhere:
    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        monkeypatch.delenv("PENSTOCK_CONFIG", raising=False)

    def test_the_users_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for home in (tmp_path / ".config", tmp_path / "xdg"):
            assert config_path() is None
            (home / "penstock").mkdir(parents=True)
            (home / "penstock" / "config.toml").touch()
            assert config_path() == home / "penstock" / "config.toml"
            monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))

    def test_another_or_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PENSTOCK_CONFIG", "~/mine.toml")
        assert config_path() == tmp_path / "mine.toml"
        monkeypatch.setenv("PENSTOCK_CONFIG", "")
        assert config_path() is None


class TestWhichWins:
    def test_the_file_over_what_penstock_does_by_itself(self, config: Path) -> None:
        config.write_text('[run]\nmax-tokens = 3\nmemory = "1G"\ntemperature = 0\n[bench]\npasses = 1\n')
        said = json.loads(in_process.penstock(*SHORT).stdout)
        assert (len(said["token_ids"]), said["stats"]["memory_ceiling_bytes"]) == (3, 1 << 30)

    def test_the_command_line_over_the_file(self, config: Path) -> None:
        config.write_text('[run]\nmax_tokens = 3\nmemory = "1MiB"\nstop = ["zzz"]\n')
        said = json.loads(in_process.penstock(*SHORT, "--max-tokens", "2", "--memory", "900MiB").stdout)
        assert (len(said["token_ids"]), said["stats"]["memory_ceiling_bytes"]) == (2, 900 << 20)

    def test_the_environment_over_the_file(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config.write_text('[serve]\napi-key = ""\nhost = "no such host"\n')
        assert "The API key is empty" in in_process.penstock("serve", "demo").stderr
        monkeypatch.setenv("PENSTOCK_API_KEY", "key")
        assert "Cannot listen at port 8000 of no such host" in in_process.penstock("serve", "demo").stderr

    def test_flags(self, config: Path) -> None:
        config.write_text("[list]\njson = true\n")
        assert json.loads(in_process.penstock("list").stdout) is not None

    def test_help_and_version_need_no_sound_one(self, config: Path) -> None:
        for option in ("--help", "--version"):
            assert in_process.penstock(option).returncode == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('[run]\nmemery = "1G"', ": [run] has the key 'memery', and there is no such option."),
        ("[run]\nhelp = true", ": [run] has the key 'help', and there is no such option."),
        ('[run]\nmodel = "demo"', ": [run] has the key 'model', and there is no such option."),
        ("[fly]\na = 1", ": there is no command 'fly'."),
        ("run = 3", ": run is 3, not a table."),
        ('[run]\nmax-tokens = "3"', ": [run] max-tokens is '3', not a whole number."),
        ("[run]\nmax-tokens = true", ": [run] max-tokens is True, not a whole number."),
        ('[run]\ntemperature = "hot"', ": [run] temperature is 'hot', not a number."),
        ("[run]\nquiet = 1", ": [run] quiet is 1, not true or false."),
        ("[run]\nmemory = 3", ": [run] memory is 3, not a string."),
        ("[run]\ntrace = 3", ": [run] trace is 3, not a string."),
        ('[run]\nstop = "x"', ": [run] stop is 'x', not a list."),
        ("[run]\nstop = [1]", ": [run] stop is 1, not a string."),
        ("[serve]\nport = 70000", ": [serve] port is 70000, not from 0 to 65535."),
        ("[serve]\nqueue = 0", ": [serve] queue is 0, not at least 1."),
        ("[run]\ntop-k = 1\ntop_k = 2", ": [run] has 'top_k' twice, with a dash and an underscore."),
        ("[run", " is not TOML: "),
        ("a = 1\na = 2", " is not TOML: "),
        (b"\xff", " is not TOML: "),
    ],
)
def test_what_cannot_be_meant(config: Path, content: str | bytes, problem: str) -> None:
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = in_process.penstock("ps")
    assert (result.returncode, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {config}{problem}")
    assert second


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_one_that_cannot_be_read(config: Path, kind: str) -> None:
    if kind == "directory":
        config.mkdir()
    result = in_process.penstock("ps")
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: The configuration {config} cannot be read: ")
    assert result.stderr.endswith(".\nLet PENSTOCK_CONFIG name another file, or none: PENSTOCK_CONFIG=\n")


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "c.toml"
    path.write_text('[run]\ntrace = "~/t.json"\n')
    assert read_defaults(path, COMMANDS) == {"run": {"trace": str(tmp_path / "t.json")}}


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_it_holds_there_is_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    try:
        defaults = read_defaults(path, COMMANDS)
    except UsageError as error:
        told = str(error)
    else:
        told = f"{path}" if all(not table for table in defaults.values()) else ""
    assert str(path) in told
