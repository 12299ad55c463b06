"""A hub id, resolved to files: what the repository lists, and the few files that are fetched from it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from workbench.errors import UserError

_ID = re.compile(r"^(?P<repo>[\w.-]+(/[\w.-]+)?)(?P<sub>(/[\w.-]+)*?)(@(?P<revision>[\w./-]+))?$")


@dataclass(frozen=True)
class HubRepo:
    """A repository at one commit, and the names of all its files."""

    repo: str
    revision: str
    files: tuple[str, ...]

    def in_folder(self, subfolder: str) -> tuple[str, ...]:
        """Names of the files directly in ``subfolder``, without it."""
        parent = PurePosixPath(subfolder)
        return tuple(sorted(PurePosixPath(name).name for name in self.files if PurePosixPath(name).parent == parent))


def parse_id(text: str) -> tuple[str, str, str | None] | None:
    """``org/name[/sub/folder][@revision]`` as (repo, subfolder, revision); None when it is no hub id."""
    match = _ID.match(text)
    if match is None or text.startswith((".", "/")):
        return None
    return match["repo"], match["sub"].strip("/"), match["revision"]


def unreachable() -> tuple[type[BaseException], ...]:
    """What huggingface_hub raises when the hub cannot be reached.

    Its HTTP client (requests, httpx or httpx2, by its version) has an error of its own, the base of the hub's error.
    """
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    return (OfflineModeIsEnabled, HfHubHTTPError, HfHubHTTPError.__bases__[0], OSError)


def resolve(repo: str, revision: str | None) -> HubRepo:
    """Look ``repo`` up on the hub, or in the local cache when the hub cannot be reached.

    Raises UserError when it exists in neither place, or the revision does not exist.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(repo, revision=revision)
        files = tuple(sibling.rfilename for sibling in info.siblings or ())
        return HubRepo(repo, str(info.sha), files)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is neither a folder here nor a hub id (org/name): {error}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"The hub's {repo} has no revision {revision!r}; give a branch, tag or commit.") from error
    except GatedRepoError as error:
        raise UserError(f"The hub's {repo} is gated: accept its terms there and run  hf auth login.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repo!r} is neither a folder here nor a model on the hub; check the spelling, or log in with "
            "hf auth login  if it is private."
        ) from error
    except unreachable():
        return _cached(repo, revision)


def _cached(repo: str, revision: str | None) -> HubRepo:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise UserError(
            f"{repo!r} is not a folder here, is not in the local Hugging Face cache{at}, and the hub cannot "
            "be reached; check the path, or go online once to download it."
        ) from error
    files = tuple(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
    return HubRepo(repo, snapshot.name, files)


def fetch(repo: HubRepo, subfolder: str, names: Iterable[str]) -> Path:
    """Download ``names`` of ``subfolder`` unless cached; returns the local folder they lie in.

    Raises UserError when a file is not cached and the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    folder: Path | None = None
    for name in names:
        try:
            file = hf_hub_download(repo.repo, name, subfolder=subfolder or None, revision=repo.revision)
        except unreachable() as error:  # a file that is not cached is one of them
            raise UserError(
                f"{name} of {repo.repo} is not in the local cache and could not be downloaded; go online and try again."
            ) from error
        folder = Path(file).parent
    if folder is None:
        raise UserError(f"{repo.repo} has no files to fetch in {subfolder or 'its root'!r}; check the sub-folder.")
    return folder
