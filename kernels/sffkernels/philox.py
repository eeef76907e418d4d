"""Philox4x32-10 as plain torch integers: the random stream every kernel of this package shares.

A counter-based generator turns (key, counter) into four 32-bit words, so the number at one element
depends on that element alone, never on chunking, order or device. The stream of one tensor is

    key     = (seed low 32, seed high 32)
    counter = (element // 4 low 32, element // 4 high 32, name hash low 32, name hash high 32)
    word    = lane `element % 4` of the result

with name hash = the 8 bytes of BLAKE2b(name as UTF-8, digest_size=8), read little-endian.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import hashlib
import operator
from typing import NamedTuple

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
NUM_ROUNDS = 10
NUM_LANES = 4
# Counts are padded to whole vectors, so that no element ever takes the scalar tail of a CPU loop,
# whose log and sin may differ from the vector versions in the last bit.
PADDING = 64


class Words(NamedTuple):
    """A 64-bit number as two 32-bit words."""

    low: int
    high: int

    def signed(self) -> int:
        """The number as a signed 64-bit integer, which operators and tables hold."""
        number = self.high << 32 | self.low
        return number - (1 << 64) if number >> 63 else number

    def signed_words(self) -> tuple[int, int]:
        """Both words as signed 32-bit integers, which kernels take."""
        low, high = (word - (1 << 32) if word >> 31 else word for word in self)
        return low, high


def split_words(number: int) -> Words:
    """(number mod 2^32, number // 2^32 mod 2^32)."""
    return Words(number & MASK, (number >> 32) & MASK)


def seed_words(seed: int) -> Words:
    """The key of a seed. ValueError outside 0 <= seed < 2^64 or if it is no integer."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise ValueError(f"seed must be an integer, got {seed!r}") from None
    if not 0 <= number < 1 << 64:
        raise ValueError(f"seed must lie in 0 <= seed < 2**64, got {number}")
    return split_words(number)


def name_words(name: str) -> Words:
    """The upper half of the counter: BLAKE2b-64 of the tensor's name, little-endian."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return split_words(int.from_bytes(digest, "little"))


class Philox:
    """Generates up to `num_counters` x 4 words at a time into buffers that it keeps and reuses."""

    def __init__(self, num_counters: int, device: torch.device | str = "cpu") -> None:
        capacity = padded(num_counters)
        self._step = torch.arange(capacity, dtype=torch.int64, device=device)
        self._state = torch.empty(6 * capacity, dtype=torch.int64, device=device)
        self._words = torch.empty(NUM_LANES * capacity, dtype=torch.int32, device=device)

    def words(self, key: Words, name: Words, first: int, num: int) -> Tensor:
        """The words of counters first .. first + num - 1.

        Returns int32 [4, num padded to 64]: row = lane, the 32 bits of the word reinterpreted as
        signed. It is a view of a buffer that the next call overwrites.
        """
        num = padded(num)
        rows = self._state[: 6 * num].view(6, num)
        torch.add(self._step[:num], first, out=rows[1])
        torch.bitwise_and(rows[1], MASK, out=rows[0])
        rows[1] >>= 32
        rows[2].fill_(name.low)
        rows[3].fill_(name.high)
        words = self._words[: NUM_LANES * num].view(NUM_LANES, num)
        for lane, row in enumerate(philox4x32_(rows, key)):
            words[lane].copy_(row)  # int64 -> int32 keeps the low 32 bits
        return words


def padded(num: int) -> int:
    """`num` rounded up to a whole number of vectors."""
    return -(-num // PADDING) * PADDING


def philox4x32_(rows: Tensor, key: Words) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten Philox rounds over many counters at once, overwriting `rows`.

    rows: int64 [6, N]; 0..3 hold the counter's words (each below 2^32), 4 and 5 are scratch.
    Returns the four result words as rows of it; only their low 32 bits count.

    A product of two 32-bit words overflows int64 but wraps to the right 64 bits, so its high word
    is (p >> 32) & MASK. Words 1 and 3 are only ever XORed, hence may keep rubbish above bit 31.
    """
    c0, c1, c2, c3, p0, p1 = rows.unbind()
    key0, key1 = key
    for _ in range(NUM_ROUNDS):
        torch.mul(c0, MULTIPLIERS[0], out=p0)
        torch.mul(c2, MULTIPLIERS[1], out=p1)
        _high_xor_(c0, p1, c1, key0)
        _high_xor_(c2, p0, c3, key1)
        c1, c3, p0, p1 = p1, p0, c1, c3
        key0, key1 = (key0 + KEY_STEPS[0]) & MASK, (key1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def _high_xor_(out: Tensor, product: Tensor, word: Tensor, key: int) -> None:
    """out <- high word of product ^ word ^ key, as a clean 32-bit word."""
    torch.bitwise_right_shift(product, 32, out=out)
    out ^= word
    out ^= key
    out &= MASK
