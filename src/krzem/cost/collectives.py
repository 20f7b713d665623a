"""Seconds of collectives over groups of ranks laid on two tiers of links.

A group of ``size`` ranks spaced ``stride`` apart covers ``k`` scale-up domains with ``g`` members
in each.  Rings run over all network interfaces at once (each of the ``g`` members carries its
share), so the two tiers work in parallel and the slower one decides; latency grows with the hops,
and what crosses nodes takes a while to flow: ``t0 + S / B``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from krzem.cost.machine import Machine

Array = Any


def members(size: Array, stride: Array, domain: Array) -> Array:
    """Ranks of a group that share one scale-up domain (at least 1).

    Groups and domains are aligned powers of two in practice; where they are not, the mean number
    of members per domain is what bandwidth sees.
    """
    inside = np.maximum(1.0, np.floor(domain / stride))
    return np.minimum(size, inside)


def _inside(g: Array, machine: Machine) -> Array:
    """Scale-up bandwidth that ``g`` ranks of one domain have among themselves.

    Behind a switch all of it.  In a mesh every pair has a link of its own, so a small group is
    left with the links between its members.
    """
    links = np.maximum(g - 1.0, 1.0) / np.maximum(machine.domain - 1.0, 1.0)
    return machine.up_bytes_per_s * np.where(machine.mesh > 0, np.minimum(links, 1.0), 1.0)


def _hops(size: Array, g: Array, machine: Machine) -> Array:
    k = size / g
    # Rings inside a domain; between domains NCCL and its kin switch to trees as groups grow.
    across = np.minimum(k - 1.0, 4.0 * np.log2(np.maximum(k, 1.0)))
    start = np.where(k > 1.0, machine.out_start, machine.up_start)
    return (g - 1.0) * machine.up_latency + across * machine.out_latency + start


def ring(total_bytes: Array, size: Array, stride: Array, machine: Machine) -> Array:
    """Seconds of an all-gather or reduce-scatter of ``total_bytes`` (the gathered size)."""
    g = members(size, stride, machine.domain)
    k = size / g
    inside = total_bytes * (size - 1.0) / size / _inside(g, machine)
    # A ring through all interfaces: each carries all but one part, shared by the members of a node
    # (NCCL's ring; hierarchical algorithms that send less are used for small groups only).
    railed = total_bytes * (size - 1.0) / (size * g) / machine.out_bytes_per_s
    railed = np.where(k > 1.0, railed, 0.0)
    # Without an interface for each member one ring visits all ranks through the same few links.
    flat = np.where(k > 1.0, total_bytes * (size - 1.0) / size / machine.out_bytes_per_s, 0.0)
    across = np.where(machine.rails > 0, railed, flat)
    seconds = np.maximum(np.where(g > 1.0, inside, 0.0), across) + _hops(size, g, machine)
    return np.where(size > 1.0, seconds, 0.0)


def all_to_all(
    copies_bytes: Array, once_bytes: Array, size: Array, stride: Array, machine: Machine
) -> Array:
    """Seconds of an all-to-all of ``copies_bytes`` sent per rank.

    ``once_bytes`` is what one copy per reached domain would weigh: with deduplication only that
    crosses the network and is fanned out over the scale-up links.
    """
    g = members(size, stride, machine.domain)
    k = size / g
    crossing = np.where(machine.dedup > 0, np.minimum(once_bytes, copies_bytes), copies_bytes)
    # Pairs of ranks that all talk at once share paths of the network as no ring does; kernels made
    # for it (deduplicating ones) send along rails.
    share = np.where(machine.dedup > 0, 1.0, machine.exchange_out)
    across = crossing * (k - 1.0) / k / (machine.out_bytes_per_s * share)
    inside = copies_bytes * (g - 1.0) / g / _inside(g, machine)
    hops = (g - 1.0) * machine.up_latency + np.sqrt(k - 1.0) * 2.0 * machine.out_latency
    hops = hops + np.where(k > 1.0, machine.out_start, machine.up_start)
    return np.where(size > 1.0, np.maximum(across, inside) + hops, 0.0)


def transfer(sent_bytes: Array, stride: Array, machine: Machine) -> Array:
    """Seconds to send ``sent_bytes`` to the rank ``stride`` further on."""
    near = stride < machine.domain
    rate = np.where(near, _inside(np.asarray(2.0), machine), machine.out_bytes_per_s)
    return sent_bytes / rate + np.where(near, machine.up_latency, machine.out_latency)
