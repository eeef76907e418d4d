"""Chronos-T5: values as words. A T5 language model over bins, which samples the future.

A window is divided by its mean magnitude, each value becomes the number of its bin, an encoder
reads them, and a decoder draws the next ones, word by word. State-dict names are those of
`transformers`, as `chronos-forecasting` (2.3.2) loads them; `golden/chronos-t5` records its
outputs. Call: `sffbench.models.load("chronos", folder).sample(past, 64, 20)`; read top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models import _t5
from sffbench.models.base import LTSM, InitName
from sffbench.models.blocks import call
from sffbench.models.chronos import HEAD, TIED, Chronos

if TYPE_CHECKING:
    from sffkernels import Init

PAD, EOS, IGNORED = 0, 1, -100
REQUIRED = ("context_length", "prediction_length", "n_tokens", "tokenizer_kwargs")
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "tokenizer_class": ("MeanScaleUniformBins",),
    "model_type": ("seq2seq",),
    "pad_token_id": (PAD,),
    "eos_token_id": (EOS,),
}
SAMPLING: dict[str, Any] = {"num_samples": 20, "temperature": 1.0, "top_k": 50, "top_p": 1.0}

Choose = Callable[[Tensor], Tensor]  # scores of the next word, [M * S, V] -> words, [M * S]


class ChronosT5(Chronos):
    """Chronos-T5: x / mean |x| into bins, sampled word by word; the forecast is the median.

    A window without a magnitude is divided by 1. Values beyond the outer bins (15 times the
    magnitude) saturate. Missing values are not attended. A longer lookback is cut on the left, a
    shorter one is left as it is. A longer horizon is drawn in blocks: the median over the samples
    of a block (the lower one of an even number) is appended to the context, which is scaled anew.

    The head is the embedding, transposed: a linear probe trains that one table, input and output.
    """

    head_prefixes = ("shared.",)
    options = frozenset({"dropout_rate", *SAMPLING})
    tied = (*TIED, HEAD)

    def _settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        settings = SAMPLING | {"n_special_tokens": 2, "use_eos_token": True}
        settings |= config["chronos_config"]
        settings |= {key: config[key] for key in SAMPLING if key in config}  # options of `load`
        if absent := [key for key in REQUIRED if key not in settings]:
            raise InputError(f"chronos: chronos_config lacks {', '.join(absent)}")
        for key, allowed in SUPPORTED.items():
            if settings.get(key, allowed[0]) not in allowed:
                raise InputError(
                    f"chronos: {key}={settings[key]!r} is not supported, allowed: {allowed[0]!r}"
                )
        if not settings["temperature"] > 0 or not 0 < settings["top_p"] <= 1:
            given = f"temperature={settings['temperature']!r}, top_p={settings['top_p']!r}"
            raise InputError(f"chronos: {given}: must be above 0, the second at most 1")
        if not config.get("tie_word_embeddings", True):
            raise InputError("chronos: tie_word_embeddings=False is not supported, allowed: True")
        return settings

    def _build(self) -> None:
        self.num_samples = self.settings["num_samples"]
        self.num_special = self.settings["n_special_tokens"]
        self.start = self.config.get("decoder_start_token_id", PAD)
        # Unscaled only where a config says so, as T5s do that were once made with two tables.
        scaled = self.config.get("scale_decoder_outputs", True)
        self.output_scale = self.t5["d_model"] ** -0.5 if scaled else 1.0
        num_words = self.config.get("vocab_size", self.settings["n_tokens"])
        if type(self.start) is not int or not 0 <= self.start < num_words:
            raise InputError(
                f"chronos: decoder_start_token_id={self.start!r} must be one of the "
                f"{num_words} words, from 0 on"
            )
        self.shared = nn.Embedding(num_words, self.t5["d_model"])
        self.encoder = _t5.Encoder(self.t5)
        self.decoder = _t5.Decoder(self.t5)

    def centers(self, like: Tensor) -> Tensor:
        """The value of each bin, in float32 whatever the network computes in."""
        limits = self.settings["tokenizer_kwargs"]
        number = self.settings["n_tokens"] - self.num_special - 1
        return torch.linspace(limits["low_limit"], limits["high_limit"], number, device=like.device)

    def edges(self, like: Tensor) -> Tensor:
        """Where bins begin and end: half-way between centres, the outer ones nowhere."""
        centers = self.centers(like)
        inner = (centers[1:] + centers[:-1]) / 2
        return F.pad(F.pad(inner, (1, 0), value=-1e20), (0, 1), value=1e20)

    def words(self, values: Tensor, seen: Tensor | None, missing: int) -> Tensor:
        """Scaled values -> words; those not seen are `missing`.

        The first bin starts at -1e20, so that the words below `n_special_tokens` + 1 never occur.
        """
        words: Tensor = torch.bucketize(values.float(), self.edges(values), right=True)
        words = words + self.num_special
        words = words.clamp(0, self.settings["n_tokens"] - 1)
        if seen is not None:
            words = words.masked_fill(seen == 0, missing)
        return words

    def values(self, words: Tensor) -> Tensor:
        """Words -> scaled values."""
        centers = self.centers(words)
        return centers[(words - self.num_special - 1).clamp(0, len(centers) - 1)]

    def tokens(self, past: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Windows [M, L] -> words [M, N], which of them are attended (None: all), scale [M, 1]."""
        past, seen = past[:, -self.context :], None if seen is None else seen[:, -self.context :]
        scale = magnitude(past, seen)
        words = self.words(past / scale, seen, PAD)
        if self.settings["use_eos_token"]:
            words = F.pad(words, (0, 1), value=EOS)
            seen = None if seen is None else F.pad(seen, (0, 1), value=1.0)
        return words, seen, scale

    def labels(self, target: Tensor, wanted: Tensor | None) -> Tensor:
        """Scaled values of the future [M, N] -> words [M, P + 1]: absent ones ignored, then EOS."""
        words = self.words(target, wanted, IGNORED)
        words = F.pad(words, (0, self.block - words.shape[1]), value=IGNORED)
        return F.pad(words, (0, 1), value=EOS) if self.settings["use_eos_token"] else words

    def encode(self, words: Tensor, observed: Tensor | None = None) -> Tensor:
        """Words [M, N] -> hidden [M, N, D]."""
        return call(self.encoder, self.shared(words), observed)

    def scores(
        self,
        words: Tensor,
        context: Tensor,
        observed: Tensor | None = None,
        cache: _t5.Cache | None = None,
    ) -> Tensor:
        """Logits of the word after each of the decoder's words, [M * S, N] -> [M * S, N, V]."""
        hidden = call(self.decoder, self.shared(words), context, observed, cache)
        return F.linear(hidden * self.output_scale, self.shared.weight)

    def decode(
        self,
        context: Tensor,
        observed: Tensor | None,
        num_samples: int,
        num_steps: int,
        choose: Choose,
    ) -> Tensor:
        """`num_steps` words for each of S samples of a window: [M, N, D] -> [M, S, num_steps].

        EOS is never chosen: upstream demands exactly as many words as there are steps.
        """
        words = [torch.full((len(context) * num_samples,), self.start, device=context.device)]
        cache: _t5.Cache = {}
        for _ in range(num_steps):
            scores = self.scores(words[-1][:, None], context, observed, cache)[:, 0].float()
            scores[:, EOS] = float("-inf")
            words.append(choose(scores))
        return torch.stack(words[1:], dim=1).view(-1, num_samples, num_steps)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Scores [M, V] -> what words are drawn from: temperature, the top k, then the top p."""
        scores = scores / self.settings["temperature"]
        if k := min(self.settings["top_k"] or 0, scores.shape[-1]):
            scores = scores.masked_fill(scores < scores.topk(k).values[:, -1:], float("-inf"))
        if self.settings["top_p"] < 1.0:
            ordered, place = scores.sort(dim=-1)
            dropped = ordered.softmax(-1).cumsum(-1) <= 1.0 - self.settings["top_p"]
            dropped[:, -1] = False
            scores = scores.masked_fill(dropped.scatter(1, place, dropped), float("-inf"))
        return scores.softmax(-1)

    def generate(
        self, past: Tensor, horizon: int, num_samples: int, seen: Tensor | None, choose: Choose
    ) -> Tensor:
        """Samples of the future, [M, L] -> [M, S, H], in the units of `past`."""
        blocks: list[Tensor] = []
        for first in range(0, horizon, self.block):
            words, observed, scale = self.tokens(past, seen)
            num_steps = min(self.block, horizon - first)
            context = self.encode(words, observed)
            drawn = self.decode(context, observed, num_samples, num_steps, choose)
            blocks.append(self.values(drawn).to(past.dtype) * scale[..., None])
            past = torch.cat([past, blocks[-1].median(1).values], dim=1)
            seen = None if seen is None else F.pad(seen, (0, num_steps), value=1.0)
        return torch.cat(blocks, dim=2)

    def _sample(
        self,
        past: Tensor,
        horizon: int,
        num_samples: int,
        past_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        # Without a generator the stream is fixed: a score must not depend on earlier calls.
        source = generator or torch.Generator(past.device).manual_seed(0)

        def choose(scores: Tensor) -> Tensor:
            return torch.multinomial(self.probabilities(scores), 1, generator=source)[:, 0]

        seen = None if past_mask is None else past_mask.flatten(0, 1)
        drawn = self.generate(past.flatten(0, 1), horizon, num_samples, seen, choose)
        return drawn.view(*past.shape[:2], num_samples, horizon)

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
        return LTSM._quantiles(
            self, past, horizon, levels, past_mask, num_samples=num_samples, generator=generator
        )

    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        number = num_samples or self.num_samples
        return self._sample(past, horizon, number, past_mask, generator=generator).median(2).values

    def block_loss(
        self, past: Tensor, target: Tensor, seen: Tensor | None, wanted: Tensor | None
    ) -> Tensor:
        """Mean cross-entropy of the next block's words and the EOS after it, under the true ones.

        The future is scaled by the context's magnitude.
        """
        words, observed, scale = self.tokens(past, seen)
        labels = self.labels(target / scale, wanted)
        given = F.pad(labels[:, :-1], (1, 0), value=self.start)
        given = given.masked_fill(given == IGNORED, PAD)
        scores = self.scores(given, self.encode(words, observed), observed)
        return F.cross_entropy(scores.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)

    def initial(self, init: InitName = "usable") -> dict[str, Init]:
        """T5's rules, all spreads and the gains of norms times the config's factor, published 0.05.

        With that factor a fresh network is nearly zero and its norms shrink 20-fold: `usable` is 1.
        """
        return self._initial_stacks(init)[0]


def magnitude(past: Tensor, seen: Tensor | None) -> Tensor:
    """Mean |x| of the observed values, [M, L] -> [M, 1]; 1 where that is 0 or nothing was."""
    if seen is None:
        mean = past.abs().mean(1, keepdim=True)
    else:
        mean = (past.abs() * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1.0)
    return mean.masked_fill(mean == 0, 1.0)
