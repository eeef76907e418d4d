"""DLinear and PatchTST: their formulas as plain float64 loops, and their cells."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sffbench import models, planning, runner, strategies
from sffbench.errors import InputError
from sffbench.strategies.specialised import ChannelNetwork
from sffbench.suite import RunSpec

Cells = Callable[..., list[RunSpec]]
NAMES = ["dlinear", "patchtst"]


def network(
    name: str, lookback: int, horizon: int, rows: int = 5000, seed: int = 0, **f: Any
) -> Any:
    return strategies.get(name, **f).network(lookback, horizon, rows, seed)  # type: ignore[attr-defined]


def windows(*shape: int) -> Tensor:
    return 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_dlinear_is_two_linear_maps_of_a_moving_average_and_the_rest() -> None:
    net = network("dlinear", 40, 6)
    past = windows(2, 3, 40)
    season, trend = net.season, net.trend
    found = net.forecast(past, 6)
    for b in range(2):
        for c in range(3):
            x = past[b, c].double().tolist()
            padded = [x[0]] * 12 + x + [x[-1]] * 12
            average = [sum(padded[t : t + 25]) / 25 for t in range(40)]
            for h in range(6):
                expected = season.bias[h].item() + trend.bias[h].item()
                for t in range(40):
                    expected += season.weight[h, t].item() * (x[t] - average[t])
                    expected += trend.weight[h, t].item() * average[t]
                assert float(found[b, c, h]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def _rows(matrix: Tensor) -> list[list[float]]:
    return matrix.detach().double().tolist()  # type: ignore[no-any-return]


def _linear(layer: Any, x: list[float]) -> list[float]:
    weight, bias = _rows(layer.weight), _rows(layer.bias)
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]  # type: ignore[operator]


def _norm(layer: Any, x: list[float]) -> list[float]:
    parts = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    return [
        (v - m) / math.sqrt(s + 1e-5) * g + b  # type: ignore[operator]
        for v, g, b, m, s in zip(x, *map(_rows, parts), strict=True)
    ]


def _gelu(v: float) -> float:
    return 0.5 * v * (1 + math.erf(v / math.sqrt(2)))


def _attention(
    layer: Any, tokens: list[list[float]], scores: list[list[list[float]]]
) -> list[list[float]]:
    """Adds this layer's scores to `scores` in place; [tokens, D] out, before the projection."""
    width, heads = len(tokens[0]), layer.num_heads
    size = width // heads
    qkv = [_linear(layer.qkv, token) for token in tokens]
    mixed = [[0.0] * width for _ in tokens]
    for a in range(heads):
        here = range(a * size, (a + 1) * size)
        for i, query in enumerate(qkv):
            for j, key in enumerate(qkv):
                product = sum(query[d] * key[width + d] for d in here)
                scores[a][i][j] += product / math.sqrt(size)
            exps = [math.exp(s) for s in scores[a][i]]
            for d in here:
                values = [one[2 * width + d] for one in qkv]
                mixed[i][d] = sum(e * v for e, v in zip(exps, values, strict=True)) / sum(exps)
    return mixed


def _patchtst(net: Any, x: list[float]) -> list[float]:
    mean = sum(x) / len(x)
    std = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-5)
    z = [(v - mean) / std for v in x]
    z += [z[-1]] * 8
    count = (len(x) - 16) // 8 + 2
    tokens = [_linear(net.embedding, z[8 * i : 8 * i + 16]) for i in range(count)]
    places = _rows(net.positions)
    tokens = [
        [v + p for v, p in zip(*pair, strict=True)] for pair in zip(tokens, places, strict=True)
    ]
    heads = net.layers[0].num_heads
    scores = [[[0.0] * count for _ in range(count)] for _ in range(heads)]
    for layer in net.layers:
        mixed = _attention(layer, tokens, scores)
        for i in range(count):
            out = _linear(layer.out, mixed[i])
            u = _norm(layer.attention_norm, [a + b for a, b in zip(tokens[i], out, strict=True)])
            inner = [_gelu(v) for v in _linear(layer.up, u)]
            out = _linear(layer.down, inner)
            tokens[i] = _norm(layer.mlp_norm, [a + b for a, b in zip(u, out, strict=True)])
    flat = [tokens[i][d] for d in range(len(tokens[0])) for i in range(count)]
    return [v * std + mean for v in _linear(net.head, flat)]


def test_patchtst_is_its_formula() -> None:
    net = network("patchtst", 44, 5)
    with torch.no_grad():  # after some training, say: norms that do something
        for layer in net.layers:
            for norm in (layer.attention_norm, layer.mlp_norm):
                norm.running_mean.normal_(0.1, 0.2, generator=torch.Generator().manual_seed(1))
                norm.running_var.fill_(0.7)
                norm.bias.fill_(0.05)
    past = windows(1, 2, 44)
    found = net.forecast(past, 5)
    for channel in range(2):
        expected = _patchtst(net, past[0, channel].double().tolist())
        assert found[0, channel].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_batch_norms_learn_their_statistics_over_all_tokens_of_a_batch() -> None:
    net = network("patchtst", 44, 5).train()
    seen: list[Tensor] = []
    net.layers[0].attention_norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net.loss(windows(8, 1, 44), windows(8, 1, 5))
    tokens = seen[0].detach().double().flatten(0, 1)
    norm = net.layers[0].attention_norm
    torch.testing.assert_close(
        norm.running_mean.double(), 0.1 * tokens.mean(0), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("rows", "fields", "count"),
    [
        (8640, {}, 16),
        (34560, {}, 128),
        (8640, {"size": "base"}, 128),
        (10**6, {"size": "small"}, 16),
    ],
)
def test_patchtst_is_small_on_small_sets(rows: int, fields: dict[str, Any], count: int) -> None:
    assert network("patchtst", 336, 96, rows, **fields).positions.shape == (42, count)


