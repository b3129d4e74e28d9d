"""Random numbers as a function of a key: the same on every device, in every process and after every resume.

The generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). It computes
random words from a counter and a key, without any state. torch's own CPU generator cannot start in the middle.
"""

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import TypeVar

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
# Random numbers of a purpose are made in advance: this many numbers, or steps.
NUMBERS_AHEAD = 2**16
MOST_AHEAD = 16
Word = TypeVar("Word", int, Tensor, np.ndarray)


class Purpose(IntEnum):
    """The purpose of a stream of random numbers: streams of different purposes never share numbers."""

    SPLIT = 0
    LABELED_ORDER = 1
    UNLABELED_ORDER = 2
    CLASS_ORDER = 3
    PROCESS = 4
    MIXUP_PARTNER = 5
    MIXUP_LAMBDA = 6
    TUNING = 7
    SHARD_ORDER = 8
    FEATURE_NOISE = 9
    FEATURE_DROPOUT = 10
    METHOD = 11
    HALVES = 12
    TRIAL_IMAGES = 13
    SUGGESTED = 14
    # The crop of a view has purpose CROP + the purpose of the view.
    CROP = 10_000
    # View number i of a kind has purpose KIND + i.
    LABELED_VIEW = 1000
    WEAK_VIEW = 2000
    STRONG_VIEW = 3000
    STRONG_LABELED_VIEW = 4000


def philox(counter: Sequence[Word], key: tuple[int, int]) -> tuple[Word, ...]:
    """Four random 32-bit words, as int64 tensors, arrays or numbers, for each counter of four 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The products need unsigned 64 bits. int64 overflows, but all bits are the same.
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> 32 & WORD) ^ c1 ^ k0, right & WORD, (left >> 32 & WORD) ^ c3 ^ k1, left & WORD
        k0, k1 = k0 + KEY_STEPS[0] & WORD, k1 + KEY_STEPS[1] & WORD
    return c0, c1, c2, c3


def words(
    seed: int, purpose: int, step: int | Int[Tensor, "S 1 1"], positions: Int[Tensor, " N"], num: int
) -> Int[Tensor, "*S N num"]:
    """`num` random 32-bit words for each position, a function of (seed, purpose, step, position) alone."""
    blocks = torch.arange(-(-num // 4))
    counter = torch.broadcast_tensors(positions[:, None], blocks, torch.as_tensor(step), torch.tensor(purpose))
    return torch.stack(philox(counter, (seed & WORD, seed >> 32 & WORD)), -1).flatten(-2)[..., :num]


def uniform(
    seed: int, purpose: int, step: int | Int[Tensor, "S 1 1"], positions: Int[Tensor, " N"], num: int
) -> Float[Tensor, "*S N num"]:
    """`num` fp32 numbers in [0, 1) with 24 random bits for each position, for one step or several."""
    return (words(seed, purpose, step, positions, num) >> 8).to(torch.float32) / 2**24


def uniform_ahead(seed: int, purpose: int, step: int, start: int, stop: int, num: int) -> Float[Tensor, "N num"]:
    """`uniform` for the positions start..stop-1, made and kept for several steps at once.

    For one step alone, most of the time would be spent to start about a hundred operations on few numbers.
    """
    steps = min(MOST_AHEAD, NUMBERS_AHEAD // ((stop - start) * num))
    if steps < 2:
        return uniform(seed, purpose, step, torch.arange(start, stop), num)
    return _block(seed, purpose, step // steps, steps, start, stop, num)[step % steps]


@lru_cache(maxsize=64)
def _block(
    seed: int, purpose: int, block: int, steps: int, start: int, stop: int, num: int
) -> Float[Tensor, "S N num"]:
    several = torch.arange(block * steps, (block + 1) * steps)[:, None, None]
    return uniform(seed, purpose, several, torch.arange(start, stop), num)


def whole(numbers: Float[Tensor, " N"], length: int) -> Int[Tensor, " N"]:
    """Whole numbers, uniform on 0..length-1."""
    return (numbers * length).long()


def permutation(seed: int, purpose: int, number: int, length: int) -> Int[Tensor, " length"]:
    """Permutation number `number` of 0..length-1: the order of random 62-bit words."""
    high, low = words(seed, purpose, number, torch.arange(length), 2).unbind(1)
    return torch.argsort((high >> 2 << 32) | low, stable=True)


def beta(seed: int, purpose: int, step: int, alpha: float) -> float:
    """A number of the distribution Beta(alpha, alpha) on [0, 1], by the inverse of its distribution function."""
    return float(scipy.special.betaincinv(alpha, alpha, uniform(seed, purpose, step, torch.tensor([0]), 1).item()))


def derived_seed(seed: int, purpose: int, step: int, position: int) -> int:
    """A seed for another generator, such as torch's, which draws dropout."""
    high, low, _, _ = philox((position, 0, step, purpose), (seed & WORD, seed >> 32 & WORD))
    return high << 31 ^ low
