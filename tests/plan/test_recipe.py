"""Published recipes: complete, consistent with the catalogue of models, sourced."""

import pytest

from krzem.facts.table import manual
from krzem.layout.layout import Optimizer, Precision, StateBytes
from krzem.model.catalogue import model_ids
from krzem.plan.goal import TABLE, Recipe, recipe_of, recipes


def test_every_built_in_model_has_a_row_even_where_nothing_is_published() -> None:
    assert tuple(recipes()) == model_ids()


def test_a_model_from_a_file_has_none() -> None:
    assert recipe_of("my-model") is None


@pytest.mark.parametrize("recipe", recipes().values(), ids=recipes())
def test_rows_hold_what_the_planner_understands(recipe: Recipe) -> None:
    assert recipe.precision is None or recipe.precision in set(Precision)
    assert recipe.optimizer is None or recipe.optimizer in set(Optimizer)
    assert set(recipe.state_bytes) <= {"weight", "gradient", "master", "moments"}
    StateBytes(**recipe.state_bytes)
    assert recipe.source
    assert recipe.confidence in ("high", "medium", "low")
    assert len(recipe.date) == 7
    assert recipe.global_batch is None or recipe.sequence is not None


@pytest.mark.parametrize(
    ("model", "tokens", "batch_tokens", "rounding"),
    [
        ("deepseek-v3", 14.8e12, 15360 * 4096, 0.0),
        ("deepseek-v4-pro", 33e12, 94.4e6, 0.001),
        ("deepseek-v4-flash", 32e12, 75.5e6, 0.001),
        ("kimi-k2", 15.5e12, 67e6, 0.002),
        ("llama-3.1-405b", 15.6e12, 16e6, 0.05),
        ("gpt3-175b", 300e9, 3.2e6, 0.02),
        ("deepseek-v3.2", 943.7e9, 943.7e9 / 15000, 0.001),
    ],
)
def test_batches_in_sequences_are_the_published_tokens(
    model: str, tokens: float, batch_tokens: float, rounding: float
) -> None:
    recipe = recipe_of(model)
    assert recipe is not None
    assert recipe.tokens == tokens
    assert recipe.global_batch is not None
    assert recipe.sequence is not None
    found = recipe.global_batch * recipe.sequence
    assert abs(found - batch_tokens) <= rounding * batch_tokens


def test_deepseek_v3_keeps_moments_in_bf16() -> None:
    recipe = recipe_of("deepseek-v3")
    assert recipe is not None
    assert recipe.state_bytes == {"gradient": 4.0, "master": 4.0, "moments": 4.0}


def test_the_table_explains_itself() -> None:
    assert "not published" in manual(TABLE)
