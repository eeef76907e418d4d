"""Forecasting: the loss a model is fine-tuned with, and MSE, MAE, MASE on the standardised scale.

    MSE  = mean (y_hat - y)^2          MAE = mean |y_hat - y|
    MASE = mean over channels of MAE_c / mean_t |x_t - x_{t-m}|   (train rows, season m)

Means run over windows, channels and steps, and are accumulated in float64, so the score does not
depend on how windows are batched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from sffbench.data.windows import Windows
    from sffbench.models.base import LTSM

# Windows at a time: on one CPU thread activations stay in cache, a GPU wants to be filled.
EVAL_BATCH = {"cpu": 256, "cuda": 4096}

Forecaster = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Scores:
    """Errors of a forecaster on a set of windows."""

    mse: float
    mae: float
    num_windows: int
    mse_per_channel: tuple[float, ...]
    mae_per_channel: tuple[float, ...]
    batch_size: int  # windows that were forecast at once

    def mase(self, scale: NDArray[np.float64]) -> float | None:
        """MAE over the naive in-sample error; None if a channel is constant or has no window."""
        mae = np.asarray(self.mae_per_channel)
        if not np.all(scale > 0) or not np.all(np.isfinite(mae)):
            return None
        return float(np.mean(mae / scale))


@dataclass(frozen=True)
class Forecast:
    """Forecast H steps; `loss_kind` is the model's own objective or the error of the forecast."""

    horizon: int
    loss_kind: Literal["own", "forecast"] = "own"

    def loss(self, model: LTSM, past: Tensor, future: Tensor) -> Tensor:
        """Scalar training loss of windows past [B, C, L], future [B, C, H]."""
        if self.loss_kind == "own":
            return model.loss(past, future)
        return torch.nn.functional.mse_loss(model._forecast(past, self.horizon), future)

    @torch.inference_mode()
    def evaluate(
        self,
        forecaster: Forecaster,
        windows: Windows,
        index: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Scores:
        """Score every window, or those of `index`; `batch_size` at a time changes no score.

        When memory runs out the batch is halved, and stays halved.
        """
        batch_size = batch_size or EVAL_BATCH.get(windows.device.type, 256)
        if index is None:
            index = torch.arange(len(windows))
        batch_size = min(batch_size, len(index))
        squared = torch.zeros(windows.num_channels, dtype=torch.float64)
        absolute = torch.zeros_like(squared)
        counts = torch.zeros_like(squared)
        start = 0
        while start < len(index):
            part = index[start : start + batch_size]
            try:
                error = self._error(forecaster, *windows.batch(part))
            except torch.OutOfMemoryError:
                if batch_size == 1:
                    raise
                batch_size //= 2
                continue
            start += len(part)
            channel = windows.channels_of(part)
            squared.index_add_(0, channel, error.square().mean(-1).cpu())
            absolute.index_add_(0, channel, error.abs().mean(-1).cpu())
            counts.index_add_(0, channel, torch.ones(len(part), dtype=torch.float64))
        return Scores(
            mse=float(squared.sum() / counts.sum()),
            mae=float(absolute.sum() / counts.sum()),
            num_windows=len(index),
            mse_per_channel=tuple((squared / counts).tolist()),
            mae_per_channel=tuple((absolute / counts).tolist()),
            batch_size=batch_size,
        )

    def _error(self, forecaster: Forecaster, past: Tensor, future: Tensor) -> Tensor:
        """Forecast minus truth in float64, [B, H]."""
        return (forecaster(past, self.horizon) - future).squeeze(1).double()
