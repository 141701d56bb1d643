"""Policies on the Hugging Face Hub: `owner/name` or `owner/name@revision`, as a folder of its cache."""

import re
from pathlib import Path

from httpx import HTTPError
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from vivace.policies.errors import PolicyNotFound, in_one_line

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-][\w./-]*)?")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
_FOLDERS = ["*/*"]
"""Of training runs, which some keep beside the policy."""


def is_hub_name(name: str) -> bool:
    """Whether this is how a policy on the Hub is called."""
    return _NAME.fullmatch(name) is not None


def snapshot(name: str) -> Path:
    """Return the folder of a policy on the Hub; what its cache lacks is downloaded, if HF_HUB_OFFLINE allows.

    Args:
        name: `owner/name`, or `owner/name@revision` with a branch, a tag or a commit.

    Raises:
        PolicyNotFound: the Hub has no such policy or revision, or cannot be reached and the cache lacks it.
    """
    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=_FILES,
            ignore_patterns=_FOLDERS,
            local_files_only=constants.HF_HUB_OFFLINE,
        )
    except GatedRepoError as error:
        raise PolicyNotFound(
            f"{repo} is on the Hub but gated; accept its terms at https://huggingface.co/{repo}, then "
            "hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise PolicyNotFound(
            f"there is no folder {name}, and no such model on the Hub; if it is private: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise PolicyNotFound(
            f"{repo} on the Hub has no revision {revision!r}; see https://huggingface.co/{repo}/commits/main"
        ) from error
    except (HTTPError, OSError, ValueError) as error:  # no network, offline, damaged cache
        why = (
            "HF_HUB_OFFLINE is set, so the Hub is not asked"
            if constants.HF_HUB_OFFLINE
            else f"the Hub cannot be reached ({in_one_line(error, 100)})"
        )
        raise PolicyNotFound(
            f"there is no folder {name}, its copy is not in {constants.HF_HUB_CACHE}, and {why}; get it once "
            f"with a network: hf download {repo}{f' --revision {revision}' if revision else ''}"
        ) from error
    return Path(folder)
