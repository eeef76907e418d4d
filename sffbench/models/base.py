"""The contract of every large time series model (LTSM), and what all of them share.

A model is one file of this folder with one subclass of `LTSM`: it names its presets, builds its
network from a published `config.json`, and says how to forecast, how to score itself in training
(`loss`) and how its authors initialise each parameter (`initial`). Subclassing registers it, so a
model from outside needs no entry anywhere. Use `sffbench.models.load` and `create` to make one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models.blocks import quantile

if TYPE_CHECKING:
    from sffbench.models.twin import Start

InitName = Literal["usable", "published"]
CAPABILITIES = frozenset({"forecast", "zero-shot", "imputation", "anomaly", "probabilistic"})
REGISTRY: dict[str, type[LTSM]] = {}


@dataclass(frozen=True)
class Preset:
    """One published size of a model: what to build, where its weights come from, what we know.

    `config` holds the structural fields of the published `config.json`; `lr` is the card's learning
    rate for full fine-tuning under the `standard` protocol; `overlap` maps a data set to "yes",
    "no" or "unknown" with its source: was that data set in the pretraining corpus? `hub`,
    `revision`, `subfolder` and `files` say what `fetch` brings: the repository, its branch, a
    folder of it, and the files, by default the weights and `config.json`. `origin` is where weights
    that are on no hub come from; their `files` are what their authors call them.
    `any_size`: the name stands for a family of checkpoints, so a folder's own sizes hold.
    """

    config: Mapping[str, Any]
    lookback: int
    horizon: int
    num_parameters: int
    lr: float
    licence: str
    hub: str | None = None
    revision: str = "main"
    subfolder: str = ""
    files: tuple[str, ...] = ()
    origin: str = ""
    any_size: bool = False
    overlap: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


class LTSM(nn.Module):
    """Base class of all models; see `docs/adding-a-model.md`.

    Class attributes: `name` (as in `load("name:preset")`), `presets`, `capabilities`,
    `head_prefixes` (of the parameter names that a linear probe trains), `options` (config fields
    that `load` may override because they change no shape), `prefixes` (that training wrappers put
    before all names of a checkpoint), and what sets a network apart:
    `mixes_channels` (the variables of a window see each other), `random_loss` (each call draws
    anew), `unused` (patterns of parameter names that no forecast reads). Instances have `config`,
    `lookback` (context to cut windows with), `horizon` (native), `num_samples` (draws behind a
    forecast where nobody says how many), `num_channels` (that a window must have; None: any) and
    `new_head` (the checkpoint had no head for this horizon: it is random, and there is no
    zero-shot). A family with several networks overrides `variant`. `registered=False` in the class
    statement is for networks that no checkpoint exists of and that a strategy brings itself.
    """

    name: ClassVar[str]
    presets: ClassVar[dict[str, Preset]] = {}
    capabilities: ClassVar[frozenset[str]] = frozenset({"forecast", "zero-shot"})
    head_prefixes: ClassVar[tuple[str, ...]] = ()  # `head` itself is a module of several networks
    options: ClassVar[frozenset[str]] = frozenset()
    prefixes: ClassVar[tuple[str, ...]] = ("module.", "model.")
    mixes_channels: bool = False  # some networks have it in their config
    random_loss: ClassVar[bool] = False
    unused: ClassVar[tuple[str, ...]] = ()

    config: dict[str, Any]
    lookback: int
    horizon: int
    num_samples: int = 20
    num_channels: int | None = None
    new_head: bool = False

    def __init_subclass__(cls, *, registered: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A variant inherits its family's name and registers nothing.
        if registered and "name" in cls.__dict__:
            known = REGISTRY.get(cls.name)
            if known is not None and known.__qualname__ != cls.__qualname__:
                raise InputError(f"model {cls.name!r} is already defined by {known.__module__}")
            REGISTRY[cls.name] = cls

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__()
        self.config = dict(config)

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> type[LTSM]:
        """The class that builds `config`: `cls` unless the family has several networks."""
        return cls

    @classmethod
    def own_names(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` with the fields of the presets, where it was published under other names."""
        return dict(config)

    # -- what a subclass writes ------------------------------------------------------------------

    @abstractmethod
    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[B, C, L] -> [B, C, H], unchecked, in the current mode: what evaluation loops call."""

    @abstractmethod
    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Scalar fine-tuning loss of the model's authors."""

    @abstractmethod
    def initial(self, init: InitName = "usable") -> Mapping[str, Start]:
        """The authors' random initialisation: one start per parameter name, aliases once.

        An `sffkernels.Init`, or a `twin.Whole` where no elementwise distribution says it.
        """

    def _sample(
        self,
        past: Tensor,
        horizon: int,
        num_samples: int,
        past_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[B, C, L] -> [B, C, S, H], unchecked: for models that draw their forecasts."""
        raise InputError(f"{self.name} draws no samples")

    def _quantiles(
        self,
        past: Tensor,
        horizon: int,
        levels: Sequence[float],
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[B, C, L] -> [B, C, Q, H], unchecked: of samples, unless a network has its own."""
        number = num_samples or self.num_samples
        drawn = self._sample(past, horizon, number, past_mask, generator=generator)
        return quantile(drawn, levels, dim=2)

    def reset_buffers(self) -> None:
        """Fill the buffers that no checkpoint holds; called on the empty network."""

    def at_frequency(self, frequency: str) -> None:
        """Told before a run: the sampling step of its data, a pandas alias such as "15min"."""

    def accept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors as this network names and shapes them; called before loading."""
        return dict(state)

    # -- what everybody calls --------------------------------------------------------------------

    def forecast(
        self,
        past: Tensor,
        horizon: int,
        *,
        past_mask: Tensor | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Point forecast, [B, C, L] -> [B, C, H], in the units of `past`.

        `past_mask` is [B, C, L] with 1 where observed; a missing value may be NaN. Runs in eval
        mode without gradients. Raises `InputError` for a wrong rank or dtype, an empty batch, a
        value that is not finite, a mask of another shape, a horizon below 1, or samples of a point
        model.
        """
        self._check_samples(num_samples)
        past, past_mask = self._checked(past, horizon, past_mask)
        with torch.no_grad(), evaluating(self):
            return self._forecast(
                past, horizon, past_mask, num_samples=num_samples, generator=generator
            )

    def quantiles(
        self,
        past: Tensor,
        horizon: int,
        levels: Sequence[float],
        *,
        past_mask: Tensor | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Quantile forecasts, [B, C, L] -> [B, C, Q, H], Q = len(levels), in the units of `past`.

        From the network's own quantiles, or from `num_samples` draws where it has none. Raises
        `InputError` as `forecast` does, for a level outside (0, 1), and for a point model.
        """
        if "probabilistic" not in self.capabilities:
            raise InputError(f"{self.name} is a point model: it has no quantiles")
        if not levels or not all(0.0 < level < 1.0 for level in levels):
            raise InputError(f"levels must lie between 0 and 1, given {list(levels)}")
        self._check_samples(num_samples)
        past, past_mask = self._checked(past, horizon, past_mask)
        with torch.no_grad(), evaluating(self):
            return self._quantiles(
                past, horizon, levels, past_mask, num_samples=num_samples, generator=generator
            )

    def sample(
        self,
        past: Tensor,
        horizon: int,
        num_samples: int,
        generator: torch.Generator | None = None,
        *,
        past_mask: Tensor | None = None,
    ) -> Tensor:
        """Draws of the future, [B, C, L] -> [B, C, S, H], S = `num_samples`, in units of `past`.

        Raises `InputError` as `forecast` does, and for a model that draws no samples.
        """
        self._check_samples(num_samples)
        past, past_mask = self._checked(past, horizon, past_mask)
        with torch.no_grad(), evaluating(self):
            return self._sample(past, horizon, num_samples, past_mask, generator=generator)

    def loss(
        self,
        past: Tensor,
        future: Tensor,
        *,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The model's own fine-tuning loss: past [B, C, L], future [B, C, H] -> scalar.

        Masks have the shapes of what they mask, 1 where observed; missing values count as 0. Values
        are not scanned: a NaN in the data gives a NaN loss, which the training loop reports as
        divergence.
        """
        for what, given, like in (
            ("past", past, None),
            ("future", future, None),
            ("past_mask", past_mask, past),
            ("future_mask", future_mask, future),
        ):
            if given is not None:
                check_rank(what, given, like)
        if 0 in (past.numel(), future.numel()):
            raise InputError(
                f"nothing to learn from: past {[*past.shape]}, future {[*future.shape]}"
            )
        if past.shape[:2] != future.shape[:2]:
            raise InputError(
                f"past {tuple(past.shape)} and future {tuple(future.shape)} differ in [B, C]"
            )
        if past_mask is not None:
            past = past.masked_fill(past_mask == 0, 0.0)
        if future_mask is not None:
            future = future.masked_fill(future_mask == 0, 0.0)
        return self._loss(past, future, past_mask, future_mask, generator=generator)

    def _check_samples(self, num_samples: int | None) -> None:
        """`InputError` for a number of samples below 1, or any of a model that draws none."""
        if num_samples is None:
            return
        if type(self)._sample is LTSM._sample:
            kind = "has quantiles" if "probabilistic" in self.capabilities else "is a point model"
            raise InputError(f"{self.name} {kind}, it draws no samples: num_samples must be None")
        if not isinstance(num_samples, int) or num_samples < 1:
            raise InputError(f"num_samples must be an integer >= 1, given {num_samples!r}")

    def _checked(
        self, past: Tensor, horizon: int, past_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Validated (past, mask) in the model's dtype, missing values set to 0."""
        check_rank("past", past)
        if not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1:
            raise InputError(f"horizon must be an integer >= 1, given {horizon!r}")
        if past.numel() == 0:
            raise InputError(f"past is empty: {tuple(past.shape)}")
        dtype = next(self.parameters()).dtype
        if past_mask is not None:
            check_rank("past_mask", past_mask, past)
            past = past.masked_fill(past_mask == 0, 0.0)
            past_mask = past_mask.to(dtype)
        if not bool(torch.isfinite(past).all()):
            raise InputError("past holds NaN or infinite values; mark missing ones in past_mask")
        return past.to(dtype), past_mask


def check_rank(what: str, given: Any, like: Tensor | None = None) -> None:
    """Raise `InputError` unless `given` is a [B, C, L] tensor (with the shape of `like`)."""
    if not isinstance(given, Tensor):
        raise InputError(f"{what} must be a torch tensor [B, C, L], given {type(given).__name__}")
    if given.ndim != 3:
        raise InputError(f"{what} must have rank 3 [B, C, L], given shape {tuple(given.shape)}")
    if like is not None:
        if given.shape != like.shape:
            raise InputError(f"{what} is {tuple(given.shape)}, its values are {tuple(like.shape)}")
    elif not given.is_floating_point():
        raise InputError(f"{what} must be floating point, given {given.dtype}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def default_init(model: nn.Module, given: Mapping[str, Start] | None = None) -> dict[str, Start]:
    """PyTorch's own defaults for Linear, Conv1d and LayerNorm, per parameter name.

    Linear and Conv1d: weight and bias U(-k, k), k = 1 / sqrt(fan_in). LayerNorm: weight 1, bias 0.
    (`kaiming_uniform_(a=sqrt(5))`, which `reset_parameters` calls, is exactly that bound.) `given`
    replaces them, and is needed for every other kind of parameter.
    """
    from sffkernels import Init

    table: dict[str, Start] = {}
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            drawn: Start
            if given is not None and full in given:
                drawn = given[full]
            elif isinstance(module, nn.LayerNorm):
                drawn = Init("constant", 1.0 if name == "weight" else 0.0)
            elif isinstance(module, nn.Linear | nn.Conv1d):
                bound = module.weight[0].numel() ** -0.5
                drawn = Init("uniform", -bound, bound)
            else:
                raise TypeError(f"no default init for {type(module).__name__} at {prefix}")
            table[full] = drawn
    return table
