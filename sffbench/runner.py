"""RunSpec -> Record: load, train, select on validation, and only then look at the test windows.

    record = run(spec, device=torch.device("cpu"))

A run ends as `ok`, `n/a` (the model cannot do this cell) or `failed` (with a typed reason); an
exception never leaves here, except the user's own interrupt.
"""

from __future__ import annotations

import datetime
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sffbench import data, measure, models, networks, strategies
from sffbench.data.dataset import Dataset
from sffbench.data.windows import Windows, split
from sffbench.errors import InputError, NotApplicable
from sffbench.measure import MemoryMeter, Stopwatch
from sffbench.models.base import LTSM, evaluating
from sffbench.protocol import Protocol
from sffbench.store import SCHEMA, Record
from sffbench.strategies import Strategy
from sffbench.suite import RunSpec, digest
from sffbench.tasks import Forecast, Scores
from sffbench.tasks.forecast import EVAL_BATCH, Forecaster
from sffbench.training import Diverged, Progress, Trained, train


def run(
    spec: RunSpec, device: torch.device, progress: Progress = lambda step, total: None
) -> Record:
    """Run one cell. Everything that can go wrong becomes part of the record."""
    record = _header(spec, device)
    memory = MemoryMeter(device)
    try:
        record |= Run(spec, device, memory).execute(progress, record["flags"])
        record["status"] = "ok"
    except NotApplicable as reason:
        record |= {"status": "n/a", "reason": str(reason)}
    except Diverged as reason:
        record |= {"status": "failed", "reason": f"diverged: {reason}"}
    except torch.OutOfMemoryError:
        record |= {"status": "failed", "reason": "out of memory with a micro-batch of one window"}
    except InputError as reason:
        record |= {"status": "failed", "reason": str(reason)}
    except Exception as error:  # a plug-in may raise anything
        words = " ".join(f"{type(error).__name__}: {error}".split())
        record |= {"status": "failed", "reason": words}
    memory.lap()
    record["cost"]["peak_memory_bytes"] = memory.highest
    return record | {"finished_at": _now()}


def failed(spec: RunSpec, device: torch.device, reason: str) -> Record:
    """The record of a run that could not write its own."""
    return _header(spec, device) | {"status": "failed", "reason": reason, "finished_at": _now()}


def performance_key(spec: RunSpec, environment: dict[str, Any]) -> str:
    """Accuracy key, device and software; the commit is told, but a commit is no other machine."""
    hardware = {key: value for key, value in environment.items() if key not in ("commit", "dirty")}
    return digest({"cell": spec.key, "environment": hardware})


def _header(spec: RunSpec, device: torch.device) -> Record:
    environment = measure.environment(device)
    return {
        "schema": SCHEMA,
        "status": "failed",
        "reason": None,
        "key": spec.key,
        "performance_key": performance_key(spec, environment),
        "label": spec.label,
        "cell": spec.cell,
        "metrics": {},
        "validation": {},
        "curve": [],
        "cost": {},
        "environment": environment,
        "warnings": [],
        "flags": _flags(spec),
        "official": None,
        "started_at": _now(),
    }


def _flags(spec: RunSpec) -> dict[str, Any]:
    """What a reader of the row must know beside its number."""
    cell, entry = spec.cell, data.get(spec.cell["data"]["name"])
    flags = {
        "synthetic": cell["data"]["source"] == "synthetic",
        "tiny": cell["model"]["preset"] == "tiny",
        "untrained": networks.is_random(cell["model"]),
        "ranked": cell["protocol"]["ranked"],
        "timed": cell["lr"] is not None and cell["protocol"].get("train_s") is not None,
        "cluster": entry.cluster,
        "unrolled": False,
        "leaked": "unknown",
        "head": None,
    }
    if cell["model"]["name"] == "none":
        return flags | {"leaked": "no"}
    if cell["model"]["preset"] != "custom":
        card = models.preset(f"{cell['model']['name']}:{cell['model']['preset']}")
        flags["unrolled"] = cell["task"]["horizon"] > card.horizon
        # no real series in pretraining or in data
        made_here = flags["tiny"] or flags["synthetic"] or flags["untrained"]
        flags["leaked"] = "no" if made_here else card.overlap.get(entry.name, "unknown")
    return flags


