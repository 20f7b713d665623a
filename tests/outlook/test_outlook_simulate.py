"""The driver: reproducible, independent of chunks' order and of how many work."""

from __future__ import annotations

import time

import numpy as np
import pytest

from krzem.errors import InputError
from krzem.outlook import Forecast, forecast, shipped
from krzem.outlook.simulate import FANS, QUANTILES

RUN = shipped().with_run(paths=20_000, chunk_paths=4096, fan_paths=5000)


def same(a: Forecast, b: Forecast) -> bool:
    fans = all(np.array_equal(a.fans[n], b.fans[n]) for n in FANS)
    return fans and np.array_equal(a.ever, b.ever) and a.effective == b.effective


def test_the_same_seed_gives_the_same_result_whoever_works() -> None:
    one, again = forecast(RUN, workers=1), forecast(RUN, workers=3)
    assert same(one, again)
    assert not same(one, forecast(RUN.with_run(seed=RUN.run.seed + 1)))


def test_a_known_result() -> None:
    """Guards the equations: changes of this number have to be explained."""
    result = forecast(shipped().with_run(paths=65_536))
    assert result.odds(3.0) == pytest.approx(0.115, abs=0.008)
    assert result.odds(5.0) == pytest.approx(0.208, abs=0.010)


def test_odds_agree_between_seeds_within_their_error() -> None:
    results = [forecast(RUN.with_run(seed=seed)) for seed in range(4)]
    spread = np.std([r.odds(5.0) for r in results])
    assert spread < 3 * results[0].error(5.0)


def test_odds_by_option_add_up_to_all() -> None:
    result = forecast(RUN)
    for name, options in RUN.scenarios.items():
        total = sum(p * result.by_option[name, option][-1] for option, p in options.items())
        assert total == pytest.approx(result.ever[-1], abs=0.02)


def test_an_option_without_chance_has_no_odds() -> None:
    result = forecast(RUN.with_scenario("export", "tight"))
    assert np.isnan(result.by_option["export", "loose"]).all()
    assert result.by_option["export", "tight"][-1] == result.ever[-1]


def test_fans_are_ordered_and_have_every_step() -> None:
    result = forecast(RUN)
    for name in FANS:
        assert result.fans[name].shape == (RUN.run.steps + 1, len(QUANTILES))
        assert (np.diff(result.fans[name], axis=1) >= 0).all()


def test_progress_reports_every_path() -> None:
    seen: list[int] = []
    forecast(RUN, progress=seen.append)
    assert sum(seen) == RUN.run.paths


def test_a_hundred_thousand_paths_take_no_time() -> None:
    """A tenth of the promised million in five seconds, with room for a busy machine."""
    start = time.process_time()
    forecast(shipped().with_run(paths=100_000))
    assert time.process_time() - start < 3.0


def test_nobody_is_ahead_at_the_origin_and_nothing_is_known_beyond_the_horizon() -> None:
    result = forecast(RUN)
    assert result.ever[0] == 0
    with pytest.raises(InputError, match="beyond the horizon"):
        result.odds(10.5)
