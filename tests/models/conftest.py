"""Golden folders (weights, inputs, outputs, how close is close enough), and a hub to fetch from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fetched import REPOSITORY
from hub_stand_in import Hub
from huggingface_hub import constants
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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder of checkpoints in it."""
    monkeypatch.setenv("SFFBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SFFBENCH_CHECKPOINTS", raising=False)
    return tmp_path / "cache" / "models"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that holds `acme/ttm`, and the presets of `ttm` that it publishes."""
    monkeypatch.setenv("no_proxy", "*")
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    card = models.preset("ttm:tiny")
    presets = {
        "stand-in": dataclasses.replace(card, hub="acme/ttm"),
        "branch": dataclasses.replace(card, hub="acme/ttm", revision="512-96-b"),
        "folder": dataclasses.replace(card, hub="acme/many", subfolder="sizes/small"),
        "alone": dataclasses.replace(card, hub="acme/alone", files=("torch_model.ckpt",)),
        "elsewhere": dataclasses.replace(card, files=("theirs.ckpt",), origin="a place of theirs"),
        "nowhere": dataclasses.replace(card, origin=""),
    }
    monkeypatch.setattr(models.get("ttm"), "presets", models.get("ttm").presets | presets)
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        running.commit("acme/ttm", REPOSITORY)
        yield running
