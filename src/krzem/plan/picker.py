"""Picks each part of a goal from what is asked or from the model's published recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from krzem.errors import GoalError, QuantityError, shorten
from krzem.plan.recipe import Recipe
from krzem.quantity import Written

if TYPE_CHECKING:
    from krzem.plan.request import Question


class Picker:
    """Picks each part of the goal from the question or the recipe, and keeps account of it."""

    def __init__(self, question: Question, name: str, recipe: Recipe | None) -> None:
        self.question = question
        self.name = name
        self.recipe = recipe
        self.taken: list[str] = []
        self.notes: list[str] = []
        self.wanting: list[str] = []
        self.lacking: list[str] = []

    def published(self, field: str) -> Any:
        """The recipe's value, noted as taken; None where it is not published."""
        value = None if self.recipe is None else getattr(self.recipe, field)
        if value is not None:
            self.taken.append(field)
        return value

    def number(self, field: str, written: Written | None, reader: Any, option: str) -> int:
        """The number given, else published; 1 stands in for what will be asked for."""
        if written is not None:
            return int(read(option, reader, written))
        value = self.published(field)
        if value is None:
            self.wanting.append(option)
            return 1
        return int(value)

    def ask_for_the_rest(self) -> None:
        """Raise GoalError that names every option that is wanting."""
        if self.wanting:
            whose = f"the training recipe of {shorten(self.name, 60)} is not published"
            if self.question.finetune:
                whose = f"fine-tuning {shorten(self.name, 60)} has no published recipe"
            elif self.recipe is not None:
                whose = f"not all of {self.name}'s training recipe is published"
            raise GoalError(f"{whose}: give {' and '.join(self.wanting)}")

    def sentences(self) -> list[str]:
        """The notes, first what the recipe supplied."""
        if not self.taken or self.recipe is None:
            return self.notes
        names = ", ".join(name.replace("_", " ") for name in self.taken)
        first = f"{names}: as published for {self.name} ({self.recipe.source})"
        return [first, *self.notes]


def read(option: str, reader: Callable[[Any], Any], written: Any) -> Any:
    """``reader(written)``; where it cannot be read, the message starts with the option."""
    try:
        return reader(written)
    except QuantityError as error:
        raise QuantityError(f"{option.partition(' ')[0]}: {error}") from None
