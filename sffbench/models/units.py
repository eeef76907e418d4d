"""UniTS: one network of prompt tokens for forecasting, imputation and anomaly detection.

All variables of a window are one input: patches of each become tokens, learned prompt tokens of the
data set stand before them, mask tokens where values are wanted, and attention runs over time inside
a variable and over variables. Any horizon in one shot. State-dict names are those of the authors'
`models.UniTS` and `models.UniTS_zeroshot`, whose outputs `golden/units*` record. Layers are in
`_units_layers.py`. Call: `load("units", folder, dataset="ETTh1").forecast(past, 96)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError, unknown
from sffbench.models._units_layers import (
    CLS_HEADS,
    NATIVE,
    Block,
    ClassHead,
    DynamicLinear,
    ForecastHead,
    over_tokens,
)
from sffbench.models._units_presets import PRESETS, published, token_shapes
from sffbench.models.base import LTSM, InitName, default_init
from sffbench.models.blocks import Dropout, call, location_scale, masked_mean

if TYPE_CHECKING:
    from sffbench.models.twin import Start

MAX_PLACES = 5000  # rows of the position table, unless the checkpoint or `max_len` says otherwise
PLACES = "position_embedding.pe"
SHARED = ("prompt_token", "mask_token", "cls_token")
FAMILIES = ("prompt_tokens", "mask_tokens", "cls_tokens", "category_tokens")
REQUIRED = ("prompt_num", "d_model", "n_heads", "e_layers", "patch_len")
TASK_FIELDS = ("task_name", "dataset", "enc_in")


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults; `InputError` names what is missing or asks for something else."""
    if absent := [key for key in REQUIRED if key not in config]:
        raise InputError(f"units: config.json lacks {', '.join(absent)}")
    full = {"dropout": 0.1, "pretrain": False, "shared_tokens": False, **config}
    width, patch = full["d_model"], full["patch_len"]
    if full.get("stride", patch) != patch:
        raise InputError(f"units: stride={full['stride']} must equal patch_len={patch}")
    for heads in (full["n_heads"], CLS_HEADS):
        if width % heads:
            raise InputError(f"units: d_model={width} must be a multiple of {heads} heads")
    if not 0 < full["prompt_num"] < min(2 * width, NATIVE):
        raise InputError(
            f"units: prompt_num={full['prompt_num']} must lie between 1 and "
            f"{min(2 * width, NATIVE) - 1}"
        )
    for task in full.get("configs_list") or ():
        if lacking := [field for field in TASK_FIELDS if field not in task[1]]:
            raise InputError(f"units: task {task[0]!r} of configs_list lacks {', '.join(lacking)}")
    return full


