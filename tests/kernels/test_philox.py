"""The integer stream: known answers, a scalar oracle in plain Python, and counters past 2^32."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sffkernels.philox import MASK, Philox, Words, name_words, philox4x32_, seed_words

WORD = st.integers(0, MASK)
COUNTERS = st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=9)


def scalar_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Philox4x32-10 on Python integers, straight from the paper's figure."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def torch_philox(counters: list[tuple[int, ...]], key: tuple[int, int]) -> list[list[int]]:
    rows = torch.zeros(6, len(counters), dtype=torch.int64)
    rows[:4] = torch.tensor(counters, dtype=torch.int64).t()
    result = philox4x32_(rows, Words(*key))
    return (torch.stack(result, 1) & MASK).tolist()


KNOWN = [  # Random123's kat_vectors for philox4x32 10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers_hold(counter, key, expected):
    assert torch_philox([counter], key) == [list(expected)]
    assert scalar_philox(counter, key) == list(expected)


@given(COUNTERS, st.tuples(WORD, WORD))
@settings(max_examples=60, deadline=None)
def test_every_counter_equals_the_scalar_oracle(counters, key):
    assert torch_philox(counters, key) == [scalar_philox(one, key) for one in counters]


@pytest.mark.parametrize(
    "element", [0, 4, 2**31 - 4, 2**31, 2**32 - 8, 2**34 - 4, 2**34, 2**40 + 12]
)
def test_words_of_any_element_follow_the_documented_counter(element):
    seed, name = 0x0123456789ABCDEF, "decoder.weight"
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    low, high = (int.from_bytes(part, "little") for part in (digest[:4], digest[4:]))
    words = Philox(3).words(seed_words(seed), name_words(name), element // 4, 3)
    for step in range(3):
        block = element // 4 + step
        counter = (block % 2**32, block // 2**32, low, high)
        expected = scalar_philox(counter, (0x89ABCDEF, 0x01234567))
        assert [int(word) & MASK for word in words[:, step]] == expected


def test_one_generator_gives_the_same_words_whatever_it_gave_before():
    generator, key, name = Philox(100), seed_words(5), name_words("x")
    fresh = Philox(100).words(key, name, 7, 70).clone()
    generator.words(seed_words(6), name_words("y"), 0, 100)
    assert torch.equal(generator.words(key, name, 7, 70), fresh)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", None])
def test_a_seed_that_is_no_64_bit_integer_is_refused(seed):
    with pytest.raises(ValueError, match="seed must"):
        seed_words(seed)


def test_the_largest_seed_fills_both_key_words():
    assert seed_words(2**64 - 1) == (MASK, MASK)
