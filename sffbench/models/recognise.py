"""Which preset a checkpoint without a config is of: the one whose network its tensors fit.

    recognise("timer", folder)       # "1.0", from the names and shapes in Timer_forecast_1.0.ckpt

Authors who publish weights alone (TimesFM, Timer 1.0, UniTS) leave nothing else to go by. Networks
are built on the meta device, so that even the largest preset costs no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sffbench.errors import InputError
from sffbench.models import checkpoint, formats

if TYPE_CHECKING:
    from torch import Tensor

    from sffbench.models.base import LTSM, Preset


def recognise(model: str, folder: Path, weights: str = formats.WEIGHTS) -> str:
    """The only preset of `model` that the weights in `folder` fit, else `InputError`."""
    from sffbench import models

    try:
        formats.weight_files(folder, weights)
    except InputError as error:
        raise InputError(f"no config.json in {str(folder)!r}, and {error}") from None
    state, cls = formats.read_state(folder, weights), models.get(model)
    fitting = [name for name, card in cls.presets.items() if _fits(cls, card, state)]
    if len(fitting) == 1:
        return fitting[0]
    names = " or ".join(f"{model}:{name}" for name in fitting)
    reason = f"its weights could be {names}" if fitting else f"its weights are no preset of {model}"
    raise InputError(
        f"no config.json in {str(folder)!r}, and {reason}: name the preset, or add the config"
    )


def _fits(cls: type[LTSM], card: Preset, state: Mapping[str, Tensor]) -> bool:
    import torch

    with torch.device("meta"):
        built = cls.variant(card.config)(card.config)
        own = checkpoint.unwrap(state, built.state_dict(), built.prefixes)
        try:
            given = built.accept(own)
        except InputError:
            return False
    return _shapes(built.state_dict()) == _shapes(given)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}
