"""Pairs of a base and a source prompt as rows of tokens, where one answer token is judged."""

from __future__ import annotations

from typing import Any

from workbench.errors import WorkbenchError
from workbench.tasks.batching import Row, rows
from workbench.tasks.desiderata import Counterfactuals
from workbench.tasks.prompts import require_halves


def counterfactual_rows(words: Any, pairs: Any) -> tuple[list[Row], list[Row]]:
    """The base prompts with the answers that follow from the source, and the source prompts.

    Raises WorkbenchError for anything but `tasks.desiderata`, fewer than 8 pairs, and answers of
    several tokens.
    """
    if not isinstance(pairs, Counterfactuals):
        raise WorkbenchError(
            f"Expected pairs of prompts from tasks.desiderata, found {type(pairs).__name__}; an "
            "interchange needs the answer that follows from the source's information."
        )
    require_halves(len(pairs), "pairs", least=4)
    ours, theirs = (rows(words, one, answers=True) for one in (pairs.wanted, pairs.sources))
    long = [row.name for row in ours if len(row.answer) > 1]
    if long:
        raise WorkbenchError(
            f"The answer of pair {long[0]!r} has several tokens, and one token is judged; draw the "
            "pairs with tokenizer=, which uses only words of one token."
        )
    return ours, theirs
