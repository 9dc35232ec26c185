"""Downloads files from the Hugging Face hub with its own client, and checks their hashes."""

import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from tsfm_data.errors import InputError, reason_of
from tsfm_data.io import check


def download(repo: str, file: str, revision: str) -> tuple[Path, str]:
    """A file of a repository, from the client's cache if it is there.

    The client uses its environment variables HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE.

    Args:
        repo: "owner/name".
        file: path in the repository.
        revision: branch, tag or commit.

    Returns:
        The file, and the commit it belongs to.

    Raises:
        InputError: no such repository, revision or file, no access, no network, a full disk, or damaged content.
    """
    path = _download(repo, file, revision, again=False)
    try:
        _compare(path)
    except InputError:
        path.resolve().unlink()  # a damaged copy in the cache: download it again
        path = _download(repo, file, revision, again=True)
        _compare(path)
    snapshots = next(parent for parent in path.parents if parent.name == "snapshots")
    return path, path.relative_to(snapshots).parts[0]


def _download(repo: str, file: str, revision: str, again: bool) -> Path:
    wanted_file = f"{file} of {repo} at {revision}"
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                repo, file, revision=revision, endpoint=os.environ.get("HF_ENDPOINT"), force_download=again
            )
        )
    except errors.GatedRepoError as error:
        raise InputError(
            f"expected access to {repo}, found it gated: accept its terms on the hub and set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"expected the repository {repo} on the hub, found none that you may read: check HF_TOKEN and HF_ENDPOINT"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"expected the revision {revision} of {repo}, found none: check --revision") from error
    except errors.LocalEntryNotFoundError as error:
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        problem, todo = "the hub cannot be reached", "check the network and HF_ENDPOINT"
        if constants.HF_HUB_OFFLINE:
            problem, todo = "HF_HUB_OFFLINE is set", "unset it for this download"
        elif status is not None:
            problem, todo = f"the hub answered {status}", "try again later"
        raise InputError(
            f"expected {wanted_file} in the cache, found none, and {problem}: {todo}, or give --mirror"
        ) from error
    except errors.EntryNotFoundError as error:
        raise InputError(f"expected {wanted_file} on the hub, found no such file: check --revision") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no status")
        hint = "set HF_TOKEN to a token that may read it" if status in (401, 403) else "try again later"
        raise InputError(f"expected {wanted_file}, found the answer {status} of the hub: {hint}") from error
    except errors.HFValidationError as error:
        raise InputError(f"expected the name of a repository and file, found {repo!r}, {file!r}") from error
    except OSError as error:
        reason = reason_of(error, 200)
        raise InputError(f"expected to fetch {wanted_file}, found: {reason}: run again to resume") from error
    except Exception as error:  # the HTTP library of the client, and so its exceptions, differ between releases
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            raise
        reason = reason_of(error, 200)
        raise InputError(
            f"expected to fetch {wanted_file}, found the connection broken ({reason}): run again"
        ) from error


def _compare(path: Path) -> None:
    """Compare a cached file with its name in the cache: the SHA-256 of large files, the git hash of small ones."""
    name = path.resolve().name
    sha256 = name if re.fullmatch("[0-9a-f]{64}", name) else None
    git_blob = name if re.fullmatch("[0-9a-f]{40}", name) else None
    check(path.resolve(), sha256, git_blob)
