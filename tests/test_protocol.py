"""Protocols: their published numbers, and a budget that overrides them."""

import pytest
from pydantic import ValidationError

from sffbench import protocol
from sffbench.errors import InputError
from sffbench.protocol import Budget, Protocol


def test_the_six_protocols_are_registered() -> None:
    accuracy, speed = protocol.names()[:4], protocol.names()[4:]
    assert accuracy == ["quick", "standard", "full-shot", "sff-paper"]
    assert speed == ["speed", "speed-gpu"]
    assert not any(protocol.get(name).ranked or protocol.get(name).selects for name in speed)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("quick", {"max_steps": 60, "batch_size": 64, "num_test": 512, "ranked": False}),
        (
            "standard",
            {
                "max_steps": 300,
                "batch_size": 256,
                "validate_every": 50,
                "num_validation": 4096,
                "num_snapshots": 2,
                "num_test": None,
                "optimizer": "adamw",
                "schedule": "cosine",
                "clip_norm": 1.0,
                "loss": "own",
                "oracle": False,
            },
        ),
        ("full-shot", {"epochs": 10, "patience": 3, "max_steps": None, "num_validation": None}),
        (
            "sff-paper",
            {
                "epochs": 10,
                "batch_size": 2048,
                "optimizer": "adam",
                "lr": 3e-5,
                "schedule": "halving",
                "loss": "forecast",
                "lookback": 672,
                "oracle": True,
                "clip_norm": None,
            },
        ),
    ],
)
def test_the_numbers_of_a_protocol_are_the_documented_ones(
    name: str, numbers: dict[str, object]
) -> None:
    resolved = protocol.get(name).model_dump()
    assert {key: resolved[key] for key in numbers} == numbers


def test_an_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'standard'"):
        protocol.get("standart")


def test_a_budget_in_steps_replaces_one_in_epochs_and_the_other_way_round() -> None:
    stepped = protocol.get("full-shot").with_budget(Budget(max_steps=7))
    assert (stepped.max_steps, stepped.epochs) == (7, None)
    passes = protocol.get("standard").with_budget(Budget(epochs=2))
    assert (passes.max_steps, passes.epochs) == (None, 2)


def test_an_empty_budget_changes_nothing() -> None:
    assert protocol.get("standard").with_budget(Budget()) == protocol.get("standard")


def test_a_budget_leaves_the_other_rules_alone() -> None:
    before = protocol.get("standard").model_dump()
    after = protocol.get("standard").with_budget(Budget(batch_size=3)).model_dump()
    assert after == before | {"batch_size": 3}


def test_both_kinds_of_length_are_refused() -> None:
    with pytest.raises(ValidationError, match="exactly one of max_steps, epochs and train_s"):
        protocol.get("standard").with_budget(Budget(max_steps=3, epochs=1))


@pytest.mark.parametrize(
    "field",
    [
        "max_steps",
        "batch_size",
        "validate_every",
        "num_validation",
        "patience",
        "num_test",
        "lookback",
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_below_one_is_refused(field: str, value: int) -> None:
    fields = {"name": "mine", "max_steps": 1, "batch_size": 1} | {field: value}
    with pytest.raises(ValidationError, match="must be at least 1"):
        Protocol(**fields)


def test_without_snapshots_nothing_is_selected_so_nothing_may_ask_for_validation() -> None:
    fields = {"name": "mine", "max_steps": 1, "batch_size": 1, "num_snapshots": 0}
    assert not Protocol(**fields).selects
    for unfit in ({"patience": 1}, {"oracle": True}):
        with pytest.raises(ValidationError, match="validates nothing"):
            Protocol(**fields | unfit)
    with pytest.raises(ValidationError, match="must be at least 1"):
        Protocol(**fields | {"num_snapshots": -1})


def test_a_protocol_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        protocol.get("standard").batch_size = 1  # type: ignore[misc]
