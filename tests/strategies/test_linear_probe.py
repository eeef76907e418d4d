"""The linear probe trains the head and nothing else; zero-shot trains nothing."""

from collections.abc import Callable
from pathlib import Path

import torch

from sffbench import models, strategies
from sffbench.training import Trained

Fit = Callable[..., Trained]


def _changed(trained: Trained, folder: Path) -> set[str]:
    before = dict(models.load("ttm", folder).named_parameters())
    after = trained.model.named_parameters()
    return {name for name, value in after if not torch.equal(before[name], value)}


def test_a_linear_probe_changes_the_parameters_of_the_head_and_no_other(
    fit: Fit, small_ttm: Path
) -> None:
    trained = fit("linear-probe")
    prefixes = trained.model.head_prefixes
    head = {n for n, _ in trained.model.named_parameters() if n.startswith(prefixes)}
    assert head
    assert _changed(trained, small_ttm) == head


def test_a_linear_probe_counts_the_parameters_that_it_trains(fit: Fit) -> None:
    trained = fit("linear-probe")
    head = [
        p.numel()
        for n, p in trained.model.named_parameters()
        if n.startswith(trained.model.head_prefixes)
    ]
    assert trained.num_trained == sum(head)


def test_a_linear_probe_has_a_learning_rate_of_its_own() -> None:
    assert strategies.get("linear-probe").lr == 1e-3
    assert strategies.get("linear-probe", lr=0.5).lr == 0.5


def test_zero_shot_changes_nothing(fit: Fit, small_ttm: Path) -> None:
    trained = fit("zero-shot", lr=None)
    assert _changed(trained, small_ttm) == set()
    assert trained.num_trained == 0
