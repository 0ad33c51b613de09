from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from helpers import hub_server
from helpers.hub_server import Hub, Repo, serve
from helpers.thorough import quick
from penstock.errors import CheckpointError, FormatError, PenstockError, UsageError
from penstock.hub.repository import find_repository, is_repo_id

SCRIPT = """
import json, sys
from penstock.errors import PenstockError
from penstock.hub.repository import repo_config
try:
    print(json.dumps(repo_config(sys.argv[1])))
except PenstockError as error:
    print(type(error).__name__, error.problem, error.remedy, sep="\\n")
"""
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN."


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve({"owner/model": {"model_type": "llama"}, "owner/broken": b"{"}) as hub:
        yield hub


def asked(repo: str, environment: dict[str, str]) -> str:
    """In a process of its own, since huggingface_hub reads the environment once."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, repo], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize(
    ("name", "could_be"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", True),
        ("a/b", True),
        ("demo", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("../b", False),
        ("a/", False),
        ("./models", False),
        ("a/..", False),
    ],
)
def test_names_of_repositories(name: str, could_be: bool) -> None:
    assert is_repo_id(name) is could_be


@pytest.mark.parametrize("repo", quick(["owner/moved"], ["owner/model", "owner/moved"]))
def test_a_config(hub: Hub, repo: str) -> None:
    assert json.loads(asked(repo, hub.environment)) == {"model_type": "llama"}
    assert hub.tokens[-1] == "Bearer hf_test"


@pytest.mark.parametrize(
    ("repo", "problem", "remedy"),
    [
        (
            "owner/gated",
            "owner/gated is gated: only those who have accepted its licence may have it.",
            f"Accept it on HUB/owner/gated, then {LOG_IN}",
        ),
        (
            "owner/missing",
            "owner/missing: there is no such directory here, and HUB has no such model, or a private one.",
            f"Check the name; for a private model {LOG_IN}",
        ),
        (
            "owner/weights-only",
            "owner/weights-only on HUB has no config.json, so it is no checkpoint in the Hugging Face layout.",
            "Give the repository of the original model.",
        ),
        (
            "owner/on-fire",
            "owner/on-fire: HUB answered with status 500.",
            f"Try again later; if it is 401 or 403, {LOG_IN}",
        ),
    ],
)
def test_what_the_hub_refuses(hub: Hub, repo: str, problem: str, remedy: str) -> None:
    said = asked(repo, hub.environment).replace(hub.url, "HUB").splitlines()
    assert said == ["CheckpointError", problem, remedy]


def test_a_malformed_config(hub: Hub) -> None:
    kind, problem, _ = asked("owner/broken", hub.environment).splitlines()
    assert kind == "FormatError"
    assert problem.startswith("config.json of owner/broken is not JSON")


def test_no_hub(hub: Hub) -> None:
    with serve({}) as gone:
        environment = gone.environment
    kind, problem, remedy = asked("owner/model", environment).splitlines()
    assert kind == "CheckpointError"
    assert problem.startswith(f"owner/model: there is no such directory here, and {gone.url} cannot be reached: ")
    assert remedy == "Check the network and HF_ENDPOINT, or give a model's directory."


def test_offline(hub: Hub) -> None:
    problem = "owner/model: there is no such directory here, and HUB cannot be reached: HF_HUB_OFFLINE is set"
    said = asked("owner/model", hub.environment | {"HF_HUB_OFFLINE": "1"}).replace(hub.url, "HUB").splitlines()
    assert said == ["CheckpointError", problem, "Unset it, or give a model's directory."]


@pytest.fixture
def listed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Repo:
    hub.use(monkeypatch)
    hub.repos["owner/listed"] = Repo()
    return hub.repos["owner/listed"]


def test_a_listing(listed: Repo) -> None:
    commit = listed.commit({"config.json": b"{}", "a/model.safetensors": b"weights"})
    repository = find_repository("owner/listed")
    small, large = repository.files["config.json"], repository.files["a/model.safetensors"]
    assert (repository.repo, repository.commit) == ("owner/listed", commit)
    assert (small.size, small.sha256, small.git_sha1) == (2, None, "9e26dfeeb6e641a33dae4961196235bdb965b21b")
    assert (large.size, large.git_sha1) == (7, None)
    assert large.checksum == large.sha256 == hashlib.sha256(b"weights").hexdigest()
    for file, content in ((small, b"{}"), (large, b"weights")):
        hasher = file.hasher()
        hasher.update(content)
        assert hasher.hexdigest() == file.checksum


def test_revisions(listed: Repo) -> None:
    first = listed.commit({"config.json": b"1"}, "v1.0")
    second = listed.commit({"config.json": b"22"})
    for revision, commit in {"main": second, "v1.0": first, first: first}.items():
        repository = find_repository("owner/listed", revision)
        assert repository.commit == commit
        assert repository.url("a b.json").endswith(f"/owner/listed/resolve/{commit}/a%20b.json")


def test_a_token(hub: Hub, listed: Repo) -> None:
    listed.commit({"config.json": b"{}"})
    assert "secret" not in repr(find_repository("owner/listed", token="secret"))
    assert hub.tokens[-1] == "Bearer secret"


@pytest.mark.parametrize(
    ("repo", "revision", "error", "problem", "remedy"),
    [
        (
            "owner/listed",
            "v9",
            CheckpointError,
            "owner/listed on HUB has no revision 'v9'.",
            "Give a branch, a tag or a commit of it.",
        ),
        (
            "owner/missing",
            "main",
            CheckpointError,
            "owner/missing: HUB has no such model, or a private one.",
            f"Check the name; for a private model {LOG_IN}",
        ),
        (
            "owner/on-fire",
            "main",
            CheckpointError,
            "owner/on-fire: HUB answered with status 500.",
            f"Try again later; if it is 401 or 403, {LOG_IN}",
        ),
        ("a--b/c", "main", UsageError, "'a--b/c' is not a repository's name", "Give it as OWNER/NAME."),
    ],
)
def test_no_listing(
    hub: Hub, listed: Repo, repo: str, revision: str, error: type[PenstockError], problem: str, remedy: str
) -> None:
    with pytest.raises(error) as caught:
        find_repository(repo, revision)
    assert caught.value.problem.replace(hub.url, "HUB") == problem
    assert caught.value.remedy == remedy


@pytest.mark.parametrize("name", ["../a", "a//b", "/a", "a\\b", "a/./b", "a\nb", ""])
def test_names_that_lead_elsewhere(listed: Repo, name: str) -> None:
    listed.commit({name: b""})
    with pytest.raises(FormatError, match=r"^owner/listed: http://\S+ lists the file name .*, which makes no sense"):
        find_repository("owner/listed")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"size": None}, "the size None of 'a.bin'"),
        ({"size": -1}, "the size -1 of 'a.bin'"),
        ({"blobId": None, "lfs": None}, "the checksum None of 'a.bin'"),
        ({"lfs": {"sha256": "123", "size": 1, "pointerSize": 1}}, "the checksum '123' of 'a.bin'"),
    ],
)
def test_listings_that_make_no_sense(
    listed: Repo, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], what: str
) -> None:
    listed.commit({"a.bin": b"1"})
    sibling = hub_server.sibling
    monkeypatch.setattr(hub_server, "sibling", lambda name, content: sibling(name, content) | changes)
    with pytest.raises(FormatError) as caught:
        find_repository("owner/listed")
    assert what in caught.value.problem
    assert caught.value.remedy == "Check HF_ENDPOINT; if it is right, try again later."
