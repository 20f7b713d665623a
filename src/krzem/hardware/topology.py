"""Where the members of a process group sit: exact counts for any size, stride and domain.

Ranks are numbered as frameworks number them, so rank r is in domain ``r // domain`` (a node, or
a scale-up domain).  A mesh axis of ``size`` whose faster axes multiply to ``stride`` has the
groups {s, s + stride, ..., s + (size - 1) * stride} for every s = block * size * stride + offset
with 0 <= offset < stride.  Sizes and strides need not divide the domain: groups that straddle its
border are counted as they fall.

Worked example: domains of 8, tensor parallel 4 inside, then data parallel 4.  The data-parallel
groups have size 4 and stride 4: ranks 0, 4 | 8, 12 share domains two by two, over two domains.

All arguments broadcast; results are int64 arrays of the broadcast shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


def members_in_domain(size: ArrayLike, stride: ArrayLike, domain: ArrayLike) -> Ints:
    """Most members of one group that share a domain (the group from rank 0 has that many)."""
    g, s, d = _ints(size, stride, domain)
    members: Ints = np.minimum(g, -(-d // s))
    return members


def domains_spanned(
    size: ArrayLike, stride: ArrayLike, domain: ArrayLike, start: ArrayLike = 0
) -> Ints:
    """Domains that hold a member of the group whose first rank is ``start``."""
    g, s, d, first = _ints(size, stride, domain, start)
    dense = (first % d + (g - 1) * s) // d + 1
    spanned: Ints = np.where(s >= d, g, dense)
    return spanned


def most_domains_spanned(
    size: ArrayLike, stride: ArrayLike, domain: ArrayLike, devices: ArrayLike
) -> Ints:
    """Domains spanned by the group that spans most, of all groups on ``devices`` ranks.

    A collective waits for its slowest group: this is the one.  ``devices`` is a multiple of
    size x stride.
    """
    g, s, d, n = _ints(size, stride, domain, devices)
    block = g * s
    residue = np.minimum(d - 1, s - 1 + _largest_residue(block, d, np.maximum(n // block, 1)))
    return domains_spanned(g, s, d, residue)


def on_one_rail(stride: ArrayLike, rails: ArrayLike) -> NDArray[np.bool_]:
    """Whether all members of a group use the same network plane (rank r is on r mod rails)."""
    s, planes = _ints(stride, rails)
    shared: NDArray[np.bool_] = s % planes == 0
    return shared


def _largest_residue(step: Ints, modulus: Ints, count: Ints) -> Ints:
    """max(i * step % modulus) for 0 <= i < count.

    After modulus / gcd steps the residues repeat and have held modulus - gcd; a walk that never
    reaches the modulus grows throughout; the others have no closed form and are walked once per
    distinct case, of which a space of layouts has few.
    """
    shape = step.shape
    a, m, n = (np.ravel(x) for x in (step % modulus, modulus, count))
    gcd = np.gcd(a, m)
    largest: Ints = np.where(n >= m // gcd, m - gcd, a * (n - 1))
    wraps = np.flatnonzero((n < m // gcd) & (largest >= m))
    for domain in np.unique(m[wraps]):
        here = wraps[m[wraps] == domain]
        largest[here] = _walked(a[here], int(domain), n[here])
    return largest.reshape(shape)


def _walked(step: Ints, modulus: int, count: Ints) -> Ints:
    """The same by walking each distinct (step, count); both are below ``modulus``."""
    cases, inverse = np.unique(step * modulus + count, return_inverse=True)
    pairs = (divmod(int(case), modulus) for case in cases)
    peaks = [int(np.max(np.arange(n) * a % modulus)) for a, n in pairs]
    return np.asarray(peaks, dtype=np.int64)[inverse]


def _ints(*values: ArrayLike) -> tuple[Ints, ...]:
    return np.broadcast_arrays(*(np.asarray(value, dtype=np.int64) for value in values))
