"""Field access: what is accepted, and what the errors name."""

from __future__ import annotations

import pytest

from krzem.errors import ModelError
from krzem.model.description import MAX_COUNT, Fields, show


def fields(**raw: object) -> Fields:
    return Fields(raw, name="tiny", model_type="llama")


def test_count_reads_the_first_name_and_its_other_spellings() -> None:
    assert fields(hidden_size=8).count("n_embd", "hidden_size") == 8
    assert fields(n_embd=8, hidden_size=8).count("n_embd", "hidden_size") == 8
    assert fields(n_embd=None, hidden_size=8).count("n_embd", "hidden_size") == 8


def test_two_spellings_that_disagree_are_refused() -> None:
    with pytest.raises(ModelError, match="'n_embd' = 8 and 'hidden_size' = 9"):
        fields(n_embd=8, hidden_size=9).count("n_embd", "hidden_size")


def test_defaults_stand_in_for_absent_fields_only() -> None:
    assert fields().count("x", default=3) == 3
    assert fields(x=None).optional_count("x", default=3) is None
    with pytest.raises(ModelError, match="'x' is null; give its value"):
        fields(x=None).count("x", default=3)
    with pytest.raises(ModelError, match="'x' is missing"):
        fields().count("x")


@pytest.mark.parametrize(
    "value",
    [0, -1, True, 1.0, 1.5, "8", [8], {}, MAX_COUNT + 1, 10**6000, float("nan")],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_count_is_refused_by_name(value: object) -> None:
    with pytest.raises(ModelError, match=r"config of tiny \(llama\): 'hidden_size' is") as caught:
        fields(hidden_size=value).count("hidden_size")
    assert len(str(caught.value)) < 200


def test_a_missing_field_is_named_with_what_is_there_instead() -> None:
    with pytest.raises(ModelError, match="'hidden_size' is missing") as caught:
        fields(hiden_size=8, vocab=3).count("hidden_size")
    assert "'hiden_size'" in str(caught.value)


def test_flags_and_words() -> None:
    assert fields(tie=True).flag("tie", default=False)
    assert fields(tie=None).flag("tie", default=True)
    assert fields().choice("kind", among=("a", "b"), default="b") == "b"
    with pytest.raises(ModelError, match="true or false"):
        fields(tie=1).flag("tie", default=False)
    with pytest.raises(ModelError, match="supported: a, b"):
        fields(kind="c").choice("kind", among=("b", "a"), default="a")


def test_fractions() -> None:
    assert fields(share=0.5).fraction("share") == 0.5
    assert fields(share=1).fraction("share") == 1.0
    assert fields().fraction("share") is None
    for wrong in (0, -0.1, 1.01, float("nan"), True, "0.5"):
        with pytest.raises(ModelError, match="above 0 and at most 1"):
            fields(share=wrong).fraction("share")


def test_lists_have_one_entry_per_layer() -> None:
    assert fields(kinds=["a", "b"]).per_layer("kinds", 2, ("a", "b")) == ("a", "b")
    assert fields(kinds=None).per_layer("kinds", 2, ("a",)) is None
    with pytest.raises(ModelError, match=r"3 entries for 2 layers .* 3 != 2"):
        fields(kinds=["a"] * 3).per_layer("kinds", 2, ("a",))
    with pytest.raises(ModelError, match=r"kinds\[1\] is 'c'"):
        fields(kinds=["a", "c"]).per_layer("kinds", 2, ("a",))
    with pytest.raises(ModelError, match="has to be a list"):
        fields(kinds="aa").per_layer("kinds", 2, ("a",))
    with pytest.raises(ModelError, match="100000 entries"):
        fields(kinds=["a"] * 100_000).per_layer("kinds", 2, ("a",))


def test_lists_of_counts() -> None:
    assert fields(ratios=[0, 4]).counts("ratios") == (0, 4)
    assert fields().counts("ratios") is None
    for wrong in ([-1], [True], ["4"], [None], [4.0]):
        with pytest.raises(ModelError, match=r"ratios\[0\]"):
            fields(ratios=wrong).counts("ratios")


def test_division_shows_the_remainder() -> None:
    fields().divides("kv", 4, "heads", 8)
    with pytest.raises(ModelError, match=r"heads = 9 is not a multiple of kv = 4 \(9 / 4 leaves 1"):
        fields().divides("kv", 4, "heads", 9)


def test_show_is_short_for_anything() -> None:
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    assert all(len(show(v)) < 100 for v in (10**7000, "x" * 999, nested, [10**7000], None))
