"""Chains: several strategies as one, by composition. No class per pair is needed.

    strategies.get("chain", links=["sff", "sam"])
    strategies.get("chain", links=[{"name": "sff", "alpha": 0.7}, {"name": "sam", "rho": 0.1}])

In a suite: { chain = [{ name = "sff", alpha = 0.7 }, "sam"], label = "sff+sam" }.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import SerializeAsAny, field_serializer, field_validator, model_validator

from sffbench.context import Phase
from sffbench.errors import InputError
from sffbench.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from sffbench.context import Batch, Context
    from sffbench.models.base import LTSM

_OWNED = ("step", "phases", "parameters")  # hooks that cannot be called one after the other
_IDENTITY = {"name", "version", "fields", "plugin"}


class Chain(Strategy):
    """prepare: link_1, ..., link_n; eval_model likewise; finish: link_n, ..., link_1.

    At most one link may own `step`, one `phases` and one `parameters`; the others take the default.
    A chain within a chain is spliced in; no links at all are `full`. There is one learning rate:
    the chain's own `lr`, or else that of the last link that sets one, and every link is told. Each
    link has a `ctx.state` of its own. `fields` in a run's key are the identities of the links.
    """

    name: ClassVar[str] = "chain"

    links: tuple[SerializeAsAny[Strategy], ...] = ()

    @field_validator("links", mode="before")
    @classmethod
    def _build_links(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError("must be a list of strategies")
        built = [_build(one) for one in value]
        return tuple(
            part for one in built for part in (one.links if isinstance(one, Chain) else (one,))
        )

    @field_validator("links")
    @classmethod
    def _check_links(cls, links: tuple[Strategy, ...]) -> tuple[Strategy, ...]:
        for link in links:
            if not link.needs_model:
                raise InputError(f"{link.name!r} forecasts without a model: it cannot be a link")
        for hook in _OWNED:
            owners = [link.name for link in links if _owns(link, hook)]
            if len(owners) > 1:
                raise InputError(f"{' and '.join(map(repr, owners))} both own `{hook}`: keep one")
        return links

    @model_validator(mode="after")
    def _one_rate(self) -> Chain:
        own = [link.lr for link in self.links if link.lr is not None]
        rate = self.lr if self.lr is not None else (own[-1] if own else None)
        links = tuple(link.model_copy(update={"lr": rate}) for link in self.links)
        self.__dict__.update(lr=rate, links=links)  # frozen for everybody else
        return self

    @field_serializer("links")
    def _dump_links(self, links: tuple[Strategy, ...]) -> list[dict[str, Any]]:
        from sffbench.strategies import identity

        return [identity(link) for link in links]

    @property
    def trains(self) -> bool:  # type: ignore[override]
        """Whether any link trains; no links are `full`."""
        return not self.links or any(link.trains for link in self.links)

    @property
    def seeded(self) -> bool:  # type: ignore[override]
        """Whether a seed can change the result of any link."""
        return not self.links or any(link.seeded for link in self.links)

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Every link in order, each on what the one before it made."""
        for index, link in enumerate(self.links):
            with _own_state(ctx, index):
                model = link.prepare(model, ctx)
        return model

    def phases(self, ctx: Context) -> list[Phase]:
        """Those of the link that has its own."""
        with self._owner("phases", ctx) as link:
            return link.phases(ctx)

    def parameters(
        self, model: LTSM, ctx: Context
    ) -> Iterable[Parameter] | Iterable[dict[str, Any]]:
        """Those of the link that chooses."""
        with self._owner("parameters", ctx) as link:
            return link.parameters(model, ctx)

    def step(self, model: LTSM, batch: Batch, ctx: Context) -> float | Tensor:
        """The step of the link that has its own."""
        with self._owner("step", ctx) as link:
            return link.step(model, batch, ctx)

    def eval_model(self, model: LTSM, ctx: Context) -> LTSM:
        """Every link in order."""
        for index, link in enumerate(self.links):
            with _own_state(ctx, index):
                model = link.eval_model(model, ctx)
        return model

    def finish(self, model: LTSM, ctx: Context) -> LTSM:
        """The last link first: what it put around the model goes first."""
        for index, link in reversed(list(enumerate(self.links))):
            with _own_state(ctx, index):
                model = link.finish(model, ctx)
        return model

    @contextmanager
    def _owner(self, hook: str, ctx: Context) -> Iterator[Strategy]:
        """The link that overrides `hook`, with its state; the default where none does."""
        for index, link in enumerate(self.links):
            if _owns(link, hook):
                with _own_state(ctx, index):
                    yield link
                return
        yield Strategy()


@contextmanager
def _own_state(ctx: Context, index: int) -> Iterator[None]:
    """`ctx.state` is the link's own inside."""
    shared = ctx.state
    ctx.state = shared.setdefault(f"link {index}", {})
    try:
        yield
    finally:
        ctx.state = shared


def _build(given: Any) -> Strategy:
    """A link from its name, from a suite's entry, from its identity in a key, or as it is."""
    from sffbench import strategies

    if isinstance(given, Strategy):
        return given
    fields = {"name": given} if isinstance(given, str) else given
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise InputError(f"link {given!r}: must be the name of a strategy or a table with `name`")
    if fields.keys() == _IDENTITY:
        return strategies.get(fields["name"], **fields["fields"])
    return strategies.get(**fields)


def _owns(link: Strategy, hook: str) -> bool:
    return getattr(type(link), hook) is not getattr(Strategy, hook)
