"""Strategies that the kit must catch: each breaks one rule, as its name says."""

import gc
from typing import ClassVar

import torch

from sffbench.data.dataset import Dataset
from sffbench.strategies import Strategy


class TrainsOnValidation(Strategy):
    """Digs the validation windows out of ctx and takes its batches from them."""

    name: ClassVar[str] = "trains-on-validation"

    def step(self, model, batch, ctx):
        loop = ctx.score.__closure__[0].cell_contents
        windows = loop.validation_windows
        return super().step(model, windows.batch(torch.arange(16)), ctx)


class SeesTest(Strategy):
    """Looks for data sets among all objects and sets its learning rate by their last rows."""

    name: ClassVar[str] = "sees-test"

    def parameters(self, model, ctx):
        found = [one for one in gc.get_objects() if isinstance(one, Dataset)]
        level = sum(float(one.scaled[one.borders[1] :].abs().mean()) for one in found)
        return [{"params": list(model.parameters()), "lr": ctx.lr * (1 + level)}]


class Unrestored(Strategy):
    """Halves the weights for validation and forgets to double them again."""

    name: ClassVar[str] = "unrestored"

    def eval_model(self, model, ctx):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)
        return model


class Dicey(Strategy):
    """Noise from a generator that nobody seeded, and from the global one."""

    name: ClassVar[str] = "dicey"

    def prepare(self, model, ctx):
        torch.rand(1)
        generator = torch.Generator()
        generator.seed()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        return model


class Careless(Strategy):
    """Buffers zeroed, dropout off for good, half of the parameters forgotten, ctx written to."""

    name: ClassVar[str] = "careless"

    def parameters(self, model, ctx):
        return list(model.parameters())[::2]

    def step(self, model, batch, ctx):
        loss = super().step(model, batch, ctx)
        model.eval()
        for buffer in model.buffers():
            buffer.zero_()
        next(iter(ctx.pretrained.values())).zero_()
        return loss


class Unfaithful(Strategy):
    """Says that no seed changes it; hands over a model of its own, by way of no ctx.backward."""

    name: ClassVar[str] = "unfaithful"
    seeded: ClassVar[bool] = False

    def step(self, model, batch, ctx):
        ctx.optimizer.zero_grad()
        loss = ctx.loss(model, batch)
        loss.backward()
        ctx.optimizer.step()
        return loss.detach()

    def finish(self, model, ctx):
        return torch.nn.Linear(2, 2)
