"""A repository of the Hugging Face hub: what is in it at a commit, and its files, checked.

    listing = list_files("amazon/chronos-bolt-small", "main")   # commit and files, with digests
    download(listing, ["config.json"], folder)                  # resumes what was interrupted

Through `huggingface_hub`, so `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` count. Each failure is
an `InputError` that says in one line what went wrong. Used by `fetch.py` alone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sffbench.data.checksum import file_sha256
from sffbench.errors import InputError

TIMEOUT_S = 20.0
_NETWORK = frozenset({"httpx", "httpx2", "httpcore", "requests", "urllib3"})


class Unreachable(InputError):
    """The hub did not answer: no network, or told not to use it."""


class NoRevision(InputError):
    """The repository has no such branch or commit."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its size and digests, as far as the hub tells them."""

    size_bytes: int | None
    sha256: str | None  # of files in large file storage
    blob: str | None  # of all others: git's SHA-1

    @property
    def known(self) -> bool:
        """Whether the hub states a digest, so that a file can be told from another version."""
        return self.sha256 is not None or self.blob is not None

    def is_at(self, path: Path) -> bool:
        """Whether this very file lies there, as far as can be told."""
        return self.known and path.is_file() and self.fault(path) is None

    def fault(self, path: Path) -> str | None:
        """In what a downloaded file is not this one, or None."""
        size_bytes = path.stat().st_size
        if self.size_bytes is not None and self.size_bytes != size_bytes:
            return f"{size_bytes} bytes instead of {self.size_bytes}"
        if self.sha256 is not None:
            return None if file_sha256(path) == self.sha256 else "the hub's SHA-256 is another"
        if self.blob is not None:
            return (
                None if blob_id(path.read_bytes()) == self.blob else "the hub's digest is another"
            )
        return None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit; `files` by name within `subfolder`."""

    repository: str
    subfolder: str
    commit: str
    files: Mapping[str, HubFile]


def blob_id(content: bytes) -> str:
    """Git's SHA-1 of a file: of "blob <size>", a zero byte and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def endpoint() -> str | None:
    """`$HF_ENDPOINT` as it is now (the library reads it once), None for its default."""
    return os.environ.get("HF_ENDPOINT") or None


def list_files(repository: str, revision: str, subfolder: str = "") -> Listing:
    """The files of a repository at a branch or commit, and the commit that it is."""
    from huggingface_hub import HfApi

    with _failures(repository, revision):
        info = HfApi(endpoint=endpoint()).model_info(
            repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S
        )
    if not info.sha:
        raise InputError(f"{repository}: the hub names no commit of {revision!r}")
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    files = {}
    for file in info.siblings or []:
        name = file.rfilename.removeprefix(prefix)
        if file.rfilename.startswith(prefix) and "/" not in name:
            stored = file.lfs.sha256 if file.lfs else None
            files[name] = HubFile(file.size, stored, None if stored else file.blob_id)
    return Listing(repository, prefix, info.sha, files)


def download(listing: Listing, names: Iterable[str], folder: Path) -> None:
    """Put files of a repository into `folder`; what is whole is kept, what is half is continued.

    A file is `<name>.part` until it is what the hub says it is, by size and digest.
    """
    names = [name for name in names if not listing.files[name].is_at(folder / name)]
    _check_space(listing, names, folder)
    for name in names:
        _bring(listing, name, folder / f"{name}.part")


def _bring(listing: Listing, name: str, part: Path) -> None:
    file = listing.files[name]
    have = part.stat().st_size if part.is_file() else 0
    if not file.known or (file.size_bytes is not None and have > file.size_bytes):
        # Without a digest nothing could tell that two halves come from two versions.
        part.unlink(missing_ok=True)
    while True:
        resumed = part.is_file()
        with _failures(listing.repository, listing.commit, name):
            _continue(listing, name, part)
        fault = file.fault(part)
        if fault is None:
            os.replace(part, part.with_name(name))
            return
        part.unlink()
        if not resumed:  # else the old half was at fault: once more, from the first byte
            raise InputError(f"{listing.repository}: {name} arrived damaged ({fault}): run again")


