"""MOIRAI 1.x: a masked encoder over patches of any number of variables, predicting a mixture.

Patches of context and horizon of all variables stand in one sequence; those of the horizon are one
learned vector, and every token sees every other. Each value of the horizon gets a mixture of four
laws (`_moirai_distribution.py`). One network serves five patch sizes, each with projections of its
own. State-dict names are those of `uni2ts` (2.0.0), whose outputs `golden/moirai` records. The
family's second network, MOIRAI 2, is in `_moirai_2.py`.
Call: `sffbench.models.load("moirai", folder, patch_size=64).forecast(past, 96)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models._moirai_distribution import KINDS, Component, Mixture
from sffbench.models._moirai_layers import Encoder, InProjection, OutProjection
from sffbench.models._moirai_packing import Packed, pack, unpack
from sffbench.models.base import LTSM, InitName, Preset, default_init
from sffbench.models.blocks import call

if TYPE_CHECKING:
    from sffbench.models.twin import Start

HEAD_WIDTH = 64  # published configs give no number of heads: it is d_model // 64
REQUIRED = ("d_model", "num_layers", "patch_sizes")
COMPONENTS = (
    "StudentTOutput",
    "NormalFixedScaleOutput",
    "NegativeBinomialOutput",
    "LogNormalOutput",
)


def _shape(width: int, layers: int, patch_sizes: list[int]) -> dict[str, Any]:
    return {
        "d_model": width,
        "num_layers": layers,
        "patch_sizes": patch_sizes,
        "max_seq_len": 512,
        "attn_dropout_p": 0.0,
        "dropout_p": 0.0,
        "scaling": True,
    }


def _published(size: str, width: int, layers: int, num_parameters: int) -> Preset:
    return Preset(
        config=_shape(width, layers, [8, 16, 32, 64, 128]),
        lookback=1024,
        horizon=96,
        num_parameters=num_parameters,
        lr=5e-7,
        licence="CC-BY-NC-4.0 (weights, non-commercial); Apache-2.0 (code)",
        hub=f"Salesforce/moirai-1.1-R-{size}",
        note="any context and horizon; the authors search contexts of 1000 to 5000; "
        "lr: their README, for full fine-tuning of the small one",
    )


PRESETS = {
    "tiny": Preset(
        config={**_shape(64, 3, [16, 32]), "num_heads": 2},
        lookback=512,
        horizon=96,
        num_parameters=205_388,
        lr=1e-3,
        licence="Apache-2.0",
        note="made here by `sffbench pretrain moirai:tiny` on synthetic series",
    ),
    "1.1-small": _published("small", 384, 6, 13_827_528),
    "1.1-base": _published("base", 768, 12, 91_357_728),
    "1.1-large": _published("large", 1024, 24, 310_970_624),
    "2.0-small": Preset(
        config={
            "d_model": 384,
            "d_ff": 1024,
            "num_layers": 6,
            "patch_size": 16,
            "max_seq_len": 512,
            "num_predict_token": 4,
        },
        lookback=1680,
        horizon=64,
        num_parameters=11_387_208,
        lr=1e-5,
        licence="CC-BY-NC-4.0 (weights, non-commercial); Apache-2.0 (code)",
        hub="Salesforce/moirai-2.0-R-small",
        note="any context, 1680 is that of the authors' example; 64 steps at once, more by "
        "recursion; lr: ours, the authors publish no fine-tuning of it",
    ),
}


class ParamProjection(nn.Module):
    """Hidden [..., D] -> the mixture of each of the P values of a token, parameters [..., P]."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, sizes = config["d_model"], config["patch_sizes"]
        self.kinds, self.settings = _components(config)
        self.proj = nn.ModuleDict(
            {
                "weights_logits": OutProjection(width, sizes, len(self.kinds)),
                "components": nn.ModuleList(
                    nn.ModuleDict({field: OutProjection(width, sizes) for field in kind.fields})
                    for kind in self.kinds
                ),
            }
        )

    def forward(self, hidden: Tensor, which: int) -> Mixture:
        components = []
        for number, (kind, settings) in enumerate(zip(self.kinds, self.settings, strict=True)):
            raw = {
                field: self.proj.get_submodule(f"components.{number}.{field}")(hidden, which)
                for field in kind.fields
            }
            raw = {field: values.float()[..., 0] for field, values in raw.items()}
            components.append(kind.of(raw, settings))
        return Mixture(call(self.proj["weights_logits"], hidden, which).float(), components)