class UniTS(LTSM):
    """UniTS: z = (x - mean) / sqrt(population variance + 1e-5) per variable, patches, one pass.

    Tokens are [prompts, patches of the context (zeros pad its end), mask tokens]; the mask tokens
    are first filled in by a linear map over all tokens, learned positions are added to all but the
    prompts, and the head turns tokens into patches of values. Attention over variables makes the
    forecast of one depend on the others: windows are independent, channels are not.

    `dataset` names the prompt and mask tokens to use; without it those of the only data set, or the
    mean over the variables of all. Where the window has another number of variables than the
    tokens, they are averaged over theirs. The zero-shot variant, recognised by its keys, shares one
    prompt among all variables and data sets.

    Fixed on purpose: the horizon is rounded up to whole patches and cut, where upstream leaves the
    last (L + H) mod P steps at the mean, or fails. Missing values of a forecast's context are left
    out of the statistics and count as the mean (our rule; upstream has none). A context that the
    position table cannot hold is cut on the left. `cls_head`, `pretrain_head` and the two `proj` of
    the attention blocks take no part in these tasks and get no gradient.
    """

    name = "units"
    presets = PRESETS
    capabilities = frozenset({"forecast", "zero-shot", "imputation", "anomaly"})
    head_prefixes = ("forecast_head.proj_out.",)
    options = frozenset({"dataset", "dropout"})
    mixes_channels = True
    unused = (
        *("cls_head.*", "cls_token", "cls_tokens.*", "category_tokens.*", "pretrain_head.*"),
        *("*.seq_att_block.proj.*", "*.var_att_block.proj.*"),
    )

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(_complete(config))
        config = self.config
        width, prompts, dropout = config["d_model"], config["prompt_num"], config["dropout"]
        self.patch = config["patch_len"]
        native = self._native()
        self.lookback, self.horizon = lookback or native[0], horizon or native[1]
        if config["shared_tokens"]:
            self._make_shared()
        else:
            tasks = config.get("configs_list") or published(config["pretrain"])
            self._make_tokens(token_shapes(tasks, prompts, width, config["pretrain"]))
        self.patch_embeddings = nn.ModuleDict(
            {"value_embedding": nn.Linear(self.patch, width, bias=False)}
        )
        self.position_embedding = nn.Module()
        self._make_places(config.get("max_len", MAX_PLACES))
        self.prompt2forecat = DynamicLinear(NATIVE, NATIVE, prompts)  # so spelt in checkpoints
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["e_layers"]))
        self.cls_head = ClassHead(width, dropout)
        self.forecast_head = ForecastHead(width, self.patch, prompts, dropout)
        if config["pretrain"]:
            self.pretrain_head = ForecastHead(width, self.patch, 1, dropout)
        self.dropout = Dropout(dropout)

    def _native(self) -> tuple[int, int]:
        """Lookback and horizon of the first forecasting task (of `dataset`), else 96 and 96."""
        for _, task in self.config.get("configs_list") or ():
            chosen = self.config.get("dataset") in (None, task["dataset"])
            if chosen and task["task_name"] == "long_term_forecast":
                return task["seq_len"], task["pred_len"]
        return 96, 96

    # -- tokens of the data sets -----------------------------------------------------------------

    def _make_tokens(self, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
        for family, named in shapes.items():
            table = {name: nn.Parameter(torch.empty(shape)) for name, shape in named.items()}
            setattr(self, family, nn.ParameterDict(table))

    def _make_shared(self) -> None:
        width = self.config["d_model"]
        self.prompt_token = nn.Parameter(torch.empty(1, 1, self.config["prompt_num"], width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, 1, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, 1, width))

    def _make_places(self, num_places: int) -> None:
        table = nn.Parameter(torch.empty(1, 1, num_places, self.config["d_model"]))
        self.position_embedding.register_parameter("pe", table)

    def accept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tokens, positions and pre-training head as the checkpoint has them; the rest must fit.

        A checkpoint knows its data sets better than any config. Tokens that `configs_list` declares
        must be there all the same; a pre-training head and class tokens may be gone.
        """
        self._adopt_tokens(state)
        places = state.get(PLACES)
        if places is not None and places.ndim == 4:
            self._make_places(places.shape[2])
        has_head = any(key.startswith("pretrain_head.") for key in state)
        if not has_head:
            self._forget("pretrain_head")
        elif not self.config["pretrain"]:
            width, dropout = self.config["d_model"], self.config["dropout"]
            self.pretrain_head = ForecastHead(width, self.patch, 1, dropout)
        self._check_dataset()
        return dict(state)

    def _adopt_tokens(self, state: Mapping[str, Tensor]) -> None:
        shared = "prompt_token" in state
        shapes: dict[str, dict[str, tuple[int, ...]]] = {family: {} for family in FAMILIES}
        if not shared and self.config.get("configs_list") and hasattr(self, "prompt_tokens"):
            for family in FAMILIES[:2]:
                own = getattr(self, family).items()
                shapes[family] = {name: tuple(token.shape) for name, token in own}
        for key, tensor in state.items():
            family, _, name = key.partition(".")
            if name and family in FAMILIES and name not in shapes[family]:
                shapes[family][name] = tuple(tensor.shape)
        self._forget(*FAMILIES, *SHARED)
        if shared:
            self._make_shared()
        self._make_tokens({family: named for family, named in shapes.items() if named})

    def _check_dataset(self) -> None:
        dataset = self.config.get("dataset")
        if dataset is None:
            return
        if self.shared:
            raise InputError(f"units: dataset={dataset!r} is given, but the prompts are shared")
        table: nn.ParameterDict = getattr(self, "prompt_tokens", nn.ParameterDict())
        if dataset not in table:
            raise unknown("dataset of units", dataset, list(table))

    def _forget(self, *names: str) -> None:
        for name in names:
            if hasattr(self, name):
                delattr(self, name)

    @property
    def shared(self) -> bool:
        """Whether one prompt serves all data sets and variables (the zero-shot variant)."""
        return hasattr(self, "prompt_token")

    def _tokens(self, family: str, like: Tensor) -> Tensor:
        """Prompt or mask tokens for windows [B, C, ...]: [B, C, tokens, D]."""
        lead = like.shape[:2]
        if self.shared:
            own: Tensor = getattr(self, family.removesuffix("s"))
            return own.expand(*lead, -1, -1)
        table: nn.ParameterDict = getattr(self, family)
        dataset = str(self.config.get("dataset"))
        chosen = [dataset] if dataset in table else list(table)  # class tokens are kept by task
        if len(chosen) == 1:
            own = table[chosen[0]]
        else:
            own = torch.stack([table[name].mean(1, keepdim=True) for name in chosen]).mean(0)
        if own.shape[1] != lead[1]:
            own = own.mean(1, keepdim=True)
        return own.expand(*lead, -1, -1)

    # -- the network -----------------------------------------------------------------------------

    def embed(self, normed: Tensor) -> Tensor:
        """Normalised values [B, C, L] -> tokens [B, C, N, D], zeros after the last value."""
        padded = F.pad(normed, (0, -normed.shape[-1] % self.patch))
        patches = padded.reshape(*padded.shape[:2], -1, self.patch)
        return call(self.dropout, self.patch_embeddings["value_embedding"](patches))

    def backbone(self, prompt: Tensor, tokens: Tensor, last: Tensor | None = None) -> Tensor:
        """Prompts, tokens at their positions and perhaps a class token through all blocks."""
        num_tokens = tokens.shape[2]
        places = self.position_embedding.get_parameter("pe")
        if num_tokens > places.shape[2]:
            raise InputError(
                f"units: {num_tokens} tokens of {self.patch} values are more than the "
                f"{places.shape[2]} positions of the checkpoint"
            )
        parts = [prompt, tokens + places[:, :, :num_tokens], *([] if last is None else [last])]
        hidden = torch.cat(parts, dim=2)
        for block in self.blocks:
            hidden = block(hidden, prompt.shape[2] + num_tokens)
        return hidden

    def _filled(self, tokens: Tensor, missing: Tensor) -> Tensor:
        """Tokens [B, C, N, D] with those of `missing` [B, C, N, 1] replaced by educated guesses."""
        prompt, mask = self._tokens("prompt_tokens", tokens), self._tokens("mask_tokens", tokens)
        full = torch.cat([prompt, torch.where(missing, mask, tokens)], dim=2)
        guesses = over_tokens(self.prompt2forecat, full, tokens.shape[2])
        return torch.where(missing, guesses, tokens)

    def _values(self, tokens: Tensor) -> Tensor:
        """Tokens [B, C, N, D] -> values [B, C, N * P], normalised."""
        hidden = self.backbone(self._tokens("prompt_tokens", tokens), tokens)
        return call(self.forecast_head, hidden, tokens.shape[2])

    def reconstruct(self, values: Tensor) -> Tensor:
        """The window as the network sees it, [B, C, L] -> same: anomalies are where it differs."""
        loc, scale = statistics(values)
        found = self._values(self.embed((values - loc) / scale))
        return torch.addcmul(loc, found[..., : values.shape[-1]], scale)

    def impute(self, values: Tensor, mask: Tensor) -> Tensor:
        """The whole window rebuilt from what `mask` (1 where observed) leaves: [B, C, L] -> same.

        A token is guessed if any of its values is missing. As published, the mean runs over all
        values, missing ones as 0, and only the spread over the observed; L need not be whole
        patches, where upstream fails.
        """
        mask = mask.to(values)
        values = values * mask
        loc, scale = imputation_statistics(values, mask)
        tokens = self.embed((values - loc) / scale * mask)
        whole = F.pad(mask, (0, -mask.shape[-1] % self.patch), value=1.0)
        missing = (whole.reshape(*whole.shape[:2], -1, self.patch) == 0).any(-1)[..., None]
        found = self._values(self._filled(tokens, missing))
        return torch.addcmul(loc, found[..., : values.shape[-1]], scale)

    def rebuild(self, values: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-training: [B, C, L] and masked tokens [B, N] -> windows by class token, by tokens.

        The authors' objective is the sum of both mean squared errors, over all values. Needs a
        pre-training checkpoint; class tokens are averaged over tasks where there are several.
        """
        if not hasattr(self, "pretrain_head"):
            raise InputError("units: this checkpoint has no pre-training head")
        loc, scale = statistics(values)
        tokens = self._filled(self.embed((values - loc) / scale), missing[:, None, :, None].bool())
        num_tokens, num_prompts = tokens.shape[2], self.config["prompt_num"]
        prompt = self._tokens("prompt_tokens", tokens)
        hidden = self.backbone(prompt, tokens, self._tokens("cls_tokens", tokens))
        summary = self.cls_head(hidden)
        fused = torch.cat([summary, hidden[:, :, num_prompts:-1].detach()], dim=2)
        by_class, by_tokens = (
            torch.addcmul(loc, found[..., : values.shape[-1]], scale)
            for found in (
                self.pretrain_head(fused, num_tokens),
                self.forecast_head(hidden[:, :, :-1], num_tokens),
            )
        )
        return by_class, by_tokens

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
        num_places = self.position_embedding.get_parameter("pe").shape[2]
        room = num_places + -horizon // self.patch  # tokens left for the context
        past = past[..., -max(room, 1) * self.patch :]
        if past_mask is not None:
            past_mask = past_mask[..., -past.shape[-1] :].to(past)
        loc, scale = statistics(past, past_mask)
        normed = (past - loc) / scale
        known = self.embed(normed if past_mask is None else normed * past_mask)
        length = past.shape[-1]
        num_wanted = -(-(length + horizon) // self.patch) - known.shape[2]
        tokens = F.pad(known, (0, 0, 0, num_wanted))
        wanted = torch.arange(tokens.shape[2], device=past.device) >= known.shape[2]
        found = self._values(self._filled(tokens, wanted[:, None]))
        return torch.addcmul(loc, found[..., length : length + horizon], scale)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean of (forecast - future)^2 over the observed values, in the units of the input."""
        forecast = self._forecast(past, future.shape[-1], past_mask)
        return masked_mean((forecast - future).square(), future_mask)

    def initial(self, init: InitName = "usable") -> dict[str, Start]:
        """PyTorch's defaults; tokens N(0, 0.02), mask tokens 0; resizable maps U(-k, k).

        k = 1 / sqrt(inputs), weights and bias alike. Positions, which are learned, start as
        sinusoids for every seed. Nothing is degenerate, so `published` and `usable` are one.
        """
        from sffbench.models.twin import Sinusoids
        from sffkernels import Init

        given: dict[str, Start] = {PLACES: Sinusoids()}
        for name, _ in self.named_parameters():
            if name.startswith("mask_token"):
                given[name] = Init("constant", 0.0)
            elif name.split(".")[0] in (*FAMILIES, *SHARED):
                given[name] = Init("normal", 0.0, 0.02)
        for name, module in self.named_modules():
            if isinstance(module, DynamicLinear):
                bound = module.weights.shape[1] ** -0.5
                given[f"{name}.weights"] = given[f"{name}.bias"] = Init("uniform", -bound, bound)
        return default_init(self, given)


def statistics(values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(population variance + 1e-5) of each variable: [B, C, L] -> two [B, C, 1]."""
    lead = (*values.shape[:2], 1)
    flat = None if mask is None else mask.flatten(0, 1)
    loc, scale = location_scale(values.flatten(0, 1), flat)
    return loc.view(lead), scale.view(lead)


def imputation_statistics(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all values (missing ones are 0), spread around it of the observed ones."""
    loc = values.mean(-1, keepdim=True)
    squares = ((values - loc) * mask).square().sum(-1, keepdim=True)
    return loc, (squares / mask.sum(-1, keepdim=True).clamp_min(1.0) + 1e-5).sqrt()
