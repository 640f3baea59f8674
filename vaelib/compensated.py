"""Float64 products with spare digits, for the one place where whitening would lose them.

A value is carried as ``high + low``, the rounded number and its rounding error.
"""

from torch import Tensor


def congruence(w: Tensor, high: Tensor, low: Tensor | None = None) -> Tensor:
    """W S W^T for the symmetric S = high + low, [*, n, n]."""
    high, low = product(w, high, low)
    return sum(product(w, high.mT, low.mT))


def product(a: Tensor, high: Tensor, low: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """a @ (high + low) as a sum of two matrices, with about 23 bits more than float64 has.

    Heads of so few bits that their product is exact (Ozaki, Ogita, Oishi and Rump 2012).
    """
    bits = (52 - a.shape[-1].bit_length()) // 2
    head_a, head = _head(a, -1, bits), _head(high, -2, bits)
    rest = head_a @ (high - head) + (a - head_a) @ high
    return head_a @ head, rest if low is None else rest + a @ low


def difference_of(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a - b and its rounding error (Knuth 1997, section 4.2.2)."""
    difference = a - b
    from_b = difference - a
    return difference, (a - (difference - from_b)) - (b + from_b)


def _head(a: Tensor, dim: int, bits: int) -> Tensor:
    """The leading bits of a, counted from the largest entry along an axis."""
    scale = a.detach().abs().amax(dim, keepdim=True) * 2.0 ** (53 - bits)
    return (a + scale) - scale
