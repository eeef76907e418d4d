"""Live lists: which groups of eight channels live, as a list that kernels follow on the device.

    live list = int32 [1 + G]: the count, the live groups ascending, the dead groups ascending

A list is made from a boolean mask by one launch, without the host ever learning the count, so masks
may move inside a captured CUDA graph. `update_scores` writes such lists for a whole model at once.
"""

import torch
from torch import Tensor

from sffkernels.library import register

GROUP = 8  # channels: 16 bytes of bf16, the widest access there is


def num_groups(num_channels: int) -> int:
    """ceil(num_channels / 8): the last group may be cut off."""
    return -(-num_channels // GROUP)


def live_list(mask: Tensor) -> Tensor:
    """(count, live groups ascending, dead groups ascending) of a boolean mask: int32 [1 + G].

    mask: bool [G], G = ceil(channels / 8), True = lives, on any device.
    Raises ValueError if it is no one-dimensional bool tensor.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 1:
        given = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise ValueError(f"a group mask must be a bool tensor [groups], got {given}")
    return LIVE_LIST(mask)


def live_groups(groups: Tensor) -> Tensor:
    """The live groups of a live list, int64, ascending: waits for the device to say how many."""
    return groups[1 : 1 + int(groups[0])].long()


def group_mask(groups: Tensor) -> Tensor:
    """The boolean mask [G] of a live list, without waiting for the device."""
    ranks = torch.arange(groups.numel() - 1, device=groups.device)
    mask = torch.empty_like(ranks, dtype=torch.bool)
    mask[groups[1:].long()] = ranks < groups[0]
    return mask


def channel_mask(groups: Tensor, num_channels: int) -> Tensor:
    """The boolean mask [num_channels] of a live list, without waiting for the device."""
    return group_mask(groups).repeat_interleave(GROUP)[:num_channels]


def live_channels(groups: Tensor, num_channels: int) -> Tensor:
    """The live channels of a live list, int64, ascending: waits for the device."""
    lanes = torch.arange(GROUP, device=groups.device)
    channels = (live_groups(groups)[:, None] * GROUP + lanes).reshape(-1)
    return channels[channels < num_channels]


def _list_plain(mask: Tensor) -> Tensor:
    order = torch.argsort(mask.logical_not().to(torch.uint8), stable=True)
    return torch.cat([mask.sum().reshape(1), order]).to(torch.int32)


def _list_fake(mask: Tensor) -> Tensor:
    return mask.new_empty(1 + mask.numel(), dtype=torch.int32)


LIVE_LIST = register(
    "live_list(Tensor mask) -> Tensor",
    _list_plain,
    cuda="sffkernels.gpu.select:live_list",
    fake=_list_fake,
)
