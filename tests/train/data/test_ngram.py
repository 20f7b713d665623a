"""The counting model against the definition, written out over dictionaries."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from krzem.errors import DataError
from krzem.train.data.ngram import FALLBACK, NGram

VOCABULARY = 7


def text_of(length: int, seed: int = 0) -> list[int]:
    """Skewed and dependent, so that every order has grams seen once to four times."""
    draw = np.random.default_rng(seed)
    tokens = [0]
    for _ in range(length - 1):
        step = int(draw.geometric(0.45))
        tokens.append((tokens[-1] * 2 + step) % (VOCABULARY - 1))
    return tokens


class ByDefinition:
    """Chen and Goodman's formula as it is written, one probability at a time."""

    def __init__(self, tokens: Sequence[int], order: int) -> None:
        self.counts: list[Counter[tuple[int, ...]]] = []
        for n in range(1, order + 1):
            grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
            if n == order:
                self.counts.append(Counter(grams))
            else:
                longer = {tuple(tokens[i : i + n + 1]) for i in range(len(tokens) - n)}
                self.counts.append(Counter(gram[1:] for gram in longer))
        self.discounts = [self.estimate(c) for c in self.counts]
        self.after: list[dict[tuple[int, ...], list[int]]] = []
        for counts in self.counts:
            after = defaultdict(list)
            for gram, count in counts.items():
                after[gram[:-1]].append(count)
            self.after.append(after)

    @staticmethod
    def estimate(counts: Counter[tuple[int, ...]]) -> tuple[float, float, float]:
        n = [list(counts.values()).count(i) for i in range(5)]
        if 0 in n[1:]:
            return FALLBACK
        y = n[1] / (n[1] + 2 * n[2])
        raw = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
        return tuple(min(max(d, 0.0), i) for i, d in enumerate(raw, 1))  # type: ignore[return-value]

    def probability(self, context: tuple[int, ...], token: int) -> float:
        if len(context) >= len(self.counts):
            context = context[len(context) - len(self.counts) + 1 :]
        lower = self.probability(context[1:], token) if context else 1 / VOCABULARY
        own, discounts = self.counts[len(context)], (0.0, *self.discounts[len(context)])
        found = self.after[len(context)].get(context)
        if not found:
            return lower
        count = own[(*context, token)]
        left = sum(discounts[min(c, 3)] for c in found)
        return (count - discounts[min(count, 3)] + left * lower) / sum(found)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_it_is_the_definition(order: int) -> None:
    text, unseen = text_of(600), [*text_of(80, seed=1), VOCABULARY - 1, 2, 3]
    slow = ByDefinition(text, order)
    found = NGram(np.array(text), order=order, vocabulary=VOCABULARY)
    wanted = [math.log(slow.probability(tuple(unseen[:i]), t)) for i, t in enumerate(unseen)]
    np.testing.assert_allclose(found.log_probabilities(np.array(unseen)), wanted, rtol=1e-12)
    np.testing.assert_allclose(found.discounts, slow.discounts, rtol=1e-12)
    assert found.grams[0] == len(set(text))


@pytest.mark.parametrize("context", [[], [0], [6], [3, 1], [6, 6, 6], [0, 1, 2, 3, 4, 5]])
def test_probabilities_sum_to_one_after_any_context(context: list[int]) -> None:
    found = NGram(np.array(text_of(400)), order=4, vocabulary=VOCABULARY).distribution(context)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    assert (found > 0).all()


def test_a_long_text_without_structure_costs_its_entropy() -> None:
    chances = np.array([0.5, 0.25, 0.125, 0.125])
    draw = np.random.default_rng(0)
    text, held_out = draw.choice(4, 200_000, p=chances), draw.choice(4, 50_000, p=chances)
    entropy = -float((chances * np.log(chances)).sum())
    model = NGram(text, order=3, vocabulary=4)
    assert model.loss(held_out) == pytest.approx(entropy, abs=0.005)


def test_a_fixed_cycle_costs_next_to_nothing_in_any_order_but_the_first() -> None:
    text = np.tile(np.arange(5), 400)
    assert NGram(text, order=1, vocabulary=5).loss(text) == pytest.approx(math.log(5), abs=1e-3)
    assert NGram(text, order=2, vocabulary=5).loss(text) < 0.005


def test_a_wide_vocabulary_needs_no_wide_table() -> None:
    text = np.random.default_rng(0).integers(0, 129_000, 5000)
    model = NGram(text, order=5, vocabulary=129_280)
    assert model.loss(np.array([5, 6, 7])) == pytest.approx(math.log(129_280), rel=0.2)


@pytest.mark.parametrize(
    ("tokens", "order", "message"),
    [
        ([1, 2, 3], 0, "order has to be 1 or more"),
        ([1, 2, 9], 2, "token 9 is outside a vocabulary of 7"),
        ([1, -2, 3], 2, "token -2 is outside"),
        ([1, 2], 3, "2 tokens are too few"),
    ],
)
def test_bad_input_is_named(tokens: list[int], order: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NGram(np.array(tokens), order=order, vocabulary=VOCABULARY)


def test_a_loss_needs_a_target() -> None:
    with pytest.raises(DataError, match="two tokens"):
        NGram(np.array([1, 2, 3]), order=2, vocabulary=VOCABULARY).loss(np.array([1]))
