"""Collectives against limits and brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import built

from krzem.cost import machine as collectives
from krzem.cost.machine import Machine

QUIET = replace(built(), up_latency=0.0, out_latency=0.0, up_start=0.0)
sizes = st.sampled_from([1, 2, 4, 8, 16, 64, 512])
strides = st.sampled_from([1, 2, 4, 8, 32])
payloads = st.floats(1e3, 1e12)


@given(payloads, strides)
def test_a_group_of_one_costs_nothing(size: float, stride: int) -> None:
    assert float(collectives.ring(size, np.array([1.0]), stride, QUIET)[0]) == 0.0
    assert float(collectives.all_to_all(size, size, np.array([1.0]), stride, QUIET)[0]) == 0.0


@given(payloads, sizes, strides)
def test_ring_moves_no_less_than_its_slowest_link_must(
    size: float, group: int, stride: int
) -> None:
    seconds = float(collectives.ring(size, np.array([float(group)]), float(stride), QUIET)[0])
    inside = int(collectives.members(float(group), float(stride), QUIET.domain))
    domains = group // inside
    # What must enter one domain from outside, over the interfaces of its members.
    least = size * (domains - 1) / domains / inside / QUIET.out_bytes_per_s
    assert seconds >= least * (1 - 1e-12)
    fast = size * (group - 1) / group / QUIET.up_bytes_per_s if inside > 1 else 0.0
    ring = size * (group - 1) / group / inside / QUIET.out_bytes_per_s if domains > 1 else 0.0
    start = QUIET.out_start if domains > 1 else 0.0
    assert seconds == pytest.approx(max(ring, fast) + start)


@given(payloads, sizes, strides, st.sampled_from(["up_bytes_per_s", "out_bytes_per_s"]))
def test_faster_links_never_slow(size: float, group: int, stride: int, link: str) -> None:
    mc = built()
    faster = replace(mc, **{link: getattr(mc, link) * 2.0})
    n = np.array([float(group)])

    def both(m: Machine) -> float:
        spread = collectives.all_to_all(size * 8.0, size, n, float(stride), m)
        return float((collectives.ring(size, n, float(stride), m) + spread)[0])

    assert both(faster) <= both(mc)


def test_deduplication_spares_the_network() -> None:
    n = np.array([64.0])
    once = collectives.all_to_all(8e9, 3e9, n, 1.0, replace(QUIET, dedup=1.0))
    every = collectives.all_to_all(8e9, 3e9, n, 1.0, replace(QUIET, dedup=0.0))
    assert float(once[0]) < float(every[0])


def test_tensor_parallel_over_two_nodes_uses_all_interfaces() -> None:
    """Sixteen ranks on two nodes: a hierarchical ring, not one link for all."""
    within = float(collectives.ring(1e9, np.array([8.0]), 1.0, QUIET)[0])
    across = float(collectives.ring(1e9, np.array([16.0]), 1.0, QUIET)[0])
    assert across < 8 * within


def test_a_small_group_in_a_mesh_has_only_the_links_between_its_members() -> None:
    mesh, switch = replace(QUIET, mesh=1.0), replace(QUIET, mesh=0.0)

    def slower(size: float) -> float:
        n = np.array([size])
        over = [collectives.ring(1e9, n, 1.0, m) for m in (mesh, switch)]
        to_all = [collectives.all_to_all(1e9, 1e9, n, 1.0, m) for m in (mesh, switch)]
        assert over[0] / over[1] == pytest.approx(to_all[0] / to_all[1])
        return float(over[0][0] / over[1][0])

    assert [slower(n) for n in (2.0, 4.0, 8.0)] == pytest.approx([7.0, 7.0 / 3.0, 1.0])
    near = [float(collectives.transfer(1e9, np.array(1.0), m)) for m in (mesh, switch)]
    assert near[0] / near[1] == pytest.approx(7.0)


def test_cards_of_ascend_and_amd_nodes_form_a_mesh() -> None:
    cards = ("huawei-ascend-910b", "amd-mi300x", "nvidia-a100-sxm-80", "huawei-ascend-910c")
    assert [built(device=card).mesh for card in cards] == [1.0, 1.0, 0.0, 0.0]


def test_pairs_share_paths_between_nodes_but_not_inside_one() -> None:
    """All-to-all between nodes is slower than a ring, unless its kernels send along rails."""
    shared, alone = replace(QUIET, exchange_out=0.5), replace(QUIET, exchange_out=1.0)

    def moved(ranks: float, dedup: float, mc: Machine) -> float:
        found = collectives.all_to_all(
            8e9, 8e9, np.array([ranks]), 1.0, replace(mc, dedup=dedup, out_start=0.0)
        )
        return float(found[0])

    assert moved(64.0, 0.0, shared) == pytest.approx(2.0 * moved(64.0, 0.0, alone))
    assert moved(64.0, 1.0, shared) == moved(64.0, 1.0, alone)
    assert moved(8.0, 0.0, shared) == moved(8.0, 0.0, alone)
