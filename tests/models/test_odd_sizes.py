"""Networks of sizes that nobody published, against what the official implementations forecast."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sffbench import models
from sffbench.models.base import LTSM

FOLDER = Path(__file__).parents[1] / "golden" / "odd-sizes"
CASES = json.loads((FOLDER / "cases.json").read_text())
OF_MOIRAI = [case for case in CASES if CASES[case]["model"] == "moirai"]
EMBEDDINGS = ("shared", "embed_tokens", "relative_attention_bias")


@torch.no_grad()
def redraw(network: nn.Module, seed: int) -> None:
    """The parameters as the README says they were drawn."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(network.named_parameters()):
        drawn = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight") and parameter.ndim == 1:
            parameter.copy_(1 + 0.25 * drawn)
        elif any(word in name for word in EMBEDDINGS):
            parameter.copy_(0.5 * drawn)
        elif parameter.ndim >= 2:
            parameter.copy_(drawn * 0.9 / math.sqrt(parameter.shape[-1]))
        else:
            parameter.copy_(0.3 * drawn)


def loaded(case: str, folder: Path) -> LTSM:
    """The case's network out of a folder in the published layout."""
    recipe = CASES[case]
    config, cls = recipe["config"], models.get(recipe["model"]).variant(recipe["config"])
    network = cls(config, horizon=recipe.get("horizon"))
    network.reset_buffers()
    redraw(network, recipe["seed"])
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")
    return models.load(recipe["model"], folder)


def tensors(case: str) -> dict[str, Tensor]:
    io = load_file(FOLDER / "io.safetensors")
    return {key.removeprefix(f"{case}/"): io[key] for key in io if key.startswith(f"{case}/")}


def check(actual: Tensor, expected: Tensor, share: float = 1e-5, least: float = 0.0) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        atol = max(least, share * theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("case", sorted(set(CASES) - set(OF_MOIRAI)))
def test_a_forecast_is_the_official_one_with_and_without_missing_values(case, tmp_path):
    model, io = loaded(case, tmp_path), tensors(case)
    if "temperature" in model.config.get("chronos_config", {}):
        model = models.load("chronos", tmp_path, top_k=1, num_samples=2)
    past = io["past"] if io["past"].ndim == 3 else io["past"][:, None]
    mask = io["mask"][:, None].expand_as(past)
    for name, given in (("full", None), ("masked", mask)):
        forecast = model.forecast(past, io[name].shape[-1], past_mask=given)
        check(forecast.reshape(io[name].shape), io[name])


@pytest.mark.parametrize("case", OF_MOIRAI)
@torch.no_grad()
def test_a_mixture_has_the_official_mean_under_each_patch_size(case, tmp_path):
    model, io = loaded(case, tmp_path), tensors(case)
    for number, size in enumerate(CASES[case]["patch_sizes"]):
        expected = io[f"mean{number}"]
        which = model.sizes.index(size)
        past = io["past"] * io["mask"]
        mixture, loc, scale = model.predict(past, expected.shape[-1], io["mask"], which)
        check(loc + scale * mixture.mean, expected, share=0.0, least=5e-5)
