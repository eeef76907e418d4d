"""Kernels for smoothed fine-tuning: in-place interpolation of whole models with reproducible noise.

Knows torch only. `interpolate_` mixes parameters with other parameters and with random numbers that
depend on nothing but (seed, tensor name, element); `draw` returns such random numbers as a tensor;
`Init` names their distribution:

    interpolate_([weight], 0.7, init=[Init.fan_in_uniform(512)], c=0.3, seed=0, names=["weight"])
"""

from sffkernels.init import Init
from sffkernels.interpolate import draw, interpolate_

__all__ = ["Init", "draw", "interpolate_"]