@pytest.mark.parametrize("size", ["small", "base"])
def test_patchtst_has_the_size_of_its_closed_form(size: str) -> None:
    """512 -> 96: W_p, positions, three layers of maps and norms, head."""
    d, inner = {"small": (16, 128), "base": (128, 256)}[size]
    layer = 4 * (d * d + d) + (d * inner + inner) + (inner * d + d) + 4 * d
    expected = (16 * d + d) + 64 * d + 3 * layer + 64 * d * 96 + 96
    net = network("patchtst", 512, 96, size=size)
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_drawn_from_its_seed_alone(name: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed + 100)
        return torch.cat([p.flatten() for p in network(name, 40, 6, seed=seed).parameters()])

    state = torch.random.get_rng_state()
    first = weights(0)
    torch.random.set_rng_state(state)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_the_mean_squared_error_of_what_is_observed(name: str) -> None:
    net: ChannelNetwork = network(name, 40, 6)
    past, future = windows(3, 2, 40), windows(3, 2, 6)
    forecast = net.forecast(past, 6).double()
    squared = (forecast - future.double()) ** 2
    assert net.loss(past, future).item() == pytest.approx(float(squared.mean()), rel=1e-5)
    mask = torch.zeros(3, 2, 6)
    mask[0, 1, 2] = mask[2, 0, 5] = 1
    expected = float(squared[0, 1, 2] + squared[2, 0, 5]) / 2
    assert net.loss(past, future, future_mask=mask).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_shorter_horizon_is_cut_and_a_longer_one_refused(name: str) -> None:
    net = network(name, 40, 6)
    past = windows(1, 1, 40)
    assert torch.equal(net.forecast(past, 4), net.forecast(past, 6)[..., :4])
    with pytest.raises(InputError, match=f"this {name} forecasts 6 steps, asked 7"):
        net.forecast(past, 7)


def test_a_lookback_without_a_patch_is_refused() -> None:
    with pytest.raises(InputError, match="a lookback of 15 holds no patch of 16 steps"):
        network("patchtst", 15, 6)


def test_networks_of_strategies_are_no_models() -> None:
    network("dlinear", 40, 6)
    assert not set(NAMES) & set(models.names())


# -- cells -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "context", "lr"), [("dlinear", 336, 5e-3), ("patchtst", 512, 1e-4)]
)
def test_a_specialised_baseline_is_one_row_per_data_set(
    cells_of: Cells, small_ttm: Path, name: str, context: int, lr: float
) -> None:
    entry = {"name": "ttm", "source": str(small_ttm)}
    two = [entry, entry | {"options": {"dropout": 0.5}}]
    specs = cells_of(models=two, strategies=[name], datasets=["ETTh1", "ETTh2"], seeds=[0, 1])
    assert [(s.cell["data"]["name"], s.cell["seed"]) for s in specs] == [
        (data, seed) for data in ("ETTh1", "ETTh2") for seed in (0, 1)
    ]
    for spec in specs:
        assert spec.cell["model"]["name"] == "none"
        assert (spec.cell["lookback"], spec.cell["lr"]) == (context, lr)
    (cut,) = cells_of(strategies=[{"name": name, "context": 900}], protocol="sff-paper", budget={})
    assert cut.cell["lookback"] == 672


@pytest.mark.parametrize("name", NAMES)
def test_a_specialised_cell_trains_and_repeats_its_bits(cells_of: Cells, name: str) -> None:
    (spec,) = cells_of(strategies=[{"name": name, "context": 48, "lr": 0.01}])
    first, again = (runner.run(spec, torch.device("cpu")) for _ in range(2))
    assert first["status"] == "ok", first["reason"]
    assert first["metrics"] == again["metrics"]
    assert first["curve"][-1]["train_loss"] == again["curve"][-1]["train_loss"]
    assert first["cost"]["train_windows"] == 4 * 16
    assert first["cost"]["num_trained"] == first["cost"]["num_parameters"] > 0
    assert first["validation"]["candidates"]
    assert first["flags"]["head"] == "random"
    (other,) = cells_of(strategies=[{"name": name, "context": 48, "lr": 0.01}], seeds=[1])
    assert runner.run(other, torch.device("cpu"))["metrics"] != first["metrics"]


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_counts_the_operations_of_a_network_of_its_own(cells_of: Cells, name: str) -> None:
    (spec,) = cells_of(strategies=[{"name": name, "context": 48}])
    (naive,) = cells_of(strategies=["last-value"])
    assert planning.seconds(spec, planning.CPU_FLOPS, []) > planning.OVERHEAD_S
    assert planning.seconds(naive, planning.CPU_FLOPS, []) == planning.OVERHEAD_S
    if name == "dlinear":
        assert planning._cell_flops(spec) == 2 * 2 * 48 * 8


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), [("dlinear", 0.375)])
def test_a_baseline_reaches_its_published_error_on_etth1(
    name: str, published: float, cells_of: Cells, real_data: Path
) -> None:
    from sffbench import cells, suite

    fields = {"protocol": "standard", "data": "real", "models": ["ttm:tiny"]}
    one = suite.Suite(name="x", datasets=["ETTh1"], strategies=[name], **fields)  # type: ignore[arg-type]
    (spec,) = cells.expand(one, suite.Places(data=str(real_data)))
    record = runner.run(spec, torch.device("cpu"))
    assert record["metrics"]["mse"] == pytest.approx(published, rel=0.02)
