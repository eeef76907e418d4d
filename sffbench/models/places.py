"""Where `load` reads from: a folder, a file, a preset's shelf, or a hub id that was fetched.

    place = resolve("chronos", "amazon/chronos-bolt-small")   # -> the folder that fetch filled
    place.name, place.folder, place.weights                   # "chronos:bolt-small", ...

Nothing is downloaded: what is not on this machine is an error that names `sffbench fetch`. Only a
hub id, which stands in the presets, costs an import of the model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sffbench.errors import InputError, nearest
from sffbench.models import checkpoint
from sffbench.models.formats import WEIGHTS

if TYPE_CHECKING:
    from sffbench.models.base import Preset

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Place:
    """A folder, what it is loaded as (`model` or `model:preset`), and the weights asked for."""

    name: str
    folder: Path
    weights: str

    def preferred(self) -> tuple[str, ...]:
        """What the preset's authors call its weights, where a folder holds several."""
        from sffbench import models

        return models.preset(self.name).files if ":" in self.name else ()


def resolve(name: str, source: str | os.PathLike[str] | None, weights: str = WEIGHTS) -> Place:
    """The place that `name` (`model[:preset]`) and `source` mean; `InputError` where it is none.

    Weights without a config are those of the preset that they fit, if the name says none.
    """
    place = _locate(name, source, weights)
    if ":" in place.name or (place.folder / "config.json").exists():
        return place
    from sffbench.models.recognise import recognise

    preset = recognise(place.name, place.folder, place.weights)
    return Place(f"{place.name}:{preset}", place.folder, place.weights)


def _locate(name: str, source: str | os.PathLike[str] | None, weights: str) -> Place:
    model, _, preset = name.partition(":")
    if source is not None:
        path = Path(source).expanduser()
        if path.is_file():
            return _file(name, path, weights)
        if not path.exists() and (match := HUB_ID.fullmatch(str(source))):
            return _fetched(name, match["repository"], match["revision"], weights)
    elif preset and not checkpoint.shelved(model, preset):
        from sffbench import models

        models.preset(name)  # a misspelt preset is no missing one
    return Place(name, checkpoint.find(model, preset or None, source), weights)


def _file(name: str, path: Path, weights: str) -> Place:
    if weights not in (WEIGHTS, path.name):
        raise InputError(f"the source is the file {path.name}, and weights={weights!r} another")
    if path.name.endswith(".json"):
        raise InputError(f"{path.name} is no file of weights: give its folder")
    return Place(name, path.parent, path.name)


def _fetched(name: str, repository: str, revision: str | None, weights: str) -> Place:
    """The folder on this machine that was fetched from a repository of the hub."""
    from sffbench import models

    model, _, preset = name.partition(":")
    cards = models.get(model).presets
    named = _named(cards, repository, revision)
    if preset:
        if preset not in named:
            raise InputError(f"{repository!r} is not what {name} is published as")
        named = [preset]
    if not named:
        raise _unknown(model, cards.values(), repository, revision)
    found = {each: folder for each in named if (folder := checkpoint.shelved(model, each))}
    if len(found) == 1:
        ((preset, folder),) = found.items()
        return Place(f"{model}:{preset}", folder, weights)
    if found:
        names = ", ".join(f"{model}:{each}" for each in found)
        raise InputError(f"{repository} holds several presets: load one by its name, {names}")
    if len(named) > 1:
        names = ", ".join(f"{model}:{each}" for each in named)
        raise InputError(
            f"nothing of {repository} is on this machine: run `sffbench fetch` with one of {names}"
        )
    raise InputError(
        f"{repository} is not on this machine: run `sffbench fetch {model}:{named[0]}`, "
        "or give the folder that holds it"
    )


def _named(cards: dict[str, Preset], repository: str, revision: str | None) -> list[str]:
    """The presets published in that repository; of its `main` branch where no other is named."""
    found = {each: card for each, card in cards.items() if card.hub == repository}
    if revision is None and any(card.revision == "main" for card in found.values()):
        revision = "main"
    return [each for each, card in found.items() if revision in (None, card.revision)]


def _unknown(
    model: str, cards: Iterable[Preset], repository: str, revision: str | None
) -> InputError:
    ids = sorted({f"{card.hub}@{card.revision}" for card in cards if card.hub})
    given = f"{repository}@{revision}" if revision else repository
    guess = nearest(given, ids)
    hint = f"; did you mean {guess.removesuffix('@main')!r}?" if guess else ""
    return InputError(
        f"no checkpoint folder at {given!r}, and no preset of {model} has that hub id{hint}"
    )
