"""Random numbers that belong to a sample: a hash of (seed, epoch, sample id, view, op), with no generator and no state.

A view therefore does not depend on the order of the batch, on the number of workers or ranks, or on what was drawn before.
The bits are integer arithmetic, the same on every device. SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom
number generators", OOPSLA 2014.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_WEYL = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, as a signed 64-bit number
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` on int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 on int64 tensors: a bijection in which every input bit reaches every output bit."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _key(*parts: object) -> int:
    """A signed 64-bit key for a tuple of plain values."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def random_bits(ids: Tensor, n: int, *key: object) -> Tensor:
    """n independent 64-bit words per id: int64 [B, n] for ids int64 [B], on the device of `ids`."""
    per_id = splitmix64(ids + _key(*key))
    counters = torch.arange(1, n + 1, device=ids.device) * _WEYL
    return splitmix64(per_id[:, None] + counters)


def to_uniform(bits: Tensor) -> Tensor:
    """The upper 53 bits as float64 in [0, 1)."""
    return _shift_right(bits, 11).double() * 2.0**-53


@dataclass(frozen=True)
class Stream:
    """Draws for a batch of samples in one view of one epoch; each op, by its name, has its own numbers."""

    seed: int
    epoch: int
    ids: Tensor  # int64 [B]
    view: int

    def at(self, index: Tensor, device: torch.device | str = "cpu") -> "Stream":
        """The same stream for some of its samples, drawn on `device`."""
        return Stream(self.seed, self.epoch, self.ids[index].to(device), self.view)

    def uniform(self, op: str, n: int) -> Tensor:
        """Float64 [B, n], uniform on [0, 1)."""
        return to_uniform(random_bits(self.ids, n, self.seed, self.epoch, self.view, op))

    def between(self, op: str, low: float, high: float) -> Tensor:
        """Float64 [B], uniform on [low, high)."""
        return low + (high - low) * self.uniform(op, 1)[:, 0]

    def chance(self, op: str, p: float) -> Tensor:
        """Bool [B], true with probability p."""
        return self.uniform(op, 1)[:, 0] < p

    def integer(self, op: str, n: int) -> Tensor:
        """Int64 [B], uniform on 0 ... n-1."""
        return (self.uniform(op, 1)[:, 0] * n).long()

    def normal(self, op: str, n: int) -> Tensor:
        """Float32 [B, n], standard normal (Box and Muller): two numbers from the 48 upper bits of each word."""
        bits = random_bits(self.ids, (n + 1) // 2, self.seed, self.epoch, self.view, op)
        u, v = (((bits >> shift) & 0xFFFFFF).float() * 2.0**-24 for shift in (40, 16))
        radius = u.neg_().log1p_().mul_(-2.0).sqrt_()  # 1 - u lies in (0, 1]: the logarithm is finite
        angle = v.mul_(2.0 * math.pi)
        return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :n]
