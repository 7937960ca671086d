"""Random numbers that belong to a sample: a hash of (seed, epoch, sample id, view, op), with no generator, no state.

A view therefore does not depend on the order of the batch, on the number of workers or ranks, or on what was drawn
before. The bits are integer arithmetic, the same on every device. SplitMix64: Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

_WEYL = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, as a signed 64-bit number
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64

# How many uniform numbers each op draws. One hash of the whole table costs less than one per op. Order and counts
# decide the numbers: a new op goes to the end, or every view of an earlier version changes.
_DRAWS = {"crop area": 10, "crop ratio": 10, "crop place": 2} | dict.fromkeys(
    [
        *("mirror", "upend", "turn", "turns", "jitter", "jitter order", "brightness", "contrast", "saturation", "hue"),
        *("grayscale", "blur", "blur sigma", "solarize", "posterize", "noise", "noise std", "erase"),
    ],
    1,
)
_STARTS = dict(zip(_DRAWS, accumulate(_DRAWS.values(), initial=0), strict=False))


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 copies the sign bit."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 tensors: a bijection; every input bit reaches every output bit."""
    x = (_shift_right(x, 30) ^ x).mul_(_MIX_1)
    x = (_shift_right(x, 27) ^ x).mul_(_MIX_2)
    return _shift_right(x, 31) ^ x


def _key(*parts: str | int) -> int:
    """A signed 64-bit key for a tuple of plain values; a NumPy integer counts as the number it is."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def sample_keys(ids: Tensor, *parts: str | int) -> Tensor:
    """One 64-bit key per id [B], different for every (id, parts)."""
    return splitmix64(ids + _key(*parts))


def random_bits(keys: Tensor, n: int) -> Tensor:
    """n independent 64-bit words per key: int64 [B, n], on the device of the keys."""
    return splitmix64(keys[:, None] + torch.arange(1, n + 1, device=keys.device) * _WEYL)


def to_uniform(bits: Tensor) -> Tensor:
    """The upper 53 bits as float64 in [0, 1)."""
    return _shift_right(bits, 11).double().mul_(2.0**-53)


@dataclass(frozen=True)
class Stream:
    """Draws for a batch of samples: each op, by its name, has its own numbers per sample."""

    keys: Tensor  # int64 [B], one per (seed, epoch, id, view)
    table: Tensor  # float64 [B, all draws], uniform on [0, 1)

    @classmethod
    def of(cls, seed: int, epoch: int, ids: Tensor, views: Sequence[int]) -> "Stream":
        """The stream of ids int64 [B] in several views: B samples of the first view, then B of the next, ..."""
        keys = torch.cat([sample_keys(ids, seed, epoch, view) for view in views])
        return cls(keys, to_uniform(random_bits(keys, sum(_DRAWS.values()))))

    def at(self, index: Tensor | slice) -> "Stream":
        """The same draws, of some of the samples."""
        return Stream(self.keys[index], self.table[index])

    def uniform(self, op: str) -> Tensor:
        """Float64 [B, n], uniform on [0, 1)."""
        return self.table[:, _STARTS[op] : _STARTS[op] + _DRAWS[op]]

    def between(self, op: str, low: Tensor | float, high: Tensor | float) -> Tensor:
        """Float64 [B], uniform on [low, high), each one number or [B]."""
        return low + (high - low) * self.uniform(op)[:, 0]

    def chance(self, op: str, p: Tensor | float) -> Tensor:
        """Bool [B], true with probability p, one number or [B]."""
        return self.uniform(op)[:, 0] < p

    def integer(self, op: str, n: int) -> Tensor:
        """Int64 [B], uniform on 0 ... n-1."""
        return (self.uniform(op)[:, 0] * n).long()

    def field(self, name: str, n: int, device: torch.device | str = "cpu", numbers: str = "normal") -> Tensor:
        """Float32 [B, n], drawn on `device`: "normal" (standard; Box and Muller) or "uniform" on [0, 1).

        One 64-bit word gives two numbers of 24 bits.
        """
        bits = random_bits(splitmix64(self.keys.to(device, non_blocking=True) + _key(name)), (n + 1) // 2)
        u, v = (((bits >> shift) & 0xFFFFFF).float().mul_(2.0**-24) for shift in (40, 16))
        if numbers == "normal":
            radius = u.neg_().log1p_().mul_(-2.0).sqrt_()  # 1 - u lies in (0, 1]: the logarithm is finite
            angle = v.mul_(2.0 * math.pi)
            u, v = radius * angle.cos(), radius * angle.sin()
        return torch.cat([u, v], dim=1)[:, :n]
