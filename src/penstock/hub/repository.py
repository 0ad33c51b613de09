"""What the Hugging Face Hub knows of a model: its config, its revisions, its files. Reads no weights.

The library huggingface_hub honours HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. It takes a while to import, and is seldom
needed, so functions import it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from penstock.errors import CheckpointError, FormatError, UsageError
from penstock.strict_json import parse_json_object, shown

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

TIMEOUT_SECONDS = 20
MAIN = "main"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
NO_DIRECTORY = "there is no such directory here, and "
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SHA1 = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its path there, its bytes, and one of two checksums of them.

    `sha256` is that of a large file (in Git LFS or Xet); any other has `git_sha1`, the hash of Git's blob.
    """

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None

    def hasher(self) -> hashlib._Hash:
        """What makes `checksum` of the file's bytes."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    @property
    def checksum(self) -> str:
        return self.sha256 or self.git_sha1 or ""


@dataclass(frozen=True)
class Repository:
    """A model on the Hub as of one commit. `files` are all its files by name, each below the repository's root."""

    repo: str
    commit: str
    files: Mapping[str, HubFile]
    token: str | None = field(default=None, repr=False)

    def url(self, name: str) -> str:
        """Where the file's bytes are; the Hub redirects from there to the host that has them."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, name, revision=self.commit)


def is_repo_id(name: str) -> bool:
    """Whether `name` could be a repository's: "owner/name"."""
    return _REPO_ID.fullmatch(name) is not None


def check_repo_id(name: str) -> None:
    """Raise UsageError where it could not."""
    if not is_repo_id(name):
        raise UsageError(f"{shown(name)} is not a repository's name", "Give it as OWNER/NAME.")


def repo_config(repo: str) -> dict[str, Any]:
    """The content of config.json on the main branch of the repository `repo`; nothing is kept on the disk.

    Raises CheckpointError where it cannot be had, FormatError where it is malformed.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    with hub_errors(repo, NO_DIRECTORY):
        url = hf_hub_url(repo, "config.json")
        response = get_session().get(url, headers=auth_headers(None), timeout=TIMEOUT_SECONDS)
        hf_raise_for_status(response)
    return parse_json_object(response.content, f"config.json of {repo}")


def find_repository(repo: str, revision: str = MAIN, token: str | None = None) -> Repository:
    """The repository `repo` as of the commit that `revision`, a branch, a tag or a commit, stands for now.

    `token` is used rather than HF_TOKEN or that of the user's login. Raises CheckpointError where the Hub has no such
    repository or revision or cannot be reached, FormatError for an answer that makes no sense.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo, revision=revision):
        info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    commit = info.sha
    if commit is None or not _SHA1.fullmatch(commit):
        _fail_answer(repo, f"the commit {shown(commit)}")
    files = [_hub_file(repo, sibling) for sibling in info.siblings or ()]
    return Repository(repo, commit, MappingProxyType({file.name: file for file in files}), token)


def auth_headers(token: str | None) -> dict[str, str]:
    """Who asks, and with whose permission."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    return build_hf_headers(token=token, library_name="penstock")


def http_errors() -> tuple[type[Exception], ...]:
    """What a connection that fails raises.

    Some versions of the library are built on an HTTP library whose errors are no OSErrors; they have a base in common
    with the error of the library itself.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, OSError))


@contextmanager
def hub_errors(repo: str, before: str = "", revision: str = MAIN, file: str = "config.json") -> Iterator[None]:
    """Make the library's errors ours. `before` opens what is said of a repository that is not to be had: NO_DIRECTORY
    where a directory would do as well."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    instead = ", or give a model's directory." if before else "."
    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"{shown(repo)} is not a repository's name", "Give it as OWNER/NAME.") from error
    except GatedRepoError as error:
        problem = f"{repo} is gated: only those who have accepted its licence may have it."
        raise CheckpointError(problem, f"Accept it on {ENDPOINT}/{repo}, then {LOG_IN}.") from error
    except RepositoryNotFoundError as error:
        problem = f"{repo}: {before}{ENDPOINT} has no such model, or a private one."
        raise CheckpointError(problem, f"Check the name; for a private model {LOG_IN}.") from error
    except RevisionNotFoundError as error:
        problem = f"{repo} on {ENDPOINT} has no revision {shown(revision)}."
        raise CheckpointError(problem, "Give a branch, a tag or a commit of it.") from error
    except EntryNotFoundError as error:
        problem = f"{repo} on {ENDPOINT} has no {file}, so it is no checkpoint in the Hugging Face layout."
        raise CheckpointError(problem, "Give the repository of the original model.") from error
    except HfHubHTTPError as error:
        problem = f"{repo}: {ENDPOINT} answered with status {error.response.status_code}."
        raise CheckpointError(problem, f"Try again later; if it is 401 or 403, {LOG_IN}.") from error
    except OfflineModeIsEnabled as error:
        problem = f"{repo}: {before}{ENDPOINT} cannot be reached: HF_HUB_OFFLINE is set"
        raise CheckpointError(problem, f"Unset it{instead}") from error
    except http_errors() as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        problem = f"{repo}: {before}{ENDPOINT} cannot be reached: {reason}"
        raise CheckpointError(problem, f"Check the network and HF_ENDPOINT{instead}") from error


def _hub_file(repo: str, sibling: RepoSibling) -> HubFile:
    name, size = sibling.rfilename, sibling.size
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        _fail_answer(repo, f"the file name {shown(name)}")
    if type(size) is not int or size < 0:
        _fail_answer(repo, f"the size {shown(size)} of {shown(name)}")
    checksum, pattern = (sibling.lfs.sha256, _SHA256) if sibling.lfs else (sibling.blob_id, _SHA1)
    if not isinstance(checksum, str) or not pattern.fullmatch(checksum):
        _fail_answer(repo, f"the checksum {shown(checksum)} of {shown(name)}")
    return HubFile(name, size, checksum, None) if sibling.lfs else HubFile(name, size, None, checksum)


def _fail_answer(repo: str, what: str) -> NoReturn:
    from huggingface_hub.constants import ENDPOINT

    problem = f"{repo}: {ENDPOINT} lists {what}, which makes no sense"
    raise FormatError(problem, "Check HF_ENDPOINT; if it is right, try again later.")
