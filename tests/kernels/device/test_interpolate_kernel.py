"""The kernel of `interpolate_` against plain torch on the CPU, element by element.

Tensors of every shape, dtype and layout; what it reads and writes; its tables.
"""

import math

import numpy as np
import pytest
import torch
from on_device import DEVICE, INTERPRETED, needs_gpu, needs_kernels

from sffkernels import Init, interpolate_, plain
from sffkernels.philox import Words, name_words, split_words

pytestmark = needs_kernels
if INTERPRETED or DEVICE.type == "cuda":
    import kernel_probes as probes

    from sffkernels.gpu import interpolate as gpu
    from sffkernels.gpu import table

INITS = {
    "constant": Init.constant(1.5),
    "uniform": Init.uniform(-0.3, 0.7),
    "normal": Init.normal(0.5, 0.2),
    "two cuts": Init.truncated_normal(0.1, 0.02, -0.02, 0.14),
    "half normal": Init.truncated_normal(0, 1, 0, math.inf),
    "upper tail": Init.truncated_normal(0, 1, 3.0, 5.0),
    "wide cuts": Init.truncated_normal(0, 0.02, -2.0, 2.0),
}
# Largest difference from the CPU, relative to the noise's scale: its words are the same.
NOISE_ERROR = dict.fromkeys(INITS, 1e-6) | {"constant": 0.0, "uniform": 0.0}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# One unit in the last place; the interpreter cuts bfloat16 off where a GPU rounds.
ULP = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SHAPES = [(0,), (), (3,), (2047,), (2049,), (2, 0, 5), (7, 1171)]


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    """Few programs and blocks: each costs the interpreter 20 ms, however large."""
    monkeypatch.setattr(gpu, "BLOCK", 2048)
    monkeypatch.setattr(table, "CHUNK", 4096)


