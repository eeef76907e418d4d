"""All mask units of a model in one table, and the step that scores, ranks and prunes them.

A unit is one entry of a mask vector: an input or output channel of a linear map, or eight of them.
Mask gradients of a macro-batch are added up in `moments`; `update_scores` turns them into scores,
masks and live lists in three small launches for all layers, with no wait for the device:

    units = Units([768, 3072], granularity=8, device=device)
    units.moments_of(0).add_(mask_moments(x, dx, sample_ids, granularity=8))     # per micro-batch
    update_scores(units, num_samples=8192, ratio=0.05, ema=0.4)                  # per macro-batch
    y = masked_linear(x, weight, bias, units.list_of(0), units.list_of(1))
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from sffkernels.groups import live_list
from sffkernels.library import register

Scoring = Literal["published", "released"]
Zeros = Literal["free", "ranked"]
GRANULARITIES = (1, 8)
BILLION = 1_000_000_000


class Units:
    """Mask vectors of given lengths (in channels), all alive; every tensor covers the whole model.

    moments: float32 [2, U], sums over samples of g and g^2 since the last update
    scores:  float32 [U], moving average; that of a dead unit is the last one it had
    live:    bool [U]
    lists:   int32 [U + number of vectors], the live list of every vector

    Raises ValueError on a granularity other than 1 or 8 and on lengths below 1.
    """

    def __init__(
        self,
        num_channels: Sequence[int],
        *,
        granularity: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity must be 1 or 8, got {granularity}")
        if any(number < 1 for number in num_channels):
            raise ValueError(f"every mask vector needs a channel, got {list(num_channels)}")
        self.num_channels, self.granularity = tuple(num_channels), granularity
        self._offsets = [0]
        for number in num_channels:
            self._offsets.append(self._offsets[-1] - (-number // granularity))
        num_units, num_vectors = self._offsets[-1], len(num_channels)
        self.moments = torch.zeros(2, num_units, device=device)
        self.scores = torch.zeros(num_units, device=device)
        self.live = torch.ones(num_units, dtype=torch.bool, device=device)
        self.lists = torch.empty(num_units + num_vectors, dtype=torch.int32, device=device)
        self.steps = torch.zeros((), dtype=torch.int32, device=device)
        self.keys = torch.zeros(num_units, dtype=torch.int32, device=device)  # scratch
        self.offsets = torch.tensor(self._offsets, dtype=torch.int32, device=device)
        self._fill_lists()

    def moments_of(self, index: int) -> Tensor:
        """[2, units] of one mask vector: a view to add `mask_moments` to."""
        return self.moments[:, self._slice(index)]

    def scores_of(self, index: int) -> Tensor:
        """[units] of one mask vector."""
        return self.scores[self._slice(index)]

    def mask_of(self, index: int) -> Tensor:
        """bool [units] of one mask vector; after writing to masks, `set_masks` renews the lists."""
        return self.live[self._slice(index)]

    def channels_of(self, index: int) -> Tensor:
        """bool [channels] of one mask vector, a new tensor."""
        mask = self.mask_of(index).repeat_interleave(self.granularity)
        return mask[: self.num_channels[index]]

    def list_of(self, index: int) -> Tensor:
        """Live list of one mask vector, a view that `update_scores` keeps current.

        At granularity 8 it is what `masked_linear` takes; at 1 it lists channels.
        """
        start, stop = self._offsets[index], self._offsets[index + 1]
        return self.lists[start + index : stop + index + 1]

    def set_masks(self, masks: Sequence[Tensor]) -> None:
        """Replace all masks (bool [units] each), for instance to resume, and renew the lists."""
        wanted = [self.mask_of(index).shape for index in range(len(self.num_channels))]
        given = [mask.shape for mask in masks]
        if given != wanted or any(mask.dtype != torch.bool for mask in masks):
            raise ValueError(f"masks must be bool of shapes {_sizes(wanted)}, got {_sizes(given)}")
        for index, mask in enumerate(masks):
            self.mask_of(index).copy_(mask)
        self._fill_lists()

    def _slice(self, index: int) -> slice:
        return slice(self._offsets[index], self._offsets[index + 1])

    def _fill_lists(self) -> None:
        _write_lists(self.live, self.lists, self.offsets)


def update_scores(
    units: Units,
    *,
    num_samples: int,
    ratio: float,
    ema: float,
    scoring: Scoring = "published",
    scale: float = 1.0,
    floor: float = 0.0,
    zeros: Zeros = "free",
) -> None:
    """One pruning step of all mask vectors: score, moving average, global ranking, masks, lists.

    With G = scale * sum g / num_samples and F = scale^2 * sum g^2 / num_samples:
    s = |-G + F / 2| ("published") or s = -G ("released"), then
    score <- s at the first update, ema * s + (1 - ema) * score later, for live units.

    The K = ceil(ratio * n) live units with the smallest |score| die, of equal ones the first;
    n counts the live units, without those of score 0 if zeros="free": these die at once, outside K.
    With zeros="ranked" they are just the smallest. At least ceil(floor * length) units of each
    vector, its largest, are protected; protected ones count in n, and K stops at the others.
    A NaN ranks above every number. `moments` are cleared. Dead units stay dead.

    num_samples: samples (over all micro-batches) in `moments`; scale: what makes g the gradient of
    a per-sample loss, B if the loss was a mean over B samples. ratio, ema, floor lie in [0, 1]
    (ratio and floor count to nine decimals, exactly).
    Source: the importance of "Less is More" (NeurIPS 2025), arXiv 2505.23195.

    Raises ValueError before anything is written.
    """
    for label, value in (("ratio", ratio), ("ema", ema), ("floor", floor)):
        if not 0 <= value <= 1:
            raise ValueError(f"{label} must lie in [0, 1], got {value}")
    if num_samples < 1 or not math.isfinite(scale):
        raise ValueError(f"needs num_samples >= 1, finite scale, got {num_samples}, {scale}")
    _check_choice("scoring", scoring, get_args(Scoring))
    _check_choice("zeros", zeros, get_args(Zeros))
    UPDATE_SCORES(
        units.moments,
        units.scores,
        units.live,
        units.lists,
        units.steps,
        units.keys,
        units.offsets,
        scale / num_samples,
        0.5 * scale * scale / num_samples,
        ema,
        round(ratio * BILLION),
        round(floor * BILLION),
        scoring == "published",
        zeros == "free",
    )


def _check_choice(label: str, given: object, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise ValueError(f"{label} must be {' or '.join(allowed)}, got {given!r}")


def _sizes(shapes: Sequence[torch.Size]) -> list[list[int]]:
    return [list(shape) for shape in shapes]


# Operator --------------------------------------------------------------------------------------


def _update_plain(
    moments: Tensor,
    scores: Tensor,
    live: Tensor,
    lists: Tensor,
    steps: Tensor,
    keys: Tensor,
    offsets: Tensor,
    weight: float,
    square_weight: float,
    ema: float,
    ratio: int,
    floor: int,
    second_order: bool,
    free_zeros: bool,
) -> None:
    first, second = moments
    score = -first * weight
    if second_order:
        score = (score + square_weight * second).abs()
    if int(steps) > 0:
        score = ema * score + (1 - ema) * scores
    scores.copy_(torch.where(live, score, scores))
    ranks = scores.abs()  # sorting puts NaN last
    may_go = torch.zeros_like(live)
    for start, stop in _pairs(offsets):
        order = torch.argsort(ranks[start:stop], stable=True)
        alive = order[live[start:stop][order]]
        num_candidates = max(len(alive) - _share(floor, stop - start), 0)
        may_go[start + alive[:num_candidates]] = True
    _prune(live, ranks, may_go, ratio, free_zeros)
    moments.zero_()
    steps += 1
    _write_lists(live, lists, offsets)


def _prune(live: Tensor, ranks: Tensor, may_go: Tensor, ratio: int, free_zeros: bool) -> None:
    is_free = (ranks == 0) & free_zeros
    budget = _share(ratio, int((live & ~is_free).sum()))
    order = torch.argsort(ranks, stable=True)
    candidates = order[(may_go & ~is_free)[order]]
    live[candidates[:budget]] = False
    live[may_go & is_free] = False


def _share(billionths: int, num: int) -> int:
    """ceil(billionths / 1e9 * num), exactly."""
    return -(-billionths * num // BILLION)


def _pairs(offsets: Tensor) -> list[tuple[int, int]]:
    ends: list[int] = offsets.tolist()
    return list(pairwise(ends))


def _write_lists(live: Tensor, lists: Tensor, offsets: Tensor) -> None:
    for index, (start, stop) in enumerate(_pairs(offsets)):
        lists[start + index : stop + index + 1] = live_list(live[start:stop])


def _update_fake(*_: object) -> None:
    return None


UPDATE_SCORES = register(
    "update_scores(Tensor(a!) moments, Tensor(b!) scores, Tensor(c!) live, Tensor(d!) lists, "
    "Tensor(e!) steps, Tensor(f!) keys, Tensor offsets, float weight, float square_weight, "
    "float ema, int ratio, int floor, bool second_order, bool free_zeros) -> ()",
    _update_plain,
    cuda="sffkernels.gpu.select:update_scores",
    fake=_update_fake,
)
