"""Chains: what they are equal to, what they refuse, and how a suite and a key spell them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sffbench import cells, models, runner, strategies
from sffbench.errors import InputError
from sffbench.models.base import LTSM
from sffbench.strategies import Strategy
from sffbench.strategies.chain import Chain
from sffbench.suite import Places, RunSpec, Suite
from sffbench.training import Trained

Fit = Callable[..., Trained]
PLUGIN = """
from typing import ClassVar
from sffbench.strategies import Strategy

class Halve(Strategy):
    name: ClassVar[str] = "halve"
    def prepare(self, model, ctx):
        for parameter in model.parameters():
            parameter.data.mul_(0.5)
        return model
"""


def chain(*links: Any, **fields: Any) -> Strategy:
    return strategies.get("chain", links=list(links), **fields)


def same_run(left: Trained, right: Trained) -> bool:
    ours, theirs = left.model.state_dict(), right.model.state_dict()
    curves = [[p["train_loss"] for p in one.curve] for one in (left, right)]
    same = ours.keys() == theirs.keys() and curves[0] == curves[1]
    return same and all(torch.equal(ours[name], theirs[name]) for name in ours)


# -- what a chain is equal to ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("links", "alone"),
    [
        ((), "full"),
        (("full", "full"), "full"),
        (("sff", "full"), "sff"),
        (("full", "sff"), "sff"),
        (("full", "sam"), "sam"),
        (("lp-ff", "full"), "lp-ff"),
        (("swa", "full"), "swa"),
        (("full", "linear-probe"), "linear-probe"),
    ],
)
def test_a_chain_with_full_is_the_other_link_bit_for_bit(
    fit: Fit, links: tuple[str, ...], alone: str
) -> None:
    assert same_run(fit(chain(*links)), fit(alone))


def test_sff_and_sam_is_sam_from_smoothed_weights(fit: Fit, small_ttm: Path) -> None:
    from sffbench.strategies.smoothing import mix_with_random_twin

    smoothed = models.load("ttm", small_ttm)
    mix_with_random_twin(smoothed, 0.7, seed=0)
    both = fit(chain({"name": "sff", "alpha": 0.7}, "sam"))
    assert same_run(both, fit("sam", model=smoothed))
    assert not same_run(both, fit("sff"))


def test_sff_and_lora_is_lora_from_smoothed_weights(fit: Fit, small_ttm: Path) -> None:
    pytest.importorskip("peft")
    from sffbench.strategies.smoothing import mix_with_random_twin

    smoothed = models.load("ttm", small_ttm)
    mix_with_random_twin(smoothed, 0.7, seed=0)
    both = fit(chain("sff", "lora"))
    assert same_run(both, fit("lora", model=smoothed))
    assert list(both.model.state_dict()) == list(models.load("ttm", small_ttm).state_dict())


def test_the_probe_of_one_link_steps_as_another_says(fit: Fit) -> None:
    both = fit(chain("lp-ff", "sam"))
    assert not same_run(both, fit("lp-ff"))
    assert not same_run(both, fit("sam"))
    assert same_run(both, fit(chain("sam", "lp-ff")))


class Shift(Strategy):
    """theta <- theta + 0.01 before training."""

    def prepare(self, model: LTSM, ctx: Any) -> LTSM:
        assert ctx.state == {}
        ctx.state["mine"] = True
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01
        return model


Shift.name = "shift"  # set afterwards: named in its body, it would be registered


class Shrink(Strategy):
    """theta <- theta / 2 before training."""

    def prepare(self, model: LTSM, ctx: Any) -> LTSM:
        assert ctx.state == {}
        ctx.state["mine"] = True
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 0.5
        return model


Shrink.name = "shrink"


def test_the_order_of_links_matters() -> None:
    """(theta + c) / 2 is not theta / 2 + c; each link finds its own state empty."""
    theta = next(_start()[0].parameters())
    ends = (Shift(), Shrink()), (Shrink(), Shift())
    first, second = (next(Chain(links=pair).prepare(*_start()).parameters()) for pair in ends)
    assert torch.equal(first, (theta + 0.01) * 0.5)
    assert torch.equal(second, theta * 0.5 + 0.01)


def _start() -> tuple[Any, Any]:
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, 0.3)
    return model, SimpleNamespace(state={})


def test_hooks_are_called_in_order_and_finish_in_reverse(fit: Fit) -> None:
    called: list[str] = []

    def link(title: str) -> Strategy:
        class Said(Strategy):
            def prepare(self, model: LTSM, ctx: Any) -> LTSM:
                called.append(f"prepare {title}")
                return model

            def eval_model(self, model: LTSM, ctx: Any) -> LTSM:
                called.append(f"eval {title}")
                return model

            def finish(self, model: LTSM, ctx: Any) -> LTSM:
                called.append(f"finish {title}")
                return model

        Said.name = title
        return Said()

    fit(Chain(links=(link("a"), link("b"))), protocol={"max_steps": 2})
    assert called == ["prepare a", "prepare b", "eval a", "eval b", "finish b", "finish a"]


# -- what a chain is asked -------------------------------------------------------------------------


def test_a_chain_trains_if_any_link_does_and_is_seeded_likewise() -> None:
    assert chain("smoothed-zero-shot", "full").trains is True
    assert chain("smoothed-zero-shot", "zero-shot").trains is False
    assert chain("smoothed-zero-shot", "zero-shot").seeded is True
    assert chain("zero-shot", "zero-shot").seeded is False


@pytest.mark.parametrize(
    ("links", "own", "expected"),
    [
        (["sff", "full"], None, None),
        (["sff", "linear-probe"], None, 1e-3),
        ([{"name": "full", "lr": 0.5}, "sff"], None, 0.5),
        ([{"name": "full", "lr": 0.5}, {"name": "sff", "lr": 0.25}], None, 0.25),
        (["sff", "linear-probe"], 0.125, 0.125),
    ],
)
def test_one_rate_holds_for_all_links(links: list[Any], own: Any, expected: Any) -> None:
    made = chain(*links, lr=own)
    assert made.lr == expected
    assert {link.lr for link in made.links} == {expected}  # type: ignore[attr-defined]


def test_a_chain_in_a_chain_is_spliced_in() -> None:
    nested = chain("sff", chain("swa", "full"), {"name": "chain", "links": ["wise-ft"]})
    assert nested == chain("sff", "swa", "full", "wise-ft")


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (["sam", "swa"], "'sam' and 'swa' both own `step`"),
        (["lp-ff", "lp-ff"], "'lp-ff' and 'lp-ff' both own `phases`"),
        (["sff", "samm"], "'samm'; did you mean 'sam'"),
        ([{"name": "sff", "alhpa": 1}], "'alhpa'; did you mean 'alpha'"),
        ([{"name": "sff", "alpha": 7}], "alpha"),
        ([{"alpha": 1}], "a table with `name`"),
        ([3], "a table with `name`"),
        (["full", "last-value"], "'last-value' forecasts without a model"),
    ],
)
def test_what_cannot_be_chained_is_one_line(links: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        chain(*links)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("links", ["sff", None, 3, {"name": "sff"}])
def test_links_are_a_list(links: Any) -> None:
    with pytest.raises(InputError, match="links"):
        strategies.get("chain", links=links)


# -- keys, suites, plug-ins ------------------------------------------------------------------------


def test_the_identity_of_a_chain_holds_those_of_its_links_and_makes_it_again() -> None:
    made = chain({"name": "sff", "alpha": 0.5}, "sam", lr=0.25)
    identity = json.loads(json.dumps(strategies.identity(made)))
    sff = strategies.get("sff", alpha=0.5, lr=0.25)
    assert identity["fields"]["links"][0] == strategies.identity(sff)
    again = strategies.get(identity["name"], **identity["fields"])
    assert again == made
    assert strategies.identity(again) == identity


def labels(specs: list[RunSpec]) -> list[str]:
    return [spec.label for spec in specs]


def test_a_suite_spells_a_chain_and_the_runner_makes_it_again(cells_of: Any) -> None:
    entries = [
        {"chain": [{"name": "sff", "alpha": 0.7}, "sam"], "label": "both"},
        {"name": "sff", "alpha": 0.7},
        "sam",
    ]
    specs = cells_of(strategies=entries)
    assert labels(specs)[0] == "both"
    assert len({spec.key for spec in specs}) == 3
    record = runner.run(specs[0], torch.device("cpu"))
    assert (record["status"], record["reason"]) == ("ok", None)
    assert record["cell"]["strategy"]["name"] == "chain"
    assert record["cost"]["num_trained"] == record["cost"]["num_parameters"]


@pytest.mark.parametrize(
    ("entry", "label"),
    [
        ({"chain": ["sff", "sam"]}, "sff+sam"),
        ({"chain": [{"name": "sff", "alpha": 0.7}, "sam"]}, "sff+sam"),
        ({"chain": [{"name": "sff", "alpha": 0.5}, "sam"]}, "sff alpha=0.5+sam"),
        ({"chain": ["sff", {"name": "sam", "lr": 0.01}]}, "sff+sam lr=0.01"),
        ({"chain": ["sff", "sam"], "lr": 0.01}, "sff+sam lr=0.01"),
        ({"chain": ["sff", "linear-probe"]}, "sff+linear-probe"),
    ],
)
def test_a_label_is_made_of_those_of_the_links(cells_of: Any, entry: Any, label: str) -> None:
    assert labels(cells_of(strategies=[entry])) == [label]


def test_a_chain_takes_seeds_and_the_rate_of_its_links(cells_of: Any) -> None:
    entry = {"chain": ["sff", {"name": "sam", "lr": 0.01}], "seeds": [4, 5]}
    specs = cells_of(strategies=[entry])
    assert [spec.cell["seed"] for spec in specs] == [4, 5]
    assert {spec.cell["lr"] for spec in specs} == {0.01}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"chain": []}, "at least one strategy"),
        ({"chain": "sff"}, "must be a list"),
        ({"chain": ["sff"], "name": "sff"}, "`name` or a `chain`"),
        ({"chain": ["sff"], "alpha": 1.0}, "'alpha'"),
    ],
)
def test_a_chain_entry_that_makes_no_sense_is_one_line(
    suite_fields: Any, entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cells.expand(Suite(**suite_fields(strategies=[entry])), Places())
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("forget_strategies")
def test_the_source_of_a_link_from_outside_is_in_the_key(cells_of: Any, tmp_path: Path) -> None:
    keys = []
    for text in (PLUGIN, PLUGIN + "# edited\n"):
        path = tmp_path / f"halve{len(keys)}.py"
        path.write_text(text)
        (spec,) = cells_of(plugins=(str(path),), strategies=[{"chain": ["halve", "sam"]}])
        keys.append(spec.key)
        record = runner.run(spec, torch.device("cpu"))
        assert (record["status"], record["reason"]) == ("ok", None)
        assert spec.cell["strategy"]["plugin"] is None
        assert spec.cell["strategy"]["fields"]["links"][0]["plugin"] is not None
        _forget("halve")
    assert keys[0] != keys[1]


def _forget(name: str) -> None:
    from sffbench.strategies.base import registry

    strategies._LOADED.pop(registry().pop(name).__module__)
