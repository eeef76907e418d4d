"""Getting data files: download with resume, or import from a folder; SHA-256 checked, then renamed.

    fetch(["ETTh1", "Weather"], root)             # from the catalog's URLs
    fetch([], root, from_dir="~/benchmark")       # each file of the catalog found below that folder

A file appears under its own name only when it is whole and its digest is right; until then it is a
`.part` beside it. The digest of a data set without a published one is recorded at its first fetch.
"""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sffbench.data.catalog import Entry, get, names
from sffbench.data.checksum import file_sha256, record, record_path, recorded
from sffbench.errors import InputError

_TIMEOUT_S = 60.0
_BLOCK_BYTES = 1 << 18


@dataclass(frozen=True)
class Fetched:
    """What became of one data set: its file, its digest, and whether anything had to be done."""

    name: str
    path: Path
    sha256: str
    action: Literal["present", "downloaded", "imported"]


def fetch(
    wanted: Iterable[str],
    root: str | Path,
    *,
    from_dir: str | Path | None = None,
    progress: bool = True,
) -> list[Fetched]:
    """Put the files of `wanted` (empty: all of the catalog) into the folder `root`.

    One data set's failure does not stop the others; at the end InputError holds one line a failure.
    `progress` draws bars on stderr.
    """
    chosen, root = list(wanted), Path(root).expanduser()
    folder = None if from_dir is None else _folder(from_dir)
    entries = [get(name) for name in chosen or names()]
    if folder is not None and not chosen:
        entries = [entry for entry in entries if _candidates(entry, folder)]
        if not entries:
            raise InputError(f"{folder} holds no file of the catalog, such as {get('ETTh1').file}")
    root.mkdir(parents=True, exist_ok=True)
    done: list[Fetched] = []
    failures: list[str] = []
    with _bars(progress) as bars:
        for entry in entries:
            try:
                done.append(_fetch_one(entry, root, folder, bars))
            except InputError as error:
                failures.append(str(error))
    if failures:
        raise InputError("\n".join(failures))
    return done


def _bars(visible: bool) -> Progress:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not visible)


def _folder(from_dir: str | Path) -> Path:
    folder = Path(from_dir).expanduser()
    if not folder.is_dir():
        raise InputError(f"--from {folder}: no such folder")
    return folder


def _fetch_one(entry: Entry, root: Path, folder: Path | None, bars: Progress) -> Fetched:
    target = root / entry.file
    if target.is_file():
        sha256 = file_sha256(target)
        if fault := _fault(entry, target, sha256):
            raise InputError(f"{entry.name}: {target} is there, but {fault}; move it away first")
        _remember(entry, target, sha256, "found in place")
        return Fetched(entry.name, target, sha256, "present")
    part = target.with_name(target.name + ".part")
    if folder is not None:
        return Fetched(entry.name, target, _import(entry, folder, part, target), "imported")
    return Fetched(entry.name, target, _download(entry, part, target, bars), "downloaded")


def _fault(entry: Entry, target: Path, sha256: str) -> str | None:
    """What is wrong with a file of this digest, or None; any is right where none is known yet."""
    first = recorded(target)
    accepted = entry.sha256 or ((first,) if first else (sha256,))
    if sha256 in accepted:
        return None
    whose = "the catalog's" if entry.sha256 else "that of the first fetch"
    return f"its SHA-256 {sha256[:12]}... is not {whose}, {accepted[0][:12]}..."


def _remember(entry: Entry, target: Path, sha256: str, origin: str) -> None:
    if not entry.sha256 and not record_path(target).is_file():
        record(target, sha256, origin)


def _accept(entry: Entry, part: Path, target: Path, origin: str) -> str:
    """Give a sound `part` its name; delete a wrong one. Returns its SHA-256."""
    sha256 = file_sha256(part)
    if fault := _fault(entry, target, sha256):
        part.unlink()
        raise InputError(f"{entry.name}: refused {origin}: {fault}")
    _remember(entry, target, sha256, origin)
    os.replace(part, target)
    return sha256


def _candidates(entry: Entry, folder: Path) -> list[Path]:
    """Files of that name in or below the folder (benchmark archives nest them), nearest first."""
    found = [path for path in folder.rglob(entry.file) if path.is_file()]
    return sorted(found, key=lambda path: (len(path.parts), path))


def _import(entry: Entry, folder: Path, part: Path, target: Path) -> str:
    candidates = _candidates(entry, folder)
    if not candidates:
        raise InputError(f"{entry.name}: no file {entry.file} in or below {folder}")
    sound = (path for path in candidates if not _fault(entry, target, file_sha256(path)))
    source = next(sound, candidates[0])
    shutil.copyfile(source, part)
    return _accept(entry, part, target, str(source))


def _download(entry: Entry, part: Path, target: Path, bars: Progress) -> str:
    if entry.url is None:
        raise InputError(
            f"{entry.name} has no public URL (source: {entry.source or 'not stated'}); get "
            f"{entry.file} there, then `sffbench fetch {entry.name} --from FOLDER`"
        )
    if not entry.sha256:
        # Without a known digest nothing could tell that two halves come from two versions.
        part.unlink(missing_ok=True)
    while True:
        resumed = part.is_file()
        try:
            _transfer(entry, entry.url, part, bars)
        except (OSError, HTTPException) as error:
            raise _connection_failure(entry, part, error) from None
        try:
            return _accept(entry, part, target, entry.url)
        except InputError:
            if not resumed:  # else the old half was at fault: once more, from the first byte
                raise


def _connection_failure(entry: Entry, part: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    kept = f"{part.stat().st_size} bytes are kept: run it again" if part.is_file() else "run again"
    return InputError(
        f"{entry.name}: {entry.url} failed ({reason}); {kept}, "
        f"or `sffbench fetch {entry.name} --from FOLDER`"
    )


def _transfer(entry: Entry, url: str, part: Path, bars: Progress) -> None:
    """Append to `part` what it lacks of `url`; ConnectionError where the stream ends early."""
    have = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "sffbench"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return  # nothing lies beyond what we have: the digest decides
        raise
    with response:
        if response.status != 206:
            have = 0  # the server starts from the first byte, so do we
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        task = bars.add_task(entry.name, total=total, completed=have)
        with part.open("ab" if have else "wb") as stream:
            for block in iter(partial(response.read, _BLOCK_BYTES), b""):
                have += stream.write(block)
                bars.update(task, completed=have)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")