def _components(config: Mapping[str, Any]) -> tuple[list[type[Component]], list[dict[str, float]]]:
    """Laws and their fixed numbers, from the published encoding of `distr_output`."""
    given = config.get("distr_output") or {
        "_target_": "MixtureOutput",
        "components": [{"_target_": name} for name in COMPONENTS],
    }
    encoded = [given, *given.get("components", ())]
    names = [str(entry.get("_target_")).rpartition(".")[2] for entry in encoded]
    if names[0] != "MixtureOutput" or any(name not in KINDS for name in names[1:]):
        allowed = f"MixtureOutput of {', '.join(KINDS)}"
        raise InputError(f"moirai: distr_output={names!r} is not supported, allowed: {allowed}")
    settings = [{k: v for k, v in entry.items() if k != "_target_"} for entry in encoded[1:]]
    return [KINDS[name] for name in names[1:]], settings


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults; `InputError` names what is missing or cannot be built."""
    if absent := [key for key in REQUIRED if key not in config]:
        raise InputError(f"moirai: config.json lacks {', '.join(absent)}")
    full = {"attn_dropout_p": 0.0, "dropout_p": 0.0, "scaling": True, **config}
    full["num_heads"] = num_heads(full)
    sizes = [int(size) for size in full["patch_sizes"]]
    if not sizes or min(sizes) < 1:
        raise InputError(f"moirai: patch_sizes={sizes} must be a list of numbers >= 1")
    full["patch_sizes"] = sizes
    patch = full.setdefault("patch_size", sizes[len(sizes) // 2])
    if patch != "auto" and patch not in sizes:
        raise InputError(f"moirai: patch_size={patch!r} is not one of {sizes}, nor 'auto'")
    return full


def num_heads(config: Mapping[str, Any]) -> int:
    """Given or d_model // 64; `InputError` where the width cannot be cut so."""
    width = config["d_model"]
    heads = int(config.get("num_heads") or width // HEAD_WIDTH)
    if heads < 1 or width % heads or width // heads % 4:
        raise InputError(
            f"moirai: d_model={width} must be a multiple of {HEAD_WIDTH}, or num_heads given with "
            "heads of a multiple of 4"
        )
    return heads


class Moirai(LTSM):
    """MOIRAI 1.0 and 1.1: z = (x - mean) / sqrt(unbiased variance + 1e-5) per variable, one pass.

    Any horizon in one shot. The forecast is the (lower) median of 100 samples, as the authors
    evaluate; `quantiles` and `sample` draw as well. Without a generator each window draws from a
    stream of its own with one seed, so that a score does not depend on how windows are batched. All
    variables of a window see each other: windows are independent, channels are not.

    `patch_size` is one of the config's, by default the middle one (32 of 8 to 128), or "auto": the
    last H values of the context are predicted with each, and each window takes that of the best
    likelihood; the context is then L - H values, as published. In training mode `_forecast` is the
    mean of the mixture, which has a gradient (what prune-then-finetune trains); its exponentials
    can be huge.

    Upstream quirks kept: the row mask of the mixture weights (`OutProjection`), missing values
    entering as 0 in the units of the input, and attention among wholly padded tokens.
    """

    name = "moirai"
    presets = PRESETS
    capabilities = frozenset({"forecast", "zero-shot", "probabilistic"})
    head_prefixes = ("param_proj.",)
    options = frozenset({"patch_size", "attn_dropout_p", "dropout_p"})
    mixes_channels = True
    num_samples = 100

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> type[LTSM]:
        """MOIRAI 2 has one patch size, where 1.x lists several."""
        if "patch_size" in config and "patch_sizes" not in config:
            from sffbench.models._moirai_2 import Moirai2

            return Moirai2
        return cls

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(_complete(config))
        config = self.config
        self.sizes: list[int] = config["patch_sizes"]
        self.lookback, self.horizon = lookback or 1024, horizon or 96
        self.mask_encoding = nn.Embedding(1, config["d_model"])
        self.in_proj: nn.Module = InProjection(self.sizes, config["d_model"])
        self.encoder = Encoder(config)
        self.param_proj = ParamProjection(config)

    @property
    def which(self) -> int:
        """Index of the patch size in use; that of the default where it is chosen per window."""
        chosen = self.config["patch_size"]
        return len(self.sizes) // 2 if chosen == "auto" else self.sizes.index(chosen)

    def encode(self, packed: Packed, which: int) -> Tensor:
        """Packed windows -> hidden [B, T, D]."""
        hidden = self.in_proj((packed.target - packed.loc) / packed.scale, which)
        hidden = torch.where(packed.wanted[:, None], self.mask_encoding.weight, hidden)
        return call(self.encoder, hidden, packed.time, packed.variate, packed.real)

    def predict(
        self, past: Tensor, horizon: int, past_mask: Tensor | None, which: int
    ) -> tuple[Mixture, Tensor, Tensor]:
        """Mixture of each future value, parameters [B, C, H] in z; loc and scale [B, C, 1]."""
        num_channels, size = past.shape[1], self.sizes[which]
        packed = pack(past, horizon, size, past_mask, scaling=self.config["scaling"])
        start = num_channels * -(-past.shape[-1] // size)  # the horizon's first token
        step = -(-horizon // size)  # tokens of one variable; all share its loc and scale
        mixture: Mixture = self.param_proj(self.encode(packed, which)[:, start:], which)
        mixture = mixture.map(lambda values: unpack(values, num_channels, size, horizon))
        return mixture, packed.loc[:, start::step], packed.scale[:, start::step]

    def errors(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None,
        future_mask: Tensor | None,
        which: int,
    ) -> Tensor:
        """Negative log-likelihood in the units of the input, its mean per variable: [B, C]."""
        mixture, loc, scale = self.predict(past, future.shape[-1], past_mask, which)
        known = torch.ones_like(future) if future_mask is None else future_mask.to(future)
        future = future.masked_fill(known == 0, 0.0)
        nll = scale.log() - mixture.log_prob((future - loc) / scale)
        return (nll * known).sum(-1) / known.sum(-1).clamp_min(1.0)

    def patch_errors(self, past: Tensor, horizon: int, past_mask: Tensor | None) -> Tensor:
        """How badly each patch size predicts the last H values of `past`: [sizes, B]."""
        if past.shape[-1] <= horizon:
            raise InputError(
                f"moirai: patch_size='auto' needs more than the horizon's {horizon} values of "
                f"context, given {past.shape[-1]}"
            )
        known, ahead = past[..., :-horizon], past[..., -horizon:]
        seen: tuple[Tensor | None, Tensor | None] = (None, None)
        if past_mask is not None:
            seen = past_mask[..., :-horizon], past_mask[..., -horizon:]
        each = [self.errors(known, ahead, *seen, which) for which in range(len(self.sizes))]
        return torch.stack(each).sum(-1)

    # -- the contract ----------------------------------------------------------------------------

    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if self.training and num_samples is None:
            mixture, loc, scale = self.predict(past, horizon, past_mask, self.which)
            return torch.addcmul(loc, mixture.mean, scale)
        number = num_samples or self.num_samples
        return self._sample(past, horizon, number, past_mask, generator=generator).median(2).values

    def _sample(
        self,
        past: Tensor,
        horizon: int,
        num_samples: int,
        past_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[B, C, L] -> [B, C, S, H]."""
        if self.config["patch_size"] != "auto":
            return self._drawn(past, horizon, num_samples, past_mask, self.which, generator)
        best = self.patch_errors(past, horizon, past_mask).argmin(0)
        past = past[..., horizon:]
        past_mask = None if past_mask is None else past_mask[..., horizon:]
        samples = past.new_empty(*past.shape[:2], num_samples, horizon)
        for which in sorted(set(best.tolist())):
            rows = best == which
            mask = None if past_mask is None else past_mask[rows]
            samples[rows] = self._drawn(past[rows], horizon, num_samples, mask, which, generator)
        return samples

    def _drawn(
        self,
        past: Tensor,
        horizon: int,
        num_samples: int,
        past_mask: Tensor | None,
        which: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        mixture, loc, scale = self.predict(past, horizon, past_mask, which)
        if generator is not None:
            place = generator.device  # random numbers are drawn where their generator lives
            drawn = mixture.map(lambda values: values.to(place)).draw(num_samples, generator)
        else:
            own, rows = torch.Generator(past.device), range(len(past))
            windows = [mixture.map(itemgetter(row)) for row in rows]
            drawn = torch.stack([one.draw(num_samples, own.manual_seed(0)) for one in windows], 1)
        return torch.addcmul(loc, drawn.to(loc), scale).permute(1, 2, 0, 3)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean over windows and variables of the mean negative log-likelihood of the future.

        In the units of the input, so that it depends on the scale of the data and may be negative;
        its gradient does not. "auto" trains the default patch size.
        """
        return self.errors(past, future, past_mask, future_mask, self.which).mean()

    def initial(self, init: InitName = "usable") -> dict[str, Start]:
        """Linear U(-k, k), k = 1 / sqrt(inputs); norm gains 1; embeddings N(0, 1).

        The embeddings are the mask token and the attention biases, which the authors leave at
        PyTorch's default. The projections of all patch sizes share one tensor: each has the k of
        its own number of inputs, and what no patch size uses is 0.
        """
        from sffkernels import Init

        given: dict[str, Start] = {}
        for name, module in self.named_modules():
            if isinstance(module, nn.RMSNorm):
                given[f"{name}.weight"] = Init("constant", 1.0)
            elif isinstance(module, nn.Embedding):
                given[f"{name}.weight"] = Init("normal", 0.0, 1.0)
            elif isinstance(module, InProjection | OutProjection):
                weight, bias = module.start()
                given |= {f"{name}.weight": weight, f"{name}.bias": bias}
        return default_init(self, given)
