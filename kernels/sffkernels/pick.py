"""Which product a pruned linear map should use: the kernel, the dense one, or a re-sliced one.

    pick(Work(num_rows=32768, num_in=768, num_out=3072, live_out=0.5), steps_per_mask=8)

From arithmetic, not yet from measurements on a GPU: bytes over bandwidth and operations over rate,
for one training step (forward and both gradients). The three constants that a measurement will
replace are the fields of `Machine`. On a CPU there is nothing to pick: `masked_linear` slices.
"""

from dataclasses import dataclass
from typing import Literal

Product = Literal["kernel", "dense", "slice"]
NUM_PRODUCTS = 3  # forward, gradient of the input, gradient of the weight


@dataclass(frozen=True)
class Machine:
    """What decides; the defaults describe an H200 and are arithmetic until one has been timed."""

    flop_per_s: float = 790e12  # dense bf16 products of cuBLAS
    bytes_per_s: float = 4.3e12
    kernel_efficiency: float = 0.8  # of cuBLAS's rate, at equal work
    launch_s: float = 5e-6  # an operation of torch from Python; within a captured graph 1e-6
    kernel_launch_s: float = 18e-6  # a Triton kernel from Python; within a captured graph 1e-6
    reslice_s: float = 100e-6  # the host waits for the counts, and memory is found for the slices

    @classmethod
    def captured(cls) -> "Machine":
        """The same inside a CUDA graph: launches cost next to nothing."""
        return cls(launch_s=1e-6, kernel_launch_s=1e-6)


@dataclass(frozen=True)
class Work:
    """One masked product: x [num_rows, num_in] to [num_rows, num_out], live shares in [0, 1]."""

    num_rows: int
    num_in: int
    num_out: int
    live_in: float = 1.0
    live_out: float = 1.0
    itemsize: int = 2  # bytes of an element

    def __post_init__(self) -> None:
        if min(self.num_rows, self.num_in, self.num_out) < 0:
            raise ValueError(f"sizes must not be negative, got {self}")
        if not (0 <= self.live_in <= 1 and 0 <= self.live_out <= 1):
            raise ValueError(f"live shares must lie in [0, 1], got {self}")

    @property
    def flop(self) -> float:
        """Of one dense product."""
        return 2.0 * self.num_rows * self.num_in * self.num_out

    @property
    def live(self) -> float:
        """Share of the operations that is left."""
        return self.live_in * self.live_out

    @property
    def weight_bytes(self) -> float:
        return float(self.num_in * self.num_out * self.itemsize)


def step_seconds(
    work: Work, steps_per_mask: float, machine: Machine | None = None
) -> dict[Product, float]:
    """Estimated seconds of forward and backward, each way, masks moving every `steps_per_mask`.

    dense:  3 products, and the weight multiplied by its mask, read twice and written once
            (weight and gradient)
    kernel: 3 products of the live part at the kernel's efficiency
    slice:  3 products of the live part, and a new slice of weight and of its two optimiser states,
            read and written, when the masks move
    """
    if steps_per_mask <= 0:
        raise ValueError(f"steps_per_mask must be above 0, got {steps_per_mask}")
    machine = machine or Machine()
    products = NUM_PRODUCTS * work.flop / machine.flop_per_s
    weight_s = work.weight_bytes / machine.bytes_per_s
    reslice_s = machine.reslice_s + 3 * (1 + work.live) * weight_s
    return {
        "dense": products + 6 * weight_s + 5 * machine.launch_s,
        "kernel": products * work.live / machine.kernel_efficiency
        + NUM_PRODUCTS * machine.kernel_launch_s,
        "slice": products * work.live
        + NUM_PRODUCTS * machine.launch_s
        + reslice_s / steps_per_mask,
    }


def pick(
    work: Work, steps_per_mask: float, *, captured: bool = False, machine: Machine | None = None
) -> Product:
    """The product with the least estimated time; of equal ones dense, then slice.

    steps_per_mask: training steps between two changes of the masks (infinite if they stay).
    captured: the step is a CUDA graph that outlives a change of the masks: shapes cannot move, so
    there is no re-slicing, and launches are cheap.
    """
    machine = machine or (Machine.captured() if captured else Machine())
    seconds = step_seconds(work, steps_per_mask, machine)
    order: tuple[Product, ...] = ("dense", "slice", "kernel")
    allowed = [one for one in order if not (captured and one == "slice")]
    return min(allowed, key=lambda one: seconds[one])