@dataclass(frozen=True)
class Network:
    """Where the network of a cell comes from. A strategy's `ctx` holds it: it leads to no data."""

    name: str
    source: str | None
    weights_file: str
    identity: dict[str, Any]
    lookback: int
    horizon: int
    frequency: str
    device: torch.device
    strategy: Strategy
    num_rows: int  # of the training part
    seed: int

    def load(self) -> LTSM:
        """The network that training starts from: the model's, or one that the strategy brings.

        Its lookback and horizon are the cell's: a head made for one horizon follows it.
        """
        model = self._pretrained() if self.strategy.needs_model else self._brought()
        model.at_frequency(self.frequency)
        return model.to(self.device)

    def _brought(self) -> LTSM:
        return self.strategy.network(  # type: ignore[attr-defined, no-any-return]
            self.lookback, self.horizon, self.num_rows, self.seed
        )

    def _pretrained(self) -> LTSM:
        """With the weights that were hashed when the run was planned."""
        where = (self.name, self.source, self.weights_file, self.identity["options"])
        hashes = networks.describe(*where)
        _expect("the model's config", hashes[0], self.identity["config"])
        _expect("the model's weights", hashes[1], self.identity["weights"])
        return networks.build(*where, lookback=self.lookback, horizon=self.horizon)

    def state(self) -> dict[str, Tensor]:
        """The pretrained state, read anew."""
        return self.load().state_dict()


@dataclass
class Run:
    """One cell in the making; `sffbench.conformance` runs its training part alone."""

    spec: RunSpec
    device: torch.device
    memory: MemoryMeter

    def __post_init__(self) -> None:
        cell = self.spec.cell
        for plugin in self.spec.places.plugins:
            strategies.load_plugin(plugin)
        self.protocol = Protocol(**cell["protocol"])
        self.strategy = strategies.get(cell["strategy"]["name"], **cell["strategy"]["fields"])
        if strategies.identity(self.strategy) != cell["strategy"]:
            raise InputError(f"strategy {self.strategy.name!r} changed since the run was planned")
        self.task = Forecast(cell["task"]["horizon"], self.protocol.loss)
        self.dataset = _dataset(
            cell["data"]["name"], self.spec.places.data or "", cell["data"]["source"]
        )
        _expect("the data set's file", self.dataset.sha256, cell["data"]["sha256"])

    def execute(self, progress: Progress, flags: dict[str, Any]) -> Record:
        """The record's measured part; `flags` learns what only the loaded model can tell."""
        facts = {"warnings": list(self.dataset.warnings), "official": self.dataset.official}
        if not self.strategy.needs_model and not self.strategy.trains:
            return self._naive() | facts
        model = self.network.load()
        flags["head"] = "random" if model.new_head or flags["untrained"] else "pretrained"
        flags["unrolled"] = flags["unrolled"] and not model.new_head  # made for this horizon
        self.refuse_impossible(model)
        trained = self.train(model, progress)
        train_peak = self.memory.lap()
        record = self._tested(trained) | facts
        record["cost"]["train_peak_memory_bytes"] = train_peak if trained.num_trained else None
        return record

    @functools.cached_property
    def network(self) -> Network:
        """Where this cell's network comes from."""
        cell, identity = self.spec.cell, self.spec.cell["model"]
        custom = identity["preset"] == "custom"
        return Network(
            identity["name"] if custom else f"{identity['name']}:{identity['preset']}",
            self.spec.model_source,
            self.spec.weights_file,
            identity,
            cell["lookback"],
            self.task.horizon,
            self.dataset.frequency,
            self.device,
            self.strategy,
            self.dataset.borders[0],
            cell["seed"],
        )

    def refuse_impossible(self, model: LTSM) -> None:
        """Raise `NotApplicable` for a cell that this model cannot do."""
        if "forecast" not in model.capabilities:
            raise NotApplicable(f"{model.name} does not forecast")
        if model.num_channels not in (None, 1):
            raise NotApplicable(
                f"this {model.name} takes windows of {model.num_channels} channels, "
                "suites cut windows of one"
            )
        if not self.strategy.trains and networks.is_random(self.spec.cell["model"]):
            raise NotApplicable("random weights: there is nothing pretrained to score")
        if not self.strategy.trains and "zero-shot" not in model.capabilities:
            raise NotApplicable(f"{model.name} has no pretrained forecasting head")

    def _split(self, part: Any) -> Windows:
        lookback = self.spec.cell["lookback"]
        return split(self.dataset, part, lookback, self.task.horizon, self.device)

    def train(self, model: LTSM, progress: Progress = lambda step, total: None) -> Trained:
        """Fine-tune by the cell's strategy; only windows before the test border are made."""
        cell = self.spec.cell
        return train(
            model,
            self.strategy,
            self.task,
            self._split("train"),
            self._split("validation"),
            self.protocol,
            lr=cell["lr"],
            seed=cell["seed"],
            reload=self.network.state,  # most strategies never ask
            progress=progress,
        )

    def _tested(self, trained: Trained) -> Record:
        """Test windows are made here, after training has ended."""
        windows, watch = self._split("test"), Stopwatch(self.device)
        batch = None if self.protocol.selects else self._warm_up(trained.model, windows)
        scores = self._score(trained.model, windows, watch, batch)
        oracle = [
            {"step": s.step, "mse": self._score(s.model, windows, Stopwatch(self.device)).mse}
            for s in trained.snapshots
        ]
        metrics = _metrics(scores, windows, self.dataset)
        if oracle:
            metrics["oracle"] = min(oracle, key=lambda point: point["mse"])
        return {
            "metrics": metrics,
            "validation": {
                "selected_step": trained.selected_step,
                "mse": trained.validation_mse,
                "num_windows": trained.num_validation_windows,
                "candidates": trained.candidates,
            },
            "curve": trained.curve,
            "cost": _cost(trained, scores, watch) | {"test_peak_memory_bytes": self.memory.lap()},
        }

    def _warm_up(self, model: LTSM, windows: Windows) -> int:
        """Forecast once unmeasured, as validation has done where there is any.

        Returns the batch that memory allowed. A GPU picks its kernels by shape and gets a whole
        batch; on a CPU one window shows the way.
        """
        size = 1 if self.device.type == "cpu" else EVAL_BATCH["cuda"]
        index = _test_index(len(windows), self.protocol.num_test)
        first = (torch.arange(len(windows)) if index is None else index)[:size]
        with evaluating(model):
            batch = self.task.evaluate(model._forecast, windows, first).batch_size
        self.memory.lap()
        return batch if batch < len(first) else EVAL_BATCH[self.device.type]

    def _score(
        self, model: LTSM, windows: Windows, watch: Stopwatch, batch: int | None = None
    ) -> Scores:
        with evaluating(model):
            return self._evaluate(model._forecast, windows, watch, batch)

    def _evaluate(
        self,
        forecaster: Forecaster,
        windows: Windows,
        watch: Stopwatch,
        batch: int | None = None,
    ) -> Scores:
        index = _test_index(len(windows), self.protocol.num_test)
        with watch.running():
            return self.task.evaluate(forecaster, windows, index, batch_size=batch)

    def _naive(self) -> Record:
        windows, watch = self._split("test"), Stopwatch(self.device)
        forecaster = self.strategy.forecast  # type: ignore[attr-defined]
        scores = self._evaluate(forecaster, windows, watch)
        return {
            "metrics": _metrics(scores, windows, self.dataset),
            "cost": _test_cost(scores, watch),
        }


