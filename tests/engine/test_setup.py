"""Setups: what is stated holds, the rest is chosen or mixed, never beyond the engine."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.accuracy.batch import variants_of
from krzem.engine.description import engine_named, engines
from krzem.engine.legal import software_year
from krzem.engine.setup import Setup, mixture
from krzem.engine.switches import layout_values, parse_switches, switches
from krzem.errors import GoalError, InputError, LayoutError, ModelError, UnknownNameError
from krzem.layout.layout import Layout, join, pack
from krzem.layout.space import layouts
from krzem.plan.plan import describe, explain
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle


def ask(model: str = "qwen3-30b-a3b", on: str = "h100:64", **more: object) -> Asked:
    given = {"global_batch": 512, "tokens": "1T", "sequence": 4096, "precision": "bf16", **more}
    return settle(Question(model=model, on=on, **given))  # type: ignore[arg-type]


def sample(asked: Asked, most: int = 400) -> tuple[Pricer, list[Layout]]:
    pricer = Pricer(asked.task)
    everything = join(list(layouts(asked.task.problem, asked.space)))
    everything = everything.take(pricer.allowed(everything))
    index = np.linspace(0, len(everything) - 1, min(most, len(everything))).astype(int)
    return pricer, [everything.at(int(i)) for i in index]


@pytest.mark.parametrize("engine", sorted(engines()))
def test_the_switches_of_a_block_are_those_of_each_layout_alone(engine: str) -> None:
    try:
        pricer, several = sample(ask("llama-3.1-8b", "h100:64", engine=engine))
    except (ModelError, GoalError):
        pytest.skip("does not run this model or precision")
    together = pricer.choose(pack(several))
    for i, layout in enumerate(several):
        assert together.at(i) == pricer.choose(pack([layout])).at(0)


def test_a_layout_costs_alone_what_it_costs_among_others() -> None:
    pricer, several = sample(ask(), 200)
    x = pack(several)
    together, peak = pricer.step(x).total, pricer.memory(x).peak
    for i, layout in enumerate(several):
        one = pack([layout])
        assert pricer.step(one).total[0] == pytest.approx(together[i], rel=1e-12)
        assert pricer.memory(one).peak[0] == pytest.approx(peak[i], rel=1e-12)


def test_what_was_chosen_costs_the_same_when_it_is_stated() -> None:
    asked = ask()
    pricer, several = sample(asked, 60)
    for layout in several:
        found = describe(pricer, layout)
        words = ",".join(f"{name}={choice}" for name, choice in found.switches)
        stated = explain(ask(switched=words).task, layout)
        assert stated.plan.step_seconds.mid == pytest.approx(found.step_seconds.mid, rel=1e-12)
        assert stated.plan.switches == found.switches


def test_stated_switches_hold_in_every_layout_of_a_search() -> None:
    asked = ask(switched="alltoall", switched_off="overlap-a2a,overlap-tp")
    pricer, several = sample(asked)
    for layout in several:
        chosen = dict(pricer.choose(pack([layout])).at(0))
        assert chosen.get("dispatcher", "alltoall") == "alltoall"
        assert chosen.get("overlap-a2a", "off") == "off"
        assert chosen.get("overlap-tp", "off") == "off"


def test_a_switch_limits_the_search_to_layouts_that_allow_it() -> None:
    _, several = sample(ask(switched="overlap-a2a"))
    assert several
    for layout in several:
        assert layout.ep == 1 or layout.pp == 1 or layout.vpp > 1
        assert layout.ep == 1 or layout.recompute.value != "full"


def test_the_date_decides_what_there_is() -> None:
    before = dict(describe(Pricer(ask(date="2024-06").task), Layout(dp=8, pp=8, ep=8, zero=1,
                  vpp=1)).switches)  # fmt: skip
    assert before["dispatcher"] == "alltoall"
    with pytest.raises(GoalError, match="came to megatron-lm in"):
        ask(switched="hybridep", date="2024-06")


def test_no_step_of_days_changes_a_price_beyond_what_switches_that_came_explain() -> None:
    layout = Layout(dp=64, ep=8, zero=1)
    days = [f"2025-{m:02d}-{d:02d}" for m in range(1, 13) for d in (1, 15)]
    found = [describe(Pricer(ask(date=day).task), layout) for day in days]
    for before, after in itertools.pairwise(found):
        ratio = after.step_seconds.mid / before.step_seconds.mid
        assert before.switches != after.switches or abs(ratio - 1.0) < 0.02


@pytest.mark.parametrize(
    ("on", "off", "expected"),
    [
        ("deepep", "", {"dispatcher": "deepep"}),
        ("overlap-a2a,cuda-graphs=full", "", {"overlap-a2a": "on", "cuda-graphs": "full"}),
        ("Dispatcher=AllGather", "compile", {"dispatcher": "allgather", "compile": "off"}),
        ("", "cuda-graphs", {"cuda-graphs": "none"}),
    ],
)
def test_switches_are_written_as_people_do(on: str, off: str, expected: dict[str, str]) -> None:
    assert parse_switches([on], [off]) == expected


@pytest.mark.parametrize(
    ("on", "off", "says"),
    [
        ("deepeep", "", "Did you mean deepep"),
        ("cuda-graphs", "", "which of none, partial, full"),
        ("dispatcher=mail", "", "Choose from"),
        ("deepep,alltoall", "", "stated twice"),
        ("overlap-tp", "overlap-tp", "stated twice"),
        ("", "hybridep", "write --without dispatcher"),
    ],
)
def test_wrong_switches_are_refused_with_what_there_is(on: str, off: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_switches([on], [off])


def test_engines_have_one_name_each_and_other_ways_to_write_it() -> None:
    for engine in engines().values():
        for word in (engine.name, *engine.aliases):
            assert engine_named(word.upper().replace("-", "_")) is engine
    with pytest.raises(UnknownNameError, match="megatron-lm"):
        engine_named("megatronlm2")


def test_megatron_lm_and_megatron_core_are_one_engine() -> None:
    layout = "tp=2,pp=2,ep=8,mbs=1,zero=1"
    from krzem.plan.answer import explanation_of

    a, b = (
        explanation_of(ask(engine=name), layout).plan for name in ("megatron-lm", "megatron-core")
    )
    assert a.step_seconds == b.step_seconds


def test_plain_fsdp_has_no_tensor_parallelism_experts_or_pipeline() -> None:
    _, several = sample(ask("llama-3.1-8b", "h100:64", engine="fsdp"))
    assert {(x.tp, x.ep, x.pp) for x in several} == {(1, 1, 1)}


def test_software_is_never_newer_than_the_last_that_supports_the_chips() -> None:
    year, why = software_year(2026.9, "megatron-lm", "nvidia-volta")
    assert year < 2026.9
    assert why
    assert software_year(2026.9, "megatron-lm", "nvidia-hopper") == (2026.9, None)


def test_explain_says_what_the_engine_does_not_run() -> None:
    found = explain(ask(engine="megatron-lm").task, Layout(pp=4, dp=16, zero=3, ep=8))
    assert any("pipeline" in reason for reason in found.refused)


@given(st.sampled_from(sorted(engines())), st.floats(2021.0, 2027.0), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_mixture_is_a_distribution(engine: str, year: float, zero: int) -> None:
    asked = ask()
    from dataclasses import replace

    setup = replace(asked.task.setup, engine=engine, year=year)
    layout = Layout(tp=2, pp=2, dp=16, ep=8, zero=zero)
    words = layout_values(pack([layout]), asked.task.problem)
    values = {**asked.task.values, **{
        n: v.words[int(v.codes[0])] if hasattr(v, "words") else np.ravel(v)[0].item()
        for n, v in words.items()
    }}  # fmt: skip
    found = mixture(setup, values)
    for name in {d.switch for d in found.deviations}:
        rest = sum(d.share for d in found.deviations if d.switch == name)
        assert 0.0 < rest <= 1.0
        assert rest <= 1.0 - max(d.share for d in found.deviations if d.switch == name) + 1e-9
    assert {name for name, _ in found.likeliest} <= set(switches())


@pytest.mark.parametrize("engine", sorted(engines()))
def test_what_is_fused_stays_fused_whatever_else_is(engine: str) -> None:
    setup = Setup(engine=engine, year=2026.5)
    own = [name for name in ("compile", "loss", "attention") if name in setup.description.switches]
    for chosen in itertools.product(*(setup.description.switches[name].choices for name in own)):
        choices = tuple(zip(own, chosen, strict=True))
        alone = [setup.design((choice,)).elementwise for choice in choices]
        assert setup.design(choices).elementwise == min(alone, default=setup.design(()).elementwise)


def test_nothing_open_means_one_variant() -> None:
    assert variants_of.__doc__


def test_layouts_that_the_engine_refuses_are_not_searched() -> None:
    pricer, several = sample(ask(engine="megatron-lm"))
    assert all(not pricer.judge.reasons(layout) for layout in several)


def test_wrong_limits_are_refused_and_right_ones_hold() -> None:
    asked = ask(limits="tp<=2,cp=1,zero=1|3,pp=1..4,recompute=none")
    pricer, _ = sample(ask())
    everything = join(list(layouts(asked.task.problem, asked.space)))
    kept = everything.take(pricer.allowed(everything, asked.space.limits))
    assert len(kept)
    assert (kept.tp <= 2).all()
    assert (kept.cp == 1).all()
    assert (kept.pp <= 4).all()
    assert set(np.unique(kept.zero)) <= {1, 3}
    for wrong in ("tp=x", "fast", "tpp=2", "pp=8..4", "schedule=never", "recompute<=full"):
        with pytest.raises(LayoutError):
            ask(limits=wrong)
