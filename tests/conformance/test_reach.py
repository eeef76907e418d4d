"""What a strategy can reach from ctx: its data are copies that end where they should.

A walk over everything that `ctx` leads to (attributes, containers, closures, the objects behind
bound methods) finds every tensor, and looks at its whole storage, not only at the part in view.
Globals and stack frames are left out: in Python they lead everywhere, from any function.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sffbench import runner
from sffbench.context import Context
from sffbench.strategies import Strategy
from sffbench.suite import RunSpec

VALIDATION_MARK, TEST_MARK = 1e6, 1e9


class Holding(Strategy):
    """Keeps ctx."""

    held: list[Any] = []  # noqa: RUF012 pydantic copies it

    def eval_model(self, model: Any, ctx: Context) -> Any:
        self.held.append(ctx)
        return model


def neighbours(thing: Any) -> Iterator[Any]:
    """What one object holds, as data."""
    if isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from thing
    if isinstance(thing, types.MethodType):
        yield thing.__self__
    if isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    if isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or ())
        yield from (thing.__defaults__, thing.__kwdefaults__)
    elif not isinstance(thing, type | types.ModuleType | Tensor):
        yield getattr(thing, "__dict__", None)
        for name in getattr(type(thing), "__slots__", ()):
            yield getattr(thing, name, None)


def tensors_from(root: Any) -> list[Tensor]:
    seen: dict[int, Any] = {}
    stack = [root]
    while stack:
        thing = stack.pop()
        if thing is not None and id(thing) not in seen:
            seen[id(thing)] = thing
            stack.extend(neighbours(thing))
    return [thing for thing in seen.values() if isinstance(thing, Tensor)]


def highest(tensors: list[Tensor]) -> float:
    """The largest value in the storage behind any of the tensors."""
    peaks = [0.0]
    for tensor in tensors:
        if tensor.dtype == torch.float32 and tensor.untyped_storage().nbytes():
            whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            peaks.append(float(whole.max()))
    return max(peaks)


@pytest.fixture(params=[1, 7], ids=lambda number: f"{number} channels")
def ctx(cells_of: Callable[..., list[RunSpec]], request: pytest.FixtureRequest) -> Context:
    """Of a run on data whose validation and test rows carry marks of their own."""
    (spec,) = cells_of()
    run = runner.Run(spec, torch.device("cpu"), None)  # type: ignore[arg-type]
    scaled = run.dataset.scaled[:, : request.param].clone()
    train_end, val_end, _ = run.dataset.borders
    scaled[train_end:val_end] = VALIDATION_MARK
    scaled[val_end:] = TEST_MARK
    run.dataset = dataclasses.replace(run.dataset, scaled=scaled)
    run.strategy = Holding()
    run.train(run.network.load())
    found: Context = run.strategy.held[0]
    assert found.pretrained  # read, so that what it leads to is walked as well
    return found


def test_train_windows_end_at_the_train_border_even_in_their_storage(ctx: Context) -> None:
    reached = tensors_from(ctx.train)
    assert 0 < highest(reached) < VALIDATION_MARK


def test_validation_rows_are_behind_ctx_validate_alone(ctx: Context) -> None:
    assert highest(tensors_from(ctx)) >= VALIDATION_MARK  # or the walk sees nothing
    score = ctx.score
    ctx.score = None  # type: ignore[assignment]
    assert highest(tensors_from(ctx)) < VALIDATION_MARK
    ctx.score = score


def test_no_row_beyond_the_validation_border_can_be_reached(ctx: Context) -> None:
    assert highest(tensors_from(ctx)) < TEST_MARK


def test_the_walk_would_have_found_a_data_set_behind_a_closure(ctx: Context) -> None:
    beyond = torch.full((3,), TEST_MARK)[:0]  # a view of nothing, its storage holds it all
    ctx.reload = lambda: {"behind": beyond}
    assert highest(tensors_from(ctx)) == TEST_MARK
