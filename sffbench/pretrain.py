"""Small checkpoints made here, so that the whole pipeline means something without a network.

    pretrain("ttm:tiny", "folder", seed=0)      # config.json, model.safetensors, card.json
    run("ttm:tiny")                             # the packaged one again, as its card says

Trains a randomly created preset with its own loss on windows of synthetic series (Gaussian-process
kernel mixtures, trend, seasons, noise). One thread and seeded streams: the same call on the same
machine and torch gives the same bytes. No real series is ever seen, so nothing can leak.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from sffbench import models
from sffbench.data import synthetic
from sffbench.errors import InputError
from sffbench.models import checkpoint
from sffbench.models.base import LTSM

OnStep = Callable[[int, float], None]  # (step, loss), after every step
STEPS = 5000
SERIES_LENGTH = 1536


def pretrain(
    name: str,
    out: str | Path,
    *,
    steps: int = STEPS,
    seed: int = 0,
    batch: int = 256,
    lr: float = 2e-3,
    num_series: int = 20_000,
    progress: OnStep | None = None,
) -> dict[str, Any]:
    """Train `name` ("model:preset") from scratch and write a checkpoint folder; returns its card.

    AdamW (weight decay 0.01), 5 % warm-up, cosine to 0, gradients clipped to norm 1; `batch`
    windows a step at random places of random series. Raises `InputError` for an unknown preset or a
    count below 1.
    """
    for what, given in (("steps", steps), ("batch", batch), ("num_series", num_series)):
        if given < 1:
            raise InputError(f"{what} must be >= 1, given {given}")
    folder = Path(out)
    card = {
        "model": name,
        "steps": steps,
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "generator": {
            "name": "kernel_synth",
            "version": synthetic.VERSION,
            "num_series": num_series,
            "length": SERIES_LENGTH,
        },
    }
    model = models.create(name, seed=seed)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # dropout
            losses = _train(model, _windows(model, num_series, batch, seed), steps, lr, progress)
    finally:
        torch.set_num_threads(num_threads)
    card["train_loss"] = round(sum(losses[-100:]) / len(losses[-100:]), 4)
    _save(model, folder, card)
    return card


def run(
    name: str, out: str | Path | None = None, *, steps: int | None = None, seed: int | None = None
) -> Path:
    """What `sffbench pretrain` does: `pretrain` with a progress bar; returns the folder written.

    Without `out`, the packaged weights of a `tiny` preset are replaced; others need a folder. What
    is not given is as on the packaged card, if there is one.
    """
    from rich import progress as bars
    from rich.console import Console

    model, preset = models.parse(name)
    if out is None and preset != "tiny":
        raise InputError(f"{name} is not packaged: name a folder to write")
    packaged = checkpoint.PACKAGED / f"{model}-{preset}"
    folder = Path(out) if out is not None else packaged
    given = {"steps": steps, "seed": seed}
    recipe = _recipe(packaged) | {key: value for key, value in given.items() if value is not None}
    loss_column = bars.TextColumn("loss {task.fields[loss]:.3f}")
    columns = (bars.BarColumn(), bars.MofNCompleteColumn(), loss_column, bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=recipe["steps"], loss=float("nan"))

        def show(step: int, loss: float) -> None:
            bar.update(task, completed=step, loss=loss)

        pretrain(name, folder, progress=show, **recipe)
    return folder


def _recipe(folder: Path) -> dict[str, Any]:
    """The arguments of `pretrain` by which a packaged checkpoint was made."""
    path = folder / "card.json"
    if not path.is_file():
        return {"steps": STEPS}
    card = json.loads(path.read_text(encoding="utf-8"))
    recipe = {key: card[key] for key in ("steps", "seed", "batch", "lr")}
    return recipe | {"num_series": card["generator"]["num_series"]}


def _windows(
    model: LTSM, num_series: int, batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches ([B, 1, L], [B, 1, H]) from random places of the corpus."""
    total = model.lookback + model.horizon
    length = max(SERIES_LENGTH, total)
    corpus = torch.from_numpy(synthetic.kernel_synth(num_series, length, seed))
    places = corpus.unfold(1, total, 1)  # [series, start, L + H], a view
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(corpus), (batch,), generator=generator)
        starts = torch.randint(places.shape[1], (batch,), generator=generator)
        windows = places[rows, starts][:, None]
        yield windows[..., : model.lookback], windows[..., model.lookback :]


def _train(
    model: LTSM,
    windows: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    lr: float,
    progress: OnStep | None,
) -> list[float]:
    """The loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    losses: list[float] = []
    model.train()
    for step in range(1, steps + 1):
        past, future = next(windows)
        optimizer.zero_grad()
        loss = model.loss(past, future)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if progress:
            progress(step, losses[-1])
    model.eval()
    return losses


def _save(model: LTSM, folder: Path, card: dict[str, Any]) -> None:
    """The three files of a checkpoint folder, in the layout that `models.load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))
    for leaf, content in (("config.json", model.config), ("card.json", card)):
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (folder / leaf).write_text(text, encoding="utf-8")
