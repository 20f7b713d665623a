"""Numbers that can be read and can hardly be meant: refused, or said."""

from __future__ import annotations

import datetime

from krzem.errors import GoalError

AHEAD = datetime.timedelta(days=183)
"""How far ahead software is planned for: releases of half a year are announced, later ones not."""
MANY_TOKENS = 200_000_000
"""Tokens of a step above which it is said: twice the largest published batch (94.4M, DeepSeek)."""
MOST_TOKENS = 1_000_000_000
"""Tokens of a step above which a number of sequences is taken for a number of tokens."""


def check_software_date(date: datetime.date, today: datetime.date) -> datetime.date:
    """``date`` where software of that day can be known; raises GoalError."""
    if date > today + AHEAD:
        raise GoalError(
            f"--date {date}: nobody knows the software of that day. --date is the age of the"
            f" software stack, from 2017 to {today + AHEAD}; --start is the first day of the run"
        )
    return date


def check_batch(batch: int, sequence: int, in_tokens: bool) -> str | None:
    """A note where a step is larger than any that was published; raises GoalError beyond reason.

    ``in_tokens`` says that the batch was given in tokens, where nothing can be mistaken.
    """
    tokens = batch * sequence
    sums = f"{batch:,} sequences x {sequence:,} tokens = {tokens:,} tokens a step"
    if tokens > MOST_TOKENS and not in_tokens:
        raise GoalError(
            f"--batch {batch:,} is a number of sequences: {sums}, ten times as much as any"
            f" published run. If {batch:,} tokens are meant, write --batch-tokens {batch}"
            f" ({batch // sequence:,} sequences); if it is meant as it is, write --batch-tokens"
            f" {tokens}"
        )
    if tokens > MANY_TOKENS:
        return f"the batch is larger than that of any published run: {sums}"
    return None
