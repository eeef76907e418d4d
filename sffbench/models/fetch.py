"""Getting a preset's weights: from the hub or a folder, checked, locked, then given their name.

    fetch(["chronos:bolt-small"])                     # from the hub that HF_ENDPOINT names
    fetch(["timer:1.0"], from_dir="~/downloads")      # what is on no hub, or no network

A folder appears in the cache only when it is whole; until then it is `<name>.part` beside it, and
a later fetch goes on from there. The first fetch writes a lock (`lockfile.py`): commit, sizes and
SHA-256. What differs from it later is an error, and nothing is overwritten.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sffbench import models
from sffbench.errors import InputError
from sffbench.models import checkpoint, formats, hub, lockfile
from sffbench.models.base import Preset

CONFIG = "config.json"


@dataclass(frozen=True)
class Fetched:
    """What became of one preset: its folder, the hash of its weights, the commit that they are.

    `note` says in a line what a user should know although all is well.
    """

    name: str
    path: Path
    sha256: str
    commit: str | None
    action: Literal["present", "downloaded", "imported"]
    note: str = ""


def fetch(wanted: Iterable[str], *, from_dir: str | Path | None = None) -> list[Fetched]:
    """Put the weights of the presets `wanted` (`model:preset`) into the cache.

    One preset's failure does not stop the others; at the end `InputError` holds one line a failure.
    """
    folder = None if from_dir is None else Path(from_dir).expanduser()
    if folder is not None and not folder.is_dir():
        raise InputError(f"--from {folder}: no such folder")
    done: list[Fetched] = []
    failures: list[str] = []
    for name in wanted:
        try:
            done.append(_fetch_one(name, folder))
        except InputError as error:
            failures.append(str(error))
    if failures:
        raise InputError("\n".join(failures))
    return done


def _fetch_one(name: str, folder: Path | None) -> Fetched:
    card = models.preset(name)
    model, _, preset = name.partition(":")
    leaf = checkpoint.leaf(model, preset)
    if (checkpoint.PACKAGED / leaf).is_dir():
        return _found(name, checkpoint.PACKAGED / leaf, None, "present", "comes with the package")
    entry = checkpoint.cache_folder() / "models" / leaf
    if entry.is_dir():
        return _present(name, card, entry)
    if folder is None and card.hub is None:
        raise InputError(_elsewhere(name, card))
    staging = entry.with_name(f"{leaf}.part")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        if folder is not None:
            return _import(name, card, folder, staging, entry)
        return _download(name, card, staging, entry)
    except OSError as error:
        raise InputError(f"{name}: {staging}: {error.strerror or error}") from None


def _elsewhere(name: str, card: Preset) -> str:
    if name.endswith(":tiny"):
        return f"{name} is made here: `sffbench pretrain {name}`"
    if not card.origin:
        return (
            f"{name} is not on the hub, nor do its authors say where else; if you have it, "
            f"`sffbench fetch {name} --from FOLDER`"
        )
    return (
        f"{name} is not on the hub: get {' '.join(card.files) or 'it'} from {card.origin}, "
        f"then `sffbench fetch {name} --from FOLDER`"
    )


def _found(
    name: str,
    folder: Path,
    commit: str | None,
    action: Literal["present", "downloaded", "imported"],
    note: str = "",
) -> Fetched:
    _, sha256 = models.describe(name, folder)
    return Fetched(name, folder, sha256, commit, action, note)


# -- what is there already ---------------------------------------------------------------------


def _present(name: str, card: Preset, entry: Path) -> Fetched:
    """An entry that still is what was fetched first, or `InputError`; the hub may have moved on."""
    path = lockfile.path_of(entry)
    lock, found = lockfile.read(path), lockfile.measured(entry)
    if lock is None:
        lockfile.write(path, lockfile.lock(name, "found in place", found))
        return _found(name, entry, None, "present")
    if change := lockfile.difference(lock.files, found):
        raise InputError(
            f"{name}: {entry} is not what was fetched first: {change}; move it away, fetch again"
        )
    return _found(name, entry, lock.commit, "present", _moved(name, card, lock, entry))


def _moved(name: str, card: Preset, lock: lockfile.Lock, entry: Path) -> str:
    """A note where the hub has another commit of the same files; `InputError` of other files."""
    if card.hub is None or lock.commit is None:
        return ""
    try:
        now = hub.list_files(card.hub, card.revision, card.subfolder)
    except hub.Unreachable:
        return ""  # what is here is whole and as it was: there is nothing that a network must say
    if now.commit == lock.commit:
        return ""
    moved = f"{card.hub}: {card.revision!r} is {now.commit[:12]} now, not {lock.commit[:12]}"
    for file in lock.files:
        if file not in now.files or now.files[file].fault(entry / file):
            raise InputError(
                f"{name}: {moved}, and {file} has changed; the first one is kept. To take the new "
                f"one, move {entry} and {lockfile.path_of(entry).name} away"
            )
    return f"{moved}; the files are the same"


# -- what is not ---------------------------------------------------------------------------------


def _download(name: str, card: Preset, staging: Path, entry: Path) -> Fetched:
    assert card.hub is not None
    lock = lockfile.read(lockfile.path_of(entry))
    listing = _listing(name, card, lock)
    chosen = _chosen(name, card, listing)
    hub.download(listing, chosen, staging)
    if index := [file for file in chosen if file.endswith(".index.json")]:
        shards = set(formats.weight_map(staging / index[0]).values())
        if absent := sorted(shards - set(listing.files)):
            raise InputError(f"{name}: {index[0]} names {absent[0]!r}, which {card.hub} lacks")
        chosen += sorted(shards)
        hub.download(listing, chosen, staging)
    _keep_only(staging, chosen)
    origin = f"{hub.endpoint() or 'https://huggingface.co'}/{card.hub}"
    new = lockfile.lock(
        name,
        origin,
        lockfile.measured(staging),
        hub=card.hub,
        revision=card.revision,
        commit=listing.commit,
    )
    return _found(name, _settle(name, staging, entry, new), listing.commit, "downloaded")


def _listing(name: str, card: Preset, lock: lockfile.Lock | None) -> hub.Listing:
    """The repository at the commit of the first fetch; at the branch where there was none."""
    assert card.hub is not None
    if lock is None or lock.commit is None:
        return hub.list_files(card.hub, card.revision, card.subfolder)
    try:
        return hub.list_files(card.hub, lock.commit, card.subfolder)
    except hub.NoRevision:
        raise InputError(
            f"{name}: {card.hub} has no commit {lock.commit[:12]} any more, which was fetched first"
        ) from None


def _chosen(name: str, card: Preset, listing: hub.Listing) -> list[str]:
    """What of a repository is needed: the preset's files, or weights and config."""
    if card.files:
        if absent := [file for file in card.files if file not in listing.files]:
            raise InputError(f"{name}: {card.hub} has no file {listing.subfolder}{absent[0]}")
        return list(card.files)
    where = f"{card.hub} at {card.revision}"
    weights = formats.choose(listing.files, where=where)
    return [file for file in (CONFIG, weights) if file in listing.files]


