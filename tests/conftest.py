"""Fixtures shared by all tests: real data and checkpoints where present, one thread, no network."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from sffbench.data.dataset import Dataset
    from sffbench.models.base import LTSM
    from sffbench.suite import RunSpec
    from sffbench.training import Trained


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    skip = pytest.mark.skip(reason="slow: run with `make test-all`")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


NOT_APPLICABLE = "n/a: "


@pytest.fixture(scope="session")
def not_applicable() -> Callable[[str], NoReturn]:
    """`not_applicable(reason)` ends a test of something that the model declares it cannot do."""

    def skip(reason: str) -> NoReturn:
        pytest.skip(NOT_APPLICABLE + reason)

    return skip


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests no model was asked to pass: they are counted apart from other skips."""
    skipped = terminalreporter.getreports("skipped")
    declared = [
        report for report in skipped if f"Skipped: {NOT_APPLICABLE}" in str(report.longrepr)
    ]
    terminalreporter.write_line(f"n/a by declared capability: {len(declared)}")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine's own loopback may be reached from a test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if host not in ("", "127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {host}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


def _folder(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value or not Path(value).is_dir():
        pytest.skip(f"{what} is not here (set {variable})")
    return Path(value).resolve()


@pytest.fixture
def real_data() -> Path:
    """Folder of the real CSV files."""
    return _folder("SFFBENCH_DATA", "real data")


@pytest.fixture
def checkpoints() -> Path:
    """Folder of pretrained checkpoints, one sub-folder each."""
    return _folder("SFFBENCH_CHECKPOINTS", "a pretrained checkpoint")


# A network of 3,000 weights and a suite of a few seconds: what most tests below run on. --------

SMALL_TTM = {
    "context_length": 32,
    "prediction_length": 8,
    "patch_length": 8,
    "d_model": 16,
    "decoder_d_model": 16,
    "adaptive_patching_levels": 0,
    "num_layers": 1,
    "decoder_num_layers": 1,
}
SMALL_BUDGET = {"max_steps": 4, "batch_size": 16, "validate_every": 2, "num_validation": 64}


@pytest.fixture(scope="session")
def small_ttm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a small TTM (L = 32, H = 8) with random weights."""
    from safetensors.torch import save_file

    from sffbench import models

    folder = tmp_path_factory.mktemp("checkpoint") / "ttm-small"
    folder.mkdir()
    model = models.create("ttm:tiny", seed=7, **SMALL_TTM)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config))
    return folder


@pytest.fixture
def suite_fields(small_ttm: Path) -> Callable[..., dict[str, Any]]:
    """suite_fields(**changes): a suite of one short run on synthetic data, as a dictionary."""

    def fields(**changes: Any) -> dict[str, Any]:
        return {
            "name": "small",
            "protocol": "quick",
            "data": "synthetic",
            "models": [{"name": "ttm", "source": str(small_ttm)}],
            "datasets": ["ETTh1"],
            "horizons": [8],
            "seeds": [0],
            "strategies": ["full"],
            "budget": SMALL_BUDGET,
        } | changes

    return fields


@pytest.fixture
def cells_of(suite_fields: Callable[..., dict[str, Any]]) -> Callable[..., list[RunSpec]]:
    """cells_of(plugins=(), **changes): the cells of that suite."""
    from sffbench import cells
    from sffbench.suite import Places, Suite

    def specs(plugins: tuple[str, ...] = (), **changes: Any) -> list[RunSpec]:
        return cells.expand(Suite(**suite_fields(**changes)), Places(plugins=plugins))

    return specs


@pytest.fixture
def forget_strategies() -> Iterator[None]:
    """Strategies that a test registers are gone afterwards."""
    from sffbench import strategies
    from sffbench.strategies.base import registry

    strategies.names()
    kept = dict(registry())
    yield
    registry().clear()
    registry().update(kept)
    strategies._LOADED.clear()


@pytest.fixture
def fit(small_ttm: Path) -> Callable[..., Trained]:
    """fit("sff", alpha=0.5): the small TTM after four steps; `protocol` fields as keywords."""
    from sffbench import data, models, strategies
    from sffbench.data.windows import split
    from sffbench.protocol import Protocol
    from sffbench.tasks import Forecast
    from sffbench.training import train

    rules = {"name": "test", "max_steps": 4, "batch_size": 16, "validate_every": 2}
    rules |= {"num_validation": 64}

    def run(
        strategy: str | strategies.Strategy = "full",
        *,
        seed: int = 0,
        lr: float | None = 1e-2,
        dataset: Dataset | None = None,
        protocol: dict[str, Any] | None = None,
        model: LTSM | None = None,
        **fields: Any,
    ) -> Trained:
        if isinstance(strategy, str):
            strategy = strategies.get(strategy, **fields)
        model = model or models.load("ttm", small_ttm)
        dataset = dataset or data.load("ETTh1", "", source="synthetic")
        pretrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        rulebook = Protocol(**(rules | (protocol or {})))
        return train(
            model,
            strategy,
            Forecast(8, rulebook.loss),
            split(dataset, "train", 32, 8),
            split(dataset, "validation", 32, 8),
            rulebook,
            lr=strategy.lr or lr,
            seed=seed,
            reload=lambda: pretrained,
        )

    return run
