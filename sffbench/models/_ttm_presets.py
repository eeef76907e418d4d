"""Published sizes of TTM: r1 and r2 of `ibm-granite`, the research release with frequency prefix.

All share d_model = 3 and decoder = 2 patch lengths, 3 levels of 2 layers, 2 decoder layers. Where
only the horizon differs from a size whose number of parameters was printed by the authors, the
card's note says so. Used by `ttm.py`.
"""

from __future__ import annotations

from dataclasses import replace

from sffbench.models.base import Preset


def _published(model: str, lookback: int, horizon: int, num_parameters: int, branch: str) -> Preset:
    """A released size: all share d_model = 3, decoder = 2 patch lengths, 3 levels x 2 layers."""
    patch = 64 if lookback == 512 or model == "r1" else 128
    confirmed = horizon == 96
    return Preset(
        config={
            "context_length": lookback,
            "prediction_length": horizon,
            "patch_length": patch,
            "d_model": 3 * patch,
            "decoder_d_model": 2 * patch,
            "adaptive_patching_levels": 3,
            "num_layers": 2,
            "decoder_num_layers": 2,
            "expansion_factor": 2,
        },
        lookback=lookback,
        horizon=horizon,
        num_parameters=num_parameters,
        lr=1e-4,
        licence="Apache-2.0",
        hub=f"ibm-granite/granite-timeseries-ttm-{model}",
        revision=branch,
        note=""
        if confirmed
        else "size from the 96-step configuration of the same context: only the head differs",
    )


def _branch(lookback: int, horizon: int) -> str:
    """The revision of r2 that `granite-tsfm` lists for a size."""
    return "main" if (lookback, horizon) == (512, 96) else f"{lookback}-{horizon}-r2"


def _research(lookback: int, num_parameters: int, branch: str) -> Preset:
    """The research release: r2 with a token for the sampling frequency before the patches."""
    granite = _published("r2", lookback, 96, num_parameters, branch)
    return replace(
        granite,
        config={
            **granite.config,
            "resolution_prefix_tuning": True,
            "frequency_token_vocab_size": 8,
        },
        licence="research use only (weights); Apache-2.0 (code)",
        hub="ibm-research/ttm-research-r2",
    )


_R2_SIZES = {
    (512, 96): 805_280,
    (512, 192): 903_680,
    (512, 336): 1_051_280,
    (512, 720): 1_444_880,
    (1024, 96): 2_964_960,
    (1024, 192): 3_161_664,
    (1024, 336): 3_456_720,
    (1024, 720): 4_243_536,
    (1536, 96): 3_081_120,
    (1536, 192): 3_376_128,
    (1536, 336): 3_818_640,
    (1536, 720): 4_998_672,
}
PRESETS = {
    "tiny": Preset(
        config={
            "context_length": 512,
            "prediction_length": 96,
            "patch_length": 64,
            "d_model": 64,
            "decoder_d_model": 64,
            "adaptive_patching_levels": 3,
            "num_layers": 2,
            "decoder_num_layers": 2,
            "expansion_factor": 2,
            "dropout": 0.1,
            "head_dropout": 0.1,
        },
        lookback=512,
        horizon=96,
        num_parameters=165_536,
        lr=1e-3,
        licence="Apache-2.0",
        note="made here by `sffbench pretrain ttm:tiny` on synthetic series",
    ),
    "r1-512-96": _published("r1", 512, 96, 805_280, "main"),
    "r1-1024-96": _published("r1", 1024, 96, 946_336, "1024_96_v1"),
    **{
        f"r2-{lookback}-{horizon}": _published(
            "r2", lookback, horizon, size, _branch(lookback, horizon)
        )
        for (lookback, horizon), size in _R2_SIZES.items()
    },
    "research-r2-512-96": _research(512, 854_972, "main"),
    "research-r2-1024-96": _research(1024, 3_126_076, "1024-96-ft-r2"),
    "research-r2-1536-96": _research(1536, 3_243_996, "1536-96-ft-r2"),
}
