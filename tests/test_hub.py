from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hub_server import Hub, serve

from penstock.hub import is_repo_id

SCRIPT = """
import json, sys
from penstock.errors import PenstockError
from penstock.hub import repo_config
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


@pytest.mark.parametrize("repo", ["owner/model", "owner/moved"])
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
