"""The rules of the conformance kit, one function each, in words that say what is wrong.

A rule gets the strategy's trials and returns a finding. `failed` ends in exit code 1, `noted` is
something that a reader of the table should know, `not proven` what this strategy keeps the kit from
seeing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sffbench import strategies
from sffbench.conformance.trials import STEPS, Trial, Trials
from sffbench.errors import InputError
from sffbench.models.base import LTSM, evaluating
from sffbench.strategies import Strategy

Verdict = Literal["passed", "failed", "noted", "not proven"]
OTHER_VALUES = 0.5  # how far the rows of a part are moved

UNPROVEN = (
    "A strategy that opens the data file itself, or holds constants that were found on test rows, "
    "looks like any other here: read its source; its hash is in the key.",
    "Six steps on a small model: what happens later, or at another size, is not seen.",
    "Tied weights are looked at only where the model of the check has some.",
)


@dataclass(frozen=True)
class Finding:
    """What one rule found; `words` is one sentence."""

    rule: str
    verdict: Verdict
    words: str


class Session:
    """The trials of one strategy, each made once."""

    def __init__(self, trials: Trials) -> None:
        self.trials = trials
        self.strategy: Strategy = strategies.get(trials.strategy)
        self.run = functools.cache(trials.run)

    @property
    def plain(self) -> Trial:
        """The run that the others are compared with."""
        return self.run()


def check(
    strategy: str, *, model: str = "ttm:tiny", plugins: tuple[str, ...] = ()
) -> list[Finding]:
    """Findings of every rule that applies to `strategy`, in a fixed order.

    Raises `InputError` for a name, a model or a plug-in that does not exist. What the strategy
    itself raises is a finding.
    """
    for plugin in plugins:
        strategies.load_plugin(plugin)
    session = Session(Trials(strategy, model, plugins))
    findings = [_in_key(session)]
    if not session.strategy.needs_model and not session.strategy.trains:
        return [*findings, Finding("runs", "passed", "a forecaster without a model: not trained")]
    try:
        assert session.plain
    except InputError:
        raise
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return [*findings, Finding("runs", "failed", f"a run of {STEPS} steps ended with {words}")]
    findings.append(Finding("runs", "passed", f"{STEPS} steps, finite losses"))
    rules = RULES if session.strategy.trains else UNTRAINED_RULES
    return findings + [rule(session) for rule in rules]


def _in_key(session: Session) -> Finding:
    strategy = session.strategy
    again = strategies.get(strategy.name, **strategies.identity(strategy)["fields"])
    if again == strategy:
        return Finding("fields", "passed", "the key's fields build the same strategy")
    return Finding("fields", "failed", f"built from its key's fields it is {again!r}")


def _repeats(session: Session) -> Finding:
    again = session.trials.run()
    differs = _differing(session.plain.selected, again.selected) or _differing(
        session.plain.watched.last, again.watched.last
    )
    if differs:
        words = f"two runs of one seed differ in {differs}: draw from ctx.rng(...) alone"
        return Finding("repeats", "failed", words)
    return Finding("repeats", "passed", "two runs of one seed give the same bits")


def _seeded(session: Session) -> Finding:
    if session.strategy.seeded:
        return Finding("seed", "passed", "declared to depend on the seed")
    if differs := _differing(session.plain.selected, session.run(seed=1).selected):
        words = f"declared `seeded = False`, but another seed changes {differs}"
        return Finding("seed", "failed", words)
    return Finding("seed", "passed", "no seed changes it, as declared")


def _blind_to_validation(session: Session) -> Finding:
    other = session.run(validation=OTHER_VALUES)
    differs = _differing(session.plain.watched.last, other.watched.last)
    if not differs:
        words = "other validation values leave the trained weights as they are"
        return Finding("validation rows", "passed", words)
    if session.plain.watched.num_validated:
        words = f"calls ctx.validate, and {differs} depends on validation values: by that alone?"
        return Finding("validation rows", "not proven", words)
    words = f"other validation values change {differs}: it is trained on rows kept for selection"
    return Finding("validation rows", "failed", words)


def _blind_to_test(session: Session) -> Finding:
    other = session.run(test=OTHER_VALUES)
    differs = _differing(session.plain.selected, other.selected) or _differing(
        session.plain.watched.last, other.watched.last
    )
    if differs:
        return Finding(
            "test rows", "failed", f"other test values change {differs}: it has seen them"
        )
    return Finding("test rows", "passed", "other test values change nothing")


def _undisturbed(session: Session) -> Finding:
    rarely = session.run(validate_every=STEPS)
    if differs := _differing(session.plain.watched.last, rarely.watched.last):
        words = (
            f"validating more often changes {differs}: weights are not restored after eval_model, "
            "or it trains on what validation says"
        )
        verdict: Verdict = "not proven" if session.plain.watched.num_validated else "failed"
        return Finding("validation leaves no trace", verdict, words)
    words = "as trained with one validation as with three"
    return Finding("validation leaves no trace", "passed", words)


def _pretrained_kept(session: Session) -> Finding:
    kept = session.plain.watched.pretrained
    if differs := _differing(dict(session.plain.fresh.state_dict()), kept):
        return Finding("ctx.pretrained", "failed", f"{differs} was written to; copy it first")
    return Finding("ctx.pretrained", "passed", "as loaded, after training")


def _buffers_kept(session: Session) -> Finding:
    statistics = _running_statistics(session.plain.fresh)
    buffers = session.plain.fresh.named_buffers()
    before = {name: buffer for name, buffer in buffers if name not in statistics}
    after = {n: b for n, b in session.plain.trained.model.named_buffers() if n in before}
    if differs := _differing({name: before[name] for name in after}, after):
        return Finding("buffers", "failed", f"{differs} is no weight, and has changed")
    return Finding("buffers", "passed", "untouched")


def _running_statistics(model: LTSM) -> set[str]:
    """Buffers that training is there to change: those of batch norms."""
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    return {f"{name}.{buffer}" for name, module in norms for buffer, _ in module.named_buffers()}


def _tied(session: Session) -> Finding:
    if untied := session.plain.watched.untied:
        return Finding("tied weights", "failed", f"prepare unties {_few(untied)}")
    return Finding("tied weights", "passed", "as tied after prepare as before")


def _in_training_mode(session: Session) -> Finding:
    if stray := session.plain.watched.evaluating:
        words = f"{_few(stray)} was left in eval mode, and the next step trained it so"
        return Finding("training mode", "failed", words)
    return Finding("training mode", "passed", "every step begins in the mode of the first")


def _covered(session: Session) -> Finding:
    if stray := session.plain.watched.uncovered:
        words = f"no optimiser group holds {_few(stray)}: freeze it, or add it to `parameters`"
        return Finding("coverage", "failed", words)
    return Finding("coverage", "passed", "what requires a gradient is in the optimiser")


def _global_generator(session: Session) -> Finding:
    if hooks := session.plain.watched.drew:
        words = f"{_few(hooks)} draws from the global generator, which is dropout's: use ctx.rng"
        return Finding("global generator", "failed", words)
    return Finding("global generator", "passed", "left to dropout")


def _micro_batches(session: Session) -> Finding:
    if session.plain.watched.num_backward < STEPS:
        words = "not every step calls ctx.backward: no micro-batches when memory runs out"
        return Finding("micro-batches", "noted", words)
    return Finding("micro-batches", "passed", "every step goes through ctx.backward")


def _plain_at_the_end(session: Session) -> Finding:
    model, fresh = session.plain.trained.model, session.plain.fresh
    if not isinstance(model, LTSM):
        return Finding("result", "failed", f"the tested model is a {type(model).__name__}, no LTSM")
    past = torch.linspace(-1, 1, fresh.lookback).expand(2, 1, -1)
    with evaluating(model), torch.no_grad():
        forecast = model.forecast(past, 24)
    if forecast.shape != (2, 1, 24):
        return Finding("result", "failed", f"it forecasts {tuple(forecast.shape)} for (2, 1, 24)")
    strange = set(model.state_dict()) ^ set(fresh.state_dict())
    if strange:
        words = f"its weights have other names than the published ones: {_few(strange)}"
        return Finding("result", "noted", words)
    return Finding("result", "passed", "an LTSM with the published names")


Rule = Callable[[Session], Finding]
ALWAYS: tuple[Rule, ...] = (
    _repeats,
    _seeded,
    _blind_to_test,
    _buffers_kept,
    _tied,
    _global_generator,
    _plain_at_the_end,
)
UNTRAINED_RULES = ALWAYS
RULES: tuple[Rule, ...] = (
    *ALWAYS,
    _blind_to_validation,
    _undisturbed,
    _pretrained_kept,
    _in_training_mode,
    _covered,
    _micro_batches,
)


def _differing(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str:
    """Names under which two states differ, for a sentence; empty if they do not."""
    if set(left) != set(right):
        return _few(set(left) ^ set(right))
    return _few(name for name in left if not _same_bits(left[name], right[name]))


def _same_bits(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left.nan_to_num(), right.nan_to_num())


def _few(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{found[0]}{more}" if found else ""
