"""TTM's random initialisation where it differs from PyTorch's defaults for linear maps and norms.

Published configs have `post_init` false: everything is PyTorch's default, embeddings too. With
`post_init`, `init_linear` and `init_embed` name the laws. Used by `TTM.initial`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from sffkernels import Init


def given_init(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Init]:
    """What `default_init` needs to be told: embeddings, and linear maps under `post_init`."""
    from sffkernels import Init

    post = config["post_init"]
    linear, embed = (config[key] if post else "pytorch" for key in ("init_linear", "init_embed"))
    given: dict[str, Init] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            given[f"{name}.weight"] = _law(embed, module, 1.0) or Init("normal", 0.0, 1.0)
        elif isinstance(module, nn.Linear) and (law := _law(linear, module, config["init_std"])):
            given |= {f"{name}.weight": law, f"{name}.bias": Init("constant", 0.0)}
    return given


def _law(rule: str, module: nn.Linear | nn.Embedding, std: float) -> Init | None:
    """N(0, std), U(0, 1), or U(-k, k) with k = sqrt(6 / (inputs + outputs)); None: PyTorch's."""
    from sffkernels import Init

    if rule == "xavier_uniform":
        bound = (6 / sum(module.weight.shape)) ** 0.5
        return Init("uniform", -bound, bound)
    laws = {"normal": Init("normal", 0.0, std), "uniform": Init("uniform", 0.0, 1.0)}
    return laws.get(rule)
