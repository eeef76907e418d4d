"""Golden folders: official weights, inputs and outputs, and how close is close enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sffbench import models
from sffbench.models.base import LTSM

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Golden:
    """One golden folder; a comparison notes its tensor, so that a test can demand all of them."""

    folder: Path
    io: dict[str, Tensor]
    compared: set[str]

    def model(self) -> LTSM:
        return models.load(self.folder.name.split("_")[0], self.folder)

    def by_channel(self, name: str) -> Tensor:
        """A tensor of the file, [B, time, C], as [B, C, time]."""
        return self.io[name].transpose(1, 2)

    def check(self, name: str, actual: Tensor, *, rtol: float, atol: float) -> None:
        expected = self.io[name]
        self.compared.add(name)
        torch.testing.assert_close(
            actual.detach().reshape(expected.shape), expected, rtol=rtol, atol=atol
        )


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """`golden("ttm")`: the folder's tensors."""
    return lambda name: Golden(GOLDEN / name, load_file(GOLDEN / name / "io.safetensors"), set())


@pytest.fixture(scope="session")
def stages() -> Callable[[LTSM, Callable[[], object]], dict[str, Tensor]]:
    """Outputs of all sub-modules while `run` runs, by module name; `name:in` is the first input."""

    def record(model: LTSM, run: Callable[[], object]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: object, inputs: tuple[Tensor, ...], output: object) -> None:
                seen[f"{name}:in"] = inputs[0].detach()
                seen[name] = (output[0] if isinstance(output, tuple) else output).detach()

            return hook

        handles = [
            module.register_forward_hook(keep(name)) for name, module in model.named_modules()
        ]
        run()
        for handle in handles:
            handle.remove()
        return seen

    return record
