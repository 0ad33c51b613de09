"""What the Hugging Face Hub knows of a model before any of its weights are downloaded.

The library huggingface_hub honours HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import re
from typing import Any, cast

from penstock.errors import CheckpointError
from penstock.strict_json import parse_json_object

TIMEOUT_SECONDS = 20
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_repo_id(name: str) -> bool:
    """Whether `name` could be a repository's: "owner/name"."""
    return _REPO_ID.fullmatch(name) is not None


def repo_config(repo: str) -> dict[str, Any]:
    """The content of config.json on the main branch of the repository `repo`; nothing is kept on the disk.

    Raises CheckpointError where it cannot be had, FormatError where it is malformed.
    """
    # Takes a while to import, and is seldom needed.
    from huggingface_hub import hf_hub_url
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    # Some versions are built on an HTTP library whose errors are no OSErrors; they have a base in common with this one.
    http_errors = cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, OSError))
    try:
        headers = build_hf_headers(library_name="penstock")
        response = get_session().get(hf_hub_url(repo, "config.json"), headers=headers, timeout=TIMEOUT_SECONDS)
        hf_raise_for_status(response)
    except GatedRepoError as error:
        problem = f"{repo} is gated: only those who have accepted its licence may have it."
        raise CheckpointError(problem, f"Accept it on {ENDPOINT}/{repo}, then {LOG_IN}.") from error
    except RepositoryNotFoundError as error:
        problem = f"{repo}: there is no such directory here, and {ENDPOINT} has no such model, or a private one."
        raise CheckpointError(problem, f"Check the name; for a private model {LOG_IN}.") from error
    except EntryNotFoundError as error:
        problem = f"{repo} on {ENDPOINT} has no config.json, so it is no checkpoint in the Hugging Face layout."
        raise CheckpointError(problem, "Give the repository of the original model.") from error
    except HfHubHTTPError as error:
        problem = f"{repo}: {ENDPOINT} answered with status {error.response.status_code}."
        raise CheckpointError(problem, f"Try again later; if it is 401 or 403, {LOG_IN}.") from error
    except http_errors as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        problem = f"{repo}: there is no such directory here, and {ENDPOINT} cannot be reached: {reason}"
        raise CheckpointError(problem, "Check the network and HF_ENDPOINT, or give a model's directory.") from error
    return parse_json_object(response.content, f"config.json of {repo}")