def _continue(listing: Listing, name: str, part: Path) -> None:
    """Append to `part` what it lacks of a file. (`hf_hub_download` begins anew in each process.)"""
    from huggingface_hub import hf_hub_url, utils
    from huggingface_hub.file_download import http_get

    url = hf_hub_url(
        listing.repository, listing.subfolder + name, revision=listing.commit, endpoint=endpoint()
    )
    headers = utils.build_hf_headers()  # type: ignore[attr-defined]
    with part.open("ab") as stream:
        http_get(
            url,
            stream,
            resume_size=stream.tell(),
            headers={**headers, "Accept-Encoding": "identity"},
            expected_size=listing.files[name].size_bytes,
            displayed_filename=name,
        )


def _check_space(listing: Listing, names: Iterable[str], folder: Path) -> None:
    """`InputError` where the disk has no room for what is still to come."""
    needed_bytes = sum(listing.files[name].size_bytes or 0 for name in names)
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise InputError(
            f"{listing.repository} needs {needed_bytes:,} bytes, and {folder} has {free_bytes:,} "
            "left: make room, or set SFFBENCH_CACHE to another disk"
        )


@contextmanager
def _failures(repository: str, revision: str, name: str | None = None) -> Iterator[None]:
    """Errors of the network, the hub or the disk become one line; our own mistakes stay."""
    from huggingface_hub import errors

    what = repository if name is None else f"{repository}: {name}"
    try:
        yield
    except errors.GatedRepoError:
        raise InputError(
            f"{what} is gated: accept its terms on the hub, then set HF_TOKEN to a token of yours"
        ) from None
    except errors.RevisionNotFoundError:
        raise NoRevision(f"{repository} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError as error:
        raise InputError(_not_found(what, error)) from None
    except errors.HfHubHTTPError as error:
        raise InputError(f"{what}: the hub answered {_status(error)}{_hint(error)}") from None
    except errors.OfflineModeIsEnabled:
        raise Unreachable(f"{what}: HF_HUB_OFFLINE is set, so nothing can be fetched") from None
    except Exception as error:
        if failure := _foreseen(what, error):
            raise failure from None
        raise


def _not_found(what: str, error: Exception) -> str:
    status = _status(error)
    hint = "a private one needs a token in HF_TOKEN" if "401" in status else "is the name right?"
    return f"{what}: the hub has no such repository ({status}); {hint}"


def _status(error: BaseException) -> str:
    response = getattr(error, "response", None)
    if response is None:
        return "with an error"
    phrase = getattr(response, "reason_phrase", None) or getattr(response, "reason", "")
    return f"{response.status_code} {phrase}".strip()


def _hint(error: BaseException) -> str:
    return "; is the token in HF_TOKEN right?" if _status(error)[:3] in ("401", "403") else ""


def _foreseen(what: str, error: Exception) -> InputError | None:
    """The line for a failed connection or a full disk; None for what nobody foresaw."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return InputError(f"{what}: the disk is full; what has come is kept, run again")
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int) and status >= 400:
            return InputError(f"{what}: the hub answered {_status(cause)}{_hint(cause)}")
    lost = [cause for cause in _causes(error) if _is_network(cause)]
    if lost:
        reason = " ".join(str(lost[-1]).split()) or type(lost[-1]).__name__
        return Unreachable(
            f"{what}: no connection to {endpoint() or 'huggingface.co'} ({reason}); what has come "
            "is kept: run again, or import a folder with --from"
        )
    if isinstance(error, (OSError, ValueError)):
        reason = " ".join(str(error).split())[:200]
        return InputError(f"{what}: {endpoint() or 'the hub'} does not answer as a hub ({reason})")
    return None


def _is_network(error: BaseException) -> bool:
    library = type(error).__module__.partition(".")[0]
    return library in _NETWORK or isinstance(error, ConnectionError | TimeoutError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
