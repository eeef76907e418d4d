"""The rival: a training loop and a Timer 1.0 network built the way SFF's released code works.

Written from a description of that code, none of it copied. What makes it slow is kept on purpose:
a Python call a window, float64 items with four time marks that the network never reads, collating,
a cast a batch, 1x1 convolutions between transposes, attention spelled out as einsum and softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sffbench.models.base import LTSM

Item = tuple[NDArray[np.float64], ...]


class WindowDataset(Dataset[Item]):
    """One item = one window: past [L, 1], future [H, 1], and their time marks [L, 4], [H, 4]."""

    def __init__(self, values: NDArray[np.float64], lookback: int, horizon: int) -> None:
        self.values = values  # [T, C]
        self.marks = np.zeros((len(values), 4))
        self.lookback, self.horizon = lookback, horizon
        self.num_starts = len(values) - lookback - horizon + 1

    def __len__(self) -> int:
        return self.num_starts * self.values.shape[1]

    def __getitem__(self, index: int) -> Item:
        channel, begin = divmod(index, self.num_starts)
        border, end = begin + self.lookback, begin + self.lookback + self.horizon
        column = self.values[:, channel : channel + 1]
        return (
            column[begin:border],
            column[border:end],
            self.marks[begin:border],
            (self.marks[border:end]),
        )


class Loop:
    """Train or score `network` ([B, L, 1] -> [B, >= H, 1]) over a `DataLoader` without workers."""

    def __init__(
        self, network: nn.Module, data: WindowDataset, batch_size: int, device: torch.device
    ) -> None:
        self.network, self.horizon, self.device = network.to(device), data.horizon, device
        self.loader = DataLoader(data, batch_size, shuffle=True, num_workers=0)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=3e-5)
        self._batches: Iterator[list[Tensor]] = iter(())

    def train(self, num_steps: int) -> int:
        """Adam on the MSE of the last H outputs; returns the windows trained on."""
        self.network.train()
        num_windows, total = 0, torch.zeros((), device=self.device)
        for past, future in self._next(num_steps):
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.network(past)[:, -self.horizon :], future)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.detach()
            num_windows += len(past)
        float(total)
        return num_windows

    @torch.no_grad()
    def score(self, num_batches: int) -> int:
        """MSE batch by batch; returns the windows scored."""
        self.network.eval()
        errors, sizes = [], []
        for past, future in self._next(num_batches):
            predicted = self.network(past)[:, -self.horizon :].cpu()
            errors.append(float(nn.functional.mse_loss(predicted, future.cpu())))
            sizes.append(len(past))
        np.average(errors, weights=sizes)
        return sum(sizes)

    def _next(self, num_batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches as float32 on the device; a new epoch begins when the loader runs dry."""
        for _ in range(num_batches):
            batch = next(self._batches, None)
            if batch is None:
                self._batches = iter(self.loader)
                batch = next(self._batches)
            past, future, *_ = (part.float().to(self.device) for part in batch)
            yield past, future


class FromOurs(nn.Module):
    """A network of this package behind the rival's shapes: only the loop differs then."""

    def __init__(self, model: LTSM, horizon: int) -> None:
        super().__init__()
        self.model, self.horizon = model, horizon

    def forward(self, past: Tensor) -> Tensor:
        """[B, L, 1] -> [B, H, 1]."""
        return self.model._forecast(past.transpose(1, 2), self.horizon).transpose(1, 2)


class Timer1(nn.Module):
    """Timer 1.0, an encoder of patches: [B, L, 1] -> [B, L, 1], patch i predicts patch i + 1."""

    def __init__(self, patch: int, width: int, inner: int, layers: int, heads: int) -> None:
        super().__init__()
        self.patch = patch
        self.embedding = nn.Linear(patch, width, bias=False)
        self.register_buffer("places", _sinusoids(5000, width))
        self.layers = nn.ModuleList(_Layer(width, inner, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, patch)
        self.dropout = nn.Dropout(0.1)

    def forward(self, past: Tensor) -> Tensor:
        mean = past.mean(1, keepdim=True).detach()
        past = past - mean
        std = torch.sqrt(past.var(1, keepdim=True, unbiased=False) + 1e-5).detach()
        past = (past / std).permute(0, 2, 1)
        tokens = past.unfold(-1, self.patch, self.patch).reshape(len(past), -1, self.patch)
        hidden = self.embedding(tokens) + self.get_buffer("places")[:, : tokens.shape[1]]
        hidden = self.dropout(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        predicted: Tensor = self.head(self.norm(hidden)).reshape(len(past), 1, -1)
        return predicted.permute(0, 2, 1) * std + mean


class _Layer(nn.Module):
    """Post-norm; the feed-forward maps are 1x1 convolutions between transposes."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = _maps(width, 4)
        self.widen, self.narrow = nn.Conv1d(width, inner, 1), nn.Conv1d(inner, width, 1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm1(hidden + self.dropout(self._attend(hidden)))
        inner = self.widen(hidden.transpose(-1, 1))
        inner = self.dropout(nn.functional.gelu(inner))
        inner = self.dropout(self.narrow(inner).transpose(-1, 1))
        normed: Tensor = self.norm2(hidden + inner)
        return normed

    def _attend(self, hidden: Tensor) -> Tensor:
        size, length, width = hidden.shape
        query, key, value = (
            part(hidden).view(size, length, self.heads, -1)
            for part in (self.query, self.key, self.value)
        )
        scores = torch.einsum("blhe,bshe->bhls", query, key)
        later = torch.ones(size, 1, length, length, dtype=torch.bool, device=hidden.device).triu(1)
        scores.masked_fill_(later, -math.inf)
        weights = self.dropout(torch.softmax(scores * (width // self.heads) ** -0.5, dim=-1))
        mixed = torch.einsum("bhls,bshd->blhd", weights, value).contiguous()
        projected: Tensor = self.out(mixed.view(size, length, -1))
        return projected


def _maps(width: int, count: int) -> list[nn.Linear]:
    return [nn.Linear(width, width) for _ in range(count)]


def _sinusoids(num_places: int, width: int) -> Tensor:
    angle = torch.arange(num_places)[:, None] * torch.exp(
        torch.arange(0, width, 2) * (-math.log(10_000.0) / width)
    )
    return torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(1, num_places, width)
