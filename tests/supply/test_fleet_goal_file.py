"""goal.toml: what is read, and what bad input gets."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.supply.fleet_cases import made_slots, made_speed

from krzem.errors import DataError, GoalError, InputError, KrzemError, UnknownNameError
from krzem.supply.fleet import pool_standing
from krzem.supply.goal_file import CHANCE, GOAL, MOVE, goal_of, read_goal
from krzem.supply.machines import call_of, calls, machine, machines
from krzem.supply.periods import add_months, periods
from krzem.supply.pool_file import DELIVERY, GRANT, POOL

BASE: dict[str, Any] = {"model": "deepseek-v3", "start": "2027-01-01", "deadline": "300d"}


def goal(*pools: dict[str, Any], **more: Any) -> Any:
    return goal_of(BASE | more | {"pool": list(pools) or [{"on": "h800:2048"}]})


def test_a_short_goal_takes_the_published_rent_and_says_so() -> None:
    pool = goal().pools[0]
    assert pool.sizes == (512, 1024, 2048)
    assert pool.rent is not None
    assert pool.rent.mid == 2.0
    assert "2412.19437" in pool.notes[0]


def test_rents_are_per_device_and_a_910c_holds_two() -> None:
    pool = goal({"on": "910c:1024"}).pools[0]
    assert pool.rent is not None
    assert pool.rent.mid == pytest.approx(1.538 / 2)


def test_a_machine_brings_cluster_country_and_grants() -> None:
    pool = goal({"machine": "lumi-g", "nodes": 512, "grant": [{"call": "extreme"}]}).pools[0]
    assert pool.sizes[-1] == 512 * 8
    assert pool.country == "FI"
    assert (pool.grants[0].least, pool.grants[0].most) == (160_000, 1_855_084)
    assert pool.grants[0].last == dt.date(2028, 6, 1)


def test_cluster_keys_may_stand_beside_on_and_machine() -> None:
    more = {"device_days_between_interruptions": 1000}
    pool = goal({"machine": "lumi-g", "cluster": more, "rent": "$1/h"}).pools[0]
    assert pool.given["device_days_between_interruptions"] == 1000
    assert pool.given["devices_per_node"] == 8
    with pytest.raises(GoalError, match=r"cluster\.devices"):
        goal({"on": "h800:8", "cluster": {"devices": 8}})


def test_domestic_is_by_the_vendors_country() -> None:
    found = goal({"on": "h800:8"}, {"on": "910c:16"}, domestic="China", to="CN")
    assert [pool.domestic for pool in found.pools] == [False, True]


def test_lawfulness_counts_the_day_on_which_devices_were_obtained() -> None:
    found = goal(
        {"name": "old", "on": "h800:8", "acquired": "2023-06-01", "rent": "$2/h"},
        {"name": "new", "on": "h800:8", "buy": "$30000"},
        {"name": "home", "on": "910c:16"},
        to="CN",
    )
    assert [pool_standing(pool, found).lawful for pool in found.pools] == [True, False, True]


@pytest.mark.parametrize(
    ("pools", "more", "words"),
    [
        ([{}], {}, "on ="),
        ([{"on": "h800"}], {}, "number of devices"),
        ([{"on": "h80x:8"}], {}, "unknown device"),
        ([{"on": "h800:8", "machine": "lumi-g"}], {}, "keep one"),
        ([{"machine": "lumix"}], {}, "lumi-g"),
        ([{"on": "lumi:9999 nodes", "rent": "$1/h"}], {}, "2,978"),
        ([{"machine": "lumi-g", "nodes": 9999}], {}, "2,978"),
        ([{"machine": "lumi-g", "grant": [{"call": "extrem"}]}], {}, "extreme"),
        ([{"on": "h800:8", "grant": [{"call": "extreme"}]}], {}, "machine"),
        ([{"on": "h800:8", "sizes": [16]}], {}, "the pool has 8"),
        ([{"on": "h800:8", "rent": "2 EUR"}], {}, "rent"),
        ([{"on": "h800:8", "chnce": 0.5}], {}, "chance"),
        ([{"on": "h800:8", "chance": 1.5}], {}, "more than the whole"),
        ([{"on": "950dt:8"}], {}, "nobody has published a rent"),
        ([{"on": "h800:8", "name": "a"}, {"on": "h200:8", "name": "a"}], {}, "two pools"),
        ([], {"deadline": "2026-01-01"}, "not after the start"),
        ([], {"deadline": "20000d"}, "ten years"),
        ([], {"move": {"other_stack": "400d"}}, "366"),
        ([], {"chance": {"shared": 0.9, "family": 0.9}}, "at most 1"),
        ([], {"budget": "-5"}, "negative"),
        ([], {"budget": "20M"}, "no currency"),
        ([], {"budget": 20_000_000}, "no currency"),
        ([], {"budget": "$20"}, "scale missing"),
        ([], {"month_budgets": {"2027-03": "5M"}}, "no currency"),
        ([], {"domestic_share": "60%"}, "no pool counts as domestic"),
        ([{"on": "h800:8", "grant": [{"most": 9, "applied": "2026-12-01"}]}], {}, "lead"),
        ([], {"toknes": "1T"}, "tokens"),
        ([], {"lawful_only": "yes"}, "true or false"),
        ([], {"month_budgets": {"2027-13": "$1M"}}, "no such day"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_words(
    pools: list[dict[str, Any]], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        goal(*pools, **more)


def test_every_fault_is_listed() -> None:
    with pytest.raises(GoalError) as error:
        goal_of({"tokens": [], "pool": [{"on": "h800:8", "chance": 2}, {"on": 5}]})
    text = str(error.value)
    for words in ("faults", "model is missing", "deadline is missing", "chance", "pool 2"):
        assert words in text


def test_files_that_are_no_goals(tmp_path: Path) -> None:
    file = tmp_path / "goal.toml"
    with pytest.raises(DataError, match="does not exist"):
        read_goal(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        read_goal(file)
    file.write_text("a = [", encoding="utf-8")
    with pytest.raises(DataError, match="TOML"):
        read_goal(file)


scalars = st.one_of(
    st.none().map(lambda _: True), st.integers(-10, 10**12), st.floats(allow_nan=True),
    st.text(max_size=8), st.dates().map(str),
    st.sampled_from(["h800:64", "910c:64", "lumi-g", "$2/h", "30d", "50%", "CN", "extreme", "1T"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)


def tables(keys: Any) -> Any:
    return st.dictionaries(st.sampled_from(sorted(keys)), values, max_size=5)


pools_of = st.builds(
    lambda base, grants, deliveries: base | grants | deliveries,
    tables(POOL),
    st.just({}) | tables(GRANT).map(lambda g: {"grant": [g]}),
    st.just({}) | tables(DELIVERY).map(lambda d: {"delivery": [d]}),
)


@settings(max_examples=250, deadline=None)
@given(tables(GOAL), st.lists(pools_of, max_size=2), tables(MOVE), tables(CHANCE), st.booleans())
def test_whatever_is_written_is_read_or_refused(
    table: dict[str, Any], pools: list[Any], move: Any, chance: Any, whole: bool
) -> None:
    full = (BASE if whole else {}) | table | {"pool": pools, "move": move, "chance": chance}
    refusal: KrzemError | None = None
    try:
        goal_of(full)
    except KrzemError as error:
        refusal = error
    assert refusal is None or (str(refusal).strip() and refusal.exit_code == 2)


def test_machines_are_sourced_and_have_calls() -> None:
    assert {c.machine for c in calls()} <= set(machines())
    for found in machines().values():
        assert found.source
        assert found.date
        assert found.confidence in ("high", "medium", "low")
    assert call_of("regular", "leonardo-booster").limit == 220_000
    with pytest.raises(UnknownNameError, match="jupiter-booster"):
        machine("jupyter")


def test_a_pool_may_be_a_machine_by_any_of_its_names() -> None:
    one, two = (
        goal({**named, "rent": "$1/h"}).pools[0]
        for named in ({"machine": "leonardo", "nodes": 64}, {"on": "Leonardo:64 nodes"})
    )
    assert one.given == two.given
    assert one.sizes == two.sizes
    assert max(one.sizes) == 256


def test_periods_are_cut_where_something_changes_and_cover_the_time() -> None:
    found = goal(
        {"on": "h800:8", "rent": "$1/h", "from": "2027-02-03", "until": "2027-06-09"},
        {"machine": "lumi-g", "nodes": 8, "grant": [{"most": 100, "from": "2027-03-15"}]},
    )
    slots = made_slots(made_speed(10, devices=8), made_speed(10, devices=64))
    days = periods(found, slots, found.deadline)
    cuts = [period.first for period in days]
    for day in (dt.date(2027, 2, 3), dt.date(2027, 6, 9), dt.date(2027, 3, 15)):
        assert day in cuts
    assert all(a.end == b.first for a, b in pairwise(days))
    assert sum(period.days for period in days) == (found.deadline - found.start).days
    monthly = replace(found, month_budgets={"2027-04": 1e6})
    assert dt.date(2027, 4, 1) in [p.first for p in periods(monthly, slots, found.deadline)]
    assert add_months(dt.date(2027, 11, 30), 3) == dt.date(2028, 2, 1)


def test_a_grant_of_a_call_begins_after_its_lead_time() -> None:
    pool = {"machine": "lumi-g", "nodes": 512, "grant": [{"call": "extreme"}]}
    grant = goal(pool).pools[0].grants[0]
    assert grant.applied == dt.date(2027, 1, 1)
    assert 145 <= (grant.first - grant.applied).days <= 160
    assert grant.late_days == pytest.approx(30.4, abs=0.1)
    given = goal(pool | {"grant": [{"call": "extreme", "from": "2027-03-01", "chance": "40%"}]})
    assert given.pools[0].grants[0].first == dt.date(2027, 3, 1)
    assert given.pools[0].grants[0].chance == 0.4
