"""Kernels of smoothed fine-tuning and of prune-then-finetune, with plain torch beside each.

Knows torch, and triton where a CUDA device is used. `interpolate_` mixes parameters with other
parameters and with random numbers that depend on nothing but (seed, tensor name, element); `draw`
returns such random numbers as a tensor; `Init` names their distribution:

    interpolate_([weight], 0.7, init=[Init.fan_in_uniform(512)], c=0.3, seed=0, names=["weight"])

`mask_scores` and `mask_moments` measure how important channels are, `Units` and `update_scores`
turn that into masks, `masked_linear` skips what is masked, and `pick` says when that pays.
"""

from sffkernels.groups import live_list
from sffkernels.init import Init
from sffkernels.interpolate import draw, interpolate_
from sffkernels.linear import masked_linear
from sffkernels.pick import Machine, Work, pick
from sffkernels.scores import Samples, mask_moments, mask_scores, sort_samples
from sffkernels.units import Units, update_scores

__all__ = [
    "Init",
    "Machine",
    "Samples",
    "Units",
    "Work",
    "draw",
    "interpolate_",
    "live_list",
    "mask_moments",
    "mask_scores",
    "masked_linear",
    "pick",
    "sort_samples",
    "update_scores",
]
