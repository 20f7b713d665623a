"""Group placement against enumeration of every rank."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from krzem.hardware.cluster import (
    domains_spanned,
    members_in_domain,
    most_domains_spanned,
    on_one_rail,
)

SMALL = st.integers(1, 13)


def groups(size: int, stride: int, blocks: int) -> list[list[int]]:
    return [
        [block * size * stride + offset + i * stride for i in range(size)]
        for block in range(blocks)
        for offset in range(stride)
    ]


def domains(group: list[int], domain: int) -> list[int]:
    return [rank // domain for rank in group]


def test_worked_example() -> None:
    assert members_in_domain(4, 4, 8) == 2
    assert domains_spanned(4, 4, 8) == 2
    assert most_domains_spanned(4, 4, 8, 16) == 2


def test_a_group_that_straddles_a_border_is_counted_as_it_falls() -> None:
    assert domains_spanned(6, 1, 8) == 1
    assert domains_spanned(6, 1, 8, start=6) == 2
    assert most_domains_spanned(6, 1, 8, devices=6) == 1
    assert most_domains_spanned(6, 1, 8, devices=48) == 2


@given(size=SMALL, stride=SMALL, domain=SMALL, blocks=st.integers(1, 15))
def test_counts_equal_enumeration(size: int, stride: int, domain: int, blocks: int) -> None:
    every = [domains(group, domain) for group in groups(size, stride, blocks)]
    most_members = max(held.count(d) for held in every for d in held)
    assert members_in_domain(size, stride, domain) == most_members
    most_domains = max(len(set(held)) for held in every)
    assert most_domains_spanned(size, stride, domain, size * stride * blocks) == most_domains


@given(size=SMALL, stride=SMALL, domain=SMALL, start=st.integers(0, 200))
def test_one_group_equals_enumeration(size: int, stride: int, domain: int, start: int) -> None:
    held = domains([start + i * stride for i in range(size)], domain)
    assert domains_spanned(size, stride, domain, start) == len(set(held))


def test_arrays_give_what_their_elements_give() -> None:
    rng = np.random.default_rng(0)
    size, stride, domain, blocks = rng.integers(1, 40, (4, 500))
    devices = size * stride * blocks
    together = most_domains_spanned(size, stride, domain, devices)
    one_by_one = [
        int(most_domains_spanned(*four)) for four in zip(size, stride, domain, devices, strict=True)
    ]
    assert together.tolist() == one_by_one
    assert members_in_domain(size[:, None], stride, 8).shape == (500, 500)


@given(size=SMALL, stride=SMALL, domain=SMALL)
def test_members_times_domains_cover_the_group(size: int, stride: int, domain: int) -> None:
    covered = members_in_domain(size, stride, domain) * domains_spanned(size, stride, domain)
    assert covered >= size


@given(size=SMALL, stride=SMALL, rails=SMALL)
def test_one_rail_means_equal_ranks_modulo_rails(size: int, stride: int, rails: int) -> None:
    planes = {i * stride % rails for i in range(size)}
    if on_one_rail(stride, rails):
        assert len(planes) == 1
    elif size > 1:
        assert len(planes) > 1
