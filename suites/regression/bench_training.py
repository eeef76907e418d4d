"""Windows per second in training and evaluation, ours against a loop like SFF's released one.

Both sides train the same network on the same windows (seeded twin of ETTh1's train rows, H = 96,
Adam, MSE of the last 96 values) in one process on one thread, taking turns: the rival runs in the
untimed set-up of each of our rounds. Rates are medians, per CPU-second on a CPU, per second on
a GPU. Ours is the package's own path: `train` and `Forecast.evaluate`, nothing made for the bench.
Call: `make bench` or `make bench-gpu`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sff_rival import FromOurs, Loop, Timer1, WindowDataset

from sffbench import models, strategies
from sffbench.data import synthetic
from sffbench.data.windows import Windows
from sffbench.measure import Stopwatch
from sffbench.models.base import LTSM, evaluating
from sffbench.protocol import Protocol
from sffbench.tasks import Forecast
from sffbench.training import train

HORIZON, ROUNDS, STEPS = 96, 5, 2
NUM_ROWS = 8640  # of ETTh1's train part: 55,111 windows of lookback 672
TIMER_1: dict[str, Any] = {
    "patch_len": 96,
    "d_model": 128,
    "d_ff": 256,
    "e_layers": 2,
    "n_heads": 8,
}


@dataclass(frozen=True)
class Network:
    """One network of ours, and what the rival runs in its place."""

    make: Callable[[], LTSM]
    rival: Callable[[LTSM], torch.nn.Module]
    batch: int


def _loop_only(model: LTSM) -> torch.nn.Module:
    return FromOurs(model, HORIZON)


NETWORKS = {
    "timer-1.0 2x128": Network(
        partial(models.create, "timer:1.0", **TIMER_1), lambda _: Timer1(96, 128, 256, 2, 8), 2048
    ),
    "timer-1.0 2x128, same network": Network(
        partial(models.create, "timer:1.0", **TIMER_1), _loop_only, 2048
    ),
    "ttm:tiny, same network": Network(partial(models.create, "ttm:tiny"), _loop_only, 512),
    "ttm:r2-512-96, same network": Network(
        partial(models.create, "ttm:r2-512-96"), _loop_only, 512
    ),
}


@dataclass
class Rates:
    """Windows per second of both sides, one number a round."""

    ours: list[float] = field(default_factory=list)
    rival: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Medians without the warm-up round, and the median of the rounds' ratios."""
        ours, rival = self.ours[1:], self.rival[1:]
        ratios = [mine / other for mine, other in zip(ours, rival, strict=True)]
        return {
            "ours_windows_per_s": statistics.median(ours),
            "rival_windows_per_s": statistics.median(rival),
            "ratio": statistics.median(ratios),
            "ratio_range": (min(ratios), max(ratios)),
        }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("phase", ["train", "evaluate"])
def bench(benchmark: Any, device: torch.device, phase: str, name: str) -> None:
    """Take turns for `ROUNDS` rounds; rates and their ratio go to `extra_info`."""
    network, values = NETWORKS[name], _values()
    model = network.make().to(device)
    windows = Windows(torch.from_numpy(values).float(), model.lookback, HORIZON).to(device)
    items = WindowDataset(values, model.lookback, HORIZON)
    loop = Loop(network.rival(network.make()), items, network.batch, device)
    ours, rival = {
        "train": (partial(_train, model, windows, network.batch), partial(loop.train, STEPS)),
        "evaluate": (partial(_evaluate, model, windows), partial(loop.score, STEPS)),
    }[phase]
    rates = Rates()

    def rival_turn() -> None:
        rates.rival.append(_rate(rival, device))

    def our_turn() -> None:
        rates.ours.append(_rate(ours, device))

    benchmark.pedantic(our_turn, setup=rival_turn, rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info.update(phase=phase, network=name, **rates.summary())


def _values() -> NDArray[np.float64]:
    values, _ = synthetic.twin("ETTh1", num_rows=NUM_ROWS)
    standardised: NDArray[np.float64] = (values - values.mean(0)) / values.std(0)
    return standardised


def _train(model: LTSM, windows: Windows, batch_size: int) -> int:
    """`STEPS` steps of the package's loop; one window of validation, which every run has."""
    protocol = Protocol(
        name="bench",
        max_steps=STEPS,
        batch_size=batch_size,
        optimizer="adam",
        weight_decay=0.0,
        clip_norm=None,
        loss="forecast",
        num_validation=1,
        num_snapshots=1,
    )
    series = torch.zeros(windows.lookback + HORIZON, 1, device=windows.device)
    return train(
        model,
        strategies.get("full"),
        Forecast(HORIZON, "forecast"),
        windows,
        Windows(series, windows.lookback, HORIZON),
        protocol,
        lr=3e-5,
        seed=0,
        reload=dict,
    ).num_train_windows


def _evaluate(model: LTSM, windows: Windows) -> int:
    index = torch.arange(4096)
    with evaluating(model):
        return Forecast(HORIZON).evaluate(model._forecast, windows, index).num_windows


def _rate(work: Callable[[], int], device: torch.device) -> float:
    """Windows per CPU-second, or per second on a GPU."""
    watch = Stopwatch(device)
    with watch.running():
        num_windows = work()
    return num_windows / (watch.cpu_s if device.type == "cpu" else watch.wall_s)