def _import(name: str, card: Preset, folder: Path, staging: Path, entry: Path) -> Fetched:
    """Copy what `load` would read, once it has been loaded: nothing else vouches for it."""
    source = _candidate(name, card, folder)
    files = formats.weight_files(source, preferred=lambda: card.files)
    index = [source / formats.index_of(each) for each in formats.KNOWN]
    chosen = [*files, *(path for path in index if path.is_file() and len(files) > 1)]
    if (source / CONFIG).is_file():
        chosen.append(source / CONFIG)
    _keep_only(staging, [])
    for path in chosen:
        shutil.copyfile(path, staging / path.name)
    try:
        models.load(name, staging)
    except InputError as error:
        _keep_only(staging, [])
        raise InputError(f"{name}: refused {source}: {error}") from None
    new = lockfile.lock(name, str(source), lockfile.measured(staging))
    return _found(name, _settle(name, staging, entry, new), None, "imported")


def _candidate(name: str, card: Preset, folder: Path) -> Path:
    """The sub-folder named like the preset or its repository; else the folder itself."""
    model, _, preset = name.partition(":")
    names = [checkpoint.leaf(model, preset), *([card.hub.rpartition("/")[2]] if card.hub else [])]
    return next((folder / each for each in names if (folder / each).is_dir()), folder)


def _keep_only(staging: Path, names: Iterable[str]) -> None:
    """Remove what the download kept for itself, and what an earlier choice left behind."""
    kept = set(names)
    for path in staging.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _settle(name: str, staging: Path, entry: Path, new: lockfile.Lock) -> Path:
    """Give a whole folder its name, if it is what was fetched first (or is the first)."""
    path = lockfile.path_of(entry)
    first = lockfile.read(path)
    if first is None:
        lockfile.write(path, new)
    elif change := lockfile.difference(first.files, new.files):
        shutil.rmtree(staging)
        raise InputError(
            f"{name}: not what was fetched first, by {path}: {change}; nothing was changed"
        )
    try:
        os.rename(staging, entry)
    except OSError:
        if not entry.is_dir():  # else another fetch was faster, and has compared the same lock
            raise
        shutil.rmtree(staging)
    return entry