def _test_index(num_windows: int, num_test: int | None) -> Tensor | None:
    """All windows, or `num_test` of them at an even stride, the same for every strategy."""
    if num_test is None or num_test >= num_windows:
        return None
    return torch.arange(num_test) * num_windows // num_test


def _metrics(scores: Scores, windows: Windows, dataset: Dataset) -> dict[str, Any]:
    if not math.isfinite(scores.mse):
        raise Diverged(f"test error is {scores.mse}")
    return {
        "mse": scores.mse,
        "mae": scores.mae,
        "mase": scores.mase(dataset.mase_scale),
        "num_windows": scores.num_windows,
        "num_starts": windows.num_starts,
        # A sample of the test windows may leave a channel out.
        "mse_per_channel": [mse if math.isfinite(mse) else None for mse in scores.mse_per_channel],
    }


def _cost(trained: Trained, scores: Scores, test: Stopwatch) -> dict[str, Any]:
    """Seconds are of everything; rates leave out the first steps (`training.WARM_UP_STEPS`)."""
    steps, cold = trained.steps, trained.warm_up
    num_warm = trained.num_train_windows - trained.num_warm_up_windows
    cost = {
        "num_steps": trained.num_steps,
        "prepare_s": trained.preparation.wall_s,
        "prepare_cpu_s": trained.preparation.cpu_s,
        "train_s": steps.wall_s,
        "train_cpu_s": steps.cpu_s,
        "warm_up_s": cold.wall_s,
        "validate_s": trained.validation.wall_s,
        "train_windows": trained.num_train_windows,
        "warm_up_windows": trained.num_warm_up_windows,
        "train_windows_per_s": _rate(num_warm, steps.wall_s - cold.wall_s),
        "train_windows_per_cpu_s": _rate(num_warm, steps.cpu_s - cold.cpu_s),
        "train_batch": trained.micro_batch,
        "num_parameters": sum(p.numel() for p in trained.model.parameters()),
        "num_trained": trained.num_trained,
    }
    return cost | _test_cost(scores, test)


def _test_cost(scores: Scores, watch: Stopwatch) -> dict[str, Any]:
    return {
        "test_s": watch.wall_s,
        "test_cpu_s": watch.cpu_s,
        "test_windows": scores.num_windows,
        "test_batch": scores.batch_size,
        "test_windows_per_s": _rate(scores.num_windows, watch.wall_s),
        "test_windows_per_cpu_s": _rate(scores.num_windows, watch.cpu_s),
    }


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count and seconds > 0 else None


def _expect(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise InputError(f"{what} changed since the run was planned ({found[:12]} is on disk)")


@functools.lru_cache(maxsize=4)
def _dataset(name: str, root: str, source: Any) -> Dataset:
    return data.load(name, root, source=source)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