def random(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def on_kernel(tensors, a, *, other=(), b=0.0, init=(), c=0.0, seed=0, names=()):
    """`interpolate_` as a CUDA device runs it, whatever the device; checks are left out."""
    pairs = [(0.0, one) if isinstance(one, torch.Tensor) else (one, None) for one in (a, b, c)]
    numbers = [number for one in init for number in (one.a, one.b, one.low, one.high)]
    kinds, names = [one.kind for one in init], list(names)
    weights, on_device = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    seed = split_words(seed).signed()
    gpu.launch(tensors, list(other), weights, on_device, kinds, numbers, names, seed)


def both(tensors, a, *, other=None, **arguments):
    """(what the kernel makes, what plain torch makes on a CPU) of copies of `tensors`."""
    mine = [one.clone().to(DEVICE) for one in tensors]
    expected = [one.clone() for one in tensors]
    on_kernel(mine, a, other=[one.to(DEVICE) for one in other or ()], **arguments)
    interpolate_(expected, a, other=other, **arguments)
    return [one.cpu() for one in mine], expected


def assert_close(mine, expected, noise_error=0.0):
    limit = noise_error + ULP[expected.dtype] * expected.double().abs()
    assert mine.dtype == expected.dtype
    assert ((mine.double() - expected.double()).abs() <= limit).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", INITS)
def test_a_draw_equals_that_of_the_cpu(label, dtype):
    init = INITS[label]
    (mine,), (expected,) = both(
        [torch.full((2001,), math.nan, dtype=dtype)],
        0.0,
        init=[init],
        c=1.0,
        seed=7,
        names=["w"],
    )
    assert_close(mine, expected, NOISE_ERROR[label] * max(1.0, abs(init.a), init.b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", ["uniform", "normal"])
def test_every_shape_in_one_call_equals_the_cpu(label, dtype):
    tensors = [random(shape, index, dtype) for index, shape in enumerate(SHAPES)]
    names, inits = [str(shape) for shape in SHAPES], [INITS[label]] * len(SHAPES)
    mine, expected = both(tensors, 0.7, init=inits, c=0.3, seed=2**63 + 5, names=names)
    for one, other in zip(mine, expected, strict=True):
        assert_close(one, other, 1e-6)


def test_one_call_takes_all_kinds_and_dtypes_and_launches_once_for_each_dtype():
    tensors, inits, names = [], [], []
    for dtype in (*DTYPES, torch.float64):
        for label, init in INITS.items():
            tensors.append(random((50, 11), 1, dtype))
            inits.append(init)
            names.append(f"{label} {dtype}")
    mine, expected = both(tensors, 0.9, init=inits, c=0.1, seed=3, names=names)
    for one, two in zip(mine, expected, strict=True):
        assert_close(one, two, 1e-6)
    made = table.plan(tensors, [], inits, names)
    assert [one.theta for one in made.launches] == list(DTYPES)
    assert [tensors[index].dtype for index in made.loose] == [torch.float64] * len(INITS)


@pytest.mark.parametrize("other_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_tensors_of_any_dtype_give_the_bits_of_the_cpu(dtype, other_dtype):
    tensors = [random(shape, index, dtype) for index, shape in enumerate(SHAPES)]
    other = [random(shape, 50 + index, other_dtype) for index, shape in enumerate(SHAPES)]
    mine, expected = both(tensors, 0.999, other=other, b=0.001)
    for one, two in zip(mine, expected, strict=True):
        assert_close(one, two)


def test_all_three_terms_are_summed_from_left_to_right_as_on_the_cpu():
    arguments = {"init": [INITS["uniform"]], "c": 2.5, "names": ["w"]}
    theta, other = random((5000,), 1), random((5000,), 2)
    (mine,), (expected,) = both([theta], 0.3, other=[other], b=-1.7, **arguments)
    assert torch.equal(mine, expected)
    noise = expected.double() - (0.3 * theta.double() - 1.7 * other.double())
    assert ((noise / 2.5 + 0.3 > -1e-5) & (noise / 2.5 - 0.7 < 1e-5)).all()


@pytest.mark.parametrize("block", [512, 8192])
def test_neither_block_nor_chunk_size_changes_a_bit(block, monkeypatch):
    theta = random((9001,), 1)
    arguments = {"init": [INITS["normal"]], "c": 0.3, "seed": 9, "names": ["w"]}
    before, after = theta.to(DEVICE), theta.to(DEVICE).clone()
    on_kernel([before], 0.7, **arguments)
    monkeypatch.setattr(gpu, "BLOCK", block)
    monkeypatch.setattr(table, "CHUNK", block * 2)
    on_kernel([after], 0.7, **arguments)
    assert torch.equal(before, after)


@pytest.mark.parametrize("seed", [0, 2**31, 2**40 + 3, 2**64 - 1])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_the_24_bits_of_every_word_are_those_of_the_cpu(seed, dtype):
    # bfloat16 keeps 8 bits of them; the kernel's path to them is another one, with 8 a thread.
    mine, expected = both(
        [torch.empty(2000, dtype=dtype)],
        0.0,
        init=[Init.uniform(0, 1)],
        c=1.0,
        seed=seed,
        names=["ü"],
    )
    assert_close(mine[0], expected[0])


def test_the_words_are_those_of_the_cpu_beyond_counters_of_32_bits():
    name, key = name_words("w"), Words(123, 2**32 - 1)
    for element in (0, 2**31, 2**34 - 8192, 2**34, 2**40 + 8192):
        words = probes.words_at(element, name, key, 4096, DEVICE)
        philox = plain.Philox(1024).words(key, name, element // 4, 1024)
        assert np.array_equal(words.cpu().numpy(), philox.t().reshape(-1).numpy())


def test_the_table_reaches_tensors_of_more_than_2_31_elements():
    sizes = [5, 2**33 + 5, 0, 8192]
    rows = table.chunk_rows(sizes, 8192)
    within = [-(-size // 8192) for size in sizes]
    assert len(rows) == sum(within)
    assert rows[-2].tolist() == [1, 2**33 // 8192]
    assert rows[-1].tolist() == [3, 0]
    starts = rows[1:-1, 1].to(torch.int64) * 8192
    assert torch.equal(starts, torch.arange(0, 2**33 + 5, 8192))
    index, start, num = probes.located(rows[-3:], sizes, 8192, DEVICE)
    assert index == [1, 1, 3]
    assert start == [2**33 - 8192, 2**33, 0]
    assert num == [8192, 5, 8192]


def test_a_table_of_half_a_billion_elements_stays_below_1_mb():
    for total in (table.LARGE_CALL, 8 * table.LARGE_CALL):
        chunk = 8192 if total <= table.LARGE_CALL else table.LARGE_CHUNK
        rows = table.chunk_rows([total], chunk)
        assert rows.numel() * rows.element_size() < 1 << 20


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (0, 1, 0), (1, 0, 0), (0, 0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_coefficients_on_the_device_do_what_numbers_do(weights, dtype):
    theta, other = random((3001,), 1), random((3001,), 2)
    poison = torch.tensor([math.nan])
    theta = torch.cat([theta, poison if not weights[0] else -poison.new_zeros(1)])
    other = torch.cat([other, poison if not weights[1] else poison.new_ones(1)])
    tensors = [theta, theta.double()]  # the second one is left to plain torch
    others = [other.to(dtype), other.double()]
    arguments = {"init": [INITS["uniform"], INITS["constant"]], "names": ["v", "w"]}
    numbers = [torch.tensor(one, dtype=torch.float64).to(dtype) for one in weights]
    a, b, c = (one.to(DEVICE) for one in numbers)
    mine = [one.clone().to(DEVICE) for one in tensors]
    on_kernel(mine, a, other=[one.to(DEVICE) for one in others], b=b, c=c, **arguments)
    a, b, c = (one.item() for one in numbers)
    interpolate_(tensors, a, other=others, b=b, c=c, **arguments)
    for one, two in zip(mine, tensors, strict=True):
        assert torch.equal(one.cpu(), two)
        assert torch.equal(one.cpu().signbit(), two.signbit())


def test_a_zero_coefficient_reads_neither_theta_nor_other():
    theta, other = torch.full((40,), math.nan), torch.full((40,), math.nan)
    mine = theta.to(DEVICE)
    on_kernel(
        [mine], 0.0, other=[other.to(DEVICE)], b=0.0, init=[Init.constant(2)], c=1.0, names="w"
    )
    assert torch.equal(mine.cpu(), torch.full((40,), 2.0))


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_addresses_that_are_no_multiple_of_16_bytes_are_served_too(offset, dtype):
    flat = random((3000,), 1, dtype)
    mine, expected = flat.to(DEVICE), flat.clone()
    arguments = {"init": [INITS["uniform"]], "c": 0.3, "names": ["w"]}
    on_kernel([mine[offset:-1]], 0.7, **arguments)
    interpolate_([expected[offset:-1]], 0.7, **arguments)
    assert_close(mine.cpu(), expected)
    made = table.plan([mine[offset:-1]], [], [INITS["uniform"]], ["w"])
    assert [one.aligned for one in made.launches] == [False]


def test_strided_tensors_are_left_to_plain_torch_and_their_neighbours_alone():
    base = random((60, 40), 1)
    mine, expected = base.to(DEVICE), base.clone()
    arguments = {"init": [INITS["uniform"]] * 2, "c": 0.3, "names": ["v", "w"]}
    on_kernel([mine[::2, ::2], mine[1::2].t()], 0.7, **arguments)
    interpolate_([expected[::2, ::2], expected[1::2].t()], 0.7, **arguments)
    assert torch.equal(mine.cpu(), expected)
    assert torch.equal(mine[::2, 1::2].cpu(), base[::2, 1::2])


def test_nothing_beyond_a_tensors_end_is_written():
    flat = random((4000,), 1).to(DEVICE)
    before = flat.clone()
    parts = [flat[:1001], flat[1004:3001]]
    on_kernel(parts, 0.0, init=[INITS["normal"]] * 2, c=1.0, names=["v", "w"])
    assert torch.equal(flat[1001:1004], before[1001:1004])
    assert torch.equal(flat[3001:], before[3001:])
    assert (flat[:1001] != before[:1001]).all()


def test_tables_are_made_once_for_a_set_of_tensors(monkeypatch):
    monkeypatch.setattr(gpu, "PLANS", table.Plans())
    tensors, calls = [random((50,), 1).to(DEVICE)], []
    make = gpu.plan
    monkeypatch.setattr(gpu, "plan", lambda *given: calls.append(1) or make(*given))
    for a, seed in ((0.5, 1), (0.7, 2), (0.7, 2**40)):
        on_kernel(tensors, a, init=[INITS["normal"]], c=0.1, seed=seed, names=["w"])
    assert len(calls) == 1
    on_kernel(tensors, 0.5, init=[INITS["uniform"]], c=0.1, names=["w"])
    on_kernel(tensors, 0.5)
    assert len(calls) == 3


def test_the_oldest_tables_are_forgotten_but_never_those_in_a_graph():
    plans = table.Plans()
    captured = table.Plan([], [], captured=True)
    plans.put("graph", captured)
    for index in range(table.MAX_KEPT + 3):
        plans.put(index, table.Plan([], []))
        plans.get(0)
    assert plans.get("graph") is captured
    assert plans.get(0) is not None
    assert plans.get(1) is None
    assert len(plans._kept) == table.MAX_KEPT + 1


def test_overlapping_tensors_are_refused_before_anything_is_written():
    flat = random((100,), 1).to(DEVICE)
    before = flat.clone()
    with pytest.raises(ValueError, match=r"tensors\[1\] shares memory with tensors\[0\]"):
        on_kernel([flat[:60], flat[40:]], 0.5)
    assert torch.equal(flat, before)


def test_the_version_counter_moves():
    theta = torch.ones(8, device=DEVICE)
    version = theta._version
    on_kernel([theta], 0.5)
    assert theta._version > version


@needs_gpu
def test_on_a_gpu_the_public_function_runs_the_kernel_and_waits_for_nothing():
    theta, scalar = random((5000,), 1).cuda(), torch.tensor(0.7, device="cuda")
    arguments = {"init": [INITS["normal"]], "c": scalar, "names": ["w"]}
    interpolate_([theta], scalar, **arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        interpolate_([theta], scalar, **arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = random((5000,), 1)
    for _ in range(2):
        interpolate_([expected], 0.7, init=[INITS["normal"]], c=0.7, names=["w"])
    torch.testing.assert_close(theta.cpu(), expected, rtol=3e-6, atol=3e-6)


@needs_gpu
def test_a_captured_graph_replays_with_new_coefficients_and_allocates_nothing():
    theta, scalar = random((5000,), 1).cuda(), torch.tensor(0.5, device="cuda")
    start = theta.clone()
    interpolate_([theta], scalar)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        before = torch.cuda.memory_allocated()
        interpolate_([theta], scalar)
        assert torch.cuda.memory_allocated() == before
    theta.copy_(start)
    scalar.fill_(0.25)
    graph.replay()
    assert torch.equal(theta, start * 0.25)
    fresh = torch.ones(8, device="cuda")
    with pytest.raises(RuntimeError, match="before capturing"), torch.cuda.graph(graph.__class__()):
        interpolate_([fresh], 0.5)


@needs_gpu
def test_mixed_devices_are_refused():
    with pytest.raises(ValueError, match="one call serves one device"):
        interpolate_([torch.ones(3), torch.ones(3, device="cuda")], 0.5)
    with pytest.raises(ValueError, match="a is on cuda:0"):
        interpolate_([torch.ones(3)], torch.tensor(0.5, device="cuda"))
