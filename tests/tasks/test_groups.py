"""Groups by what prompts are like, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.tasks import Prompt, PromptSet, likeness
from workbench.tasks.groups import banded, grouped


def prompts(*texts: str, targets: tuple[str, ...] = ()) -> PromptSet:
    answers = targets or (" x",) * len(texts)
    both = enumerate(zip(texts, answers, strict=True))
    return PromptSet("p", tuple(Prompt(str(i), text, target) for i, (text, target) in both))


def test_few_numbers_stand_alone_and_many_in_equal_bands():
    assert banded([3, 1, 3, 2]) == ["3", "1", "3", "2"]
    assert banded([5, 5]) == ["5", "5"]
    found = banded(range(1, 41))
    names, sizes = np.unique(found, return_counts=True)
    assert set(names) == {"1 to 10", "11 to 20", "21 to 30", "31 to 40"}
    assert sizes.tolist() == [10] * 4
    assert banded([1] * 30 + [2, 3, 4, 9, 12])[29:] == ["1"] + ["2 to 12"] * 5
    assert banded([]) == []


def test_names_that_need_no_tag():
    own = prompts("One. Two; three", "a b", "a\nb\nc.", "one", targets=(" x", " y", " x", " x"))
    assert own.tag("steps").tolist() == ["3", "1", "3", "1"]
    assert own.tag("length").tolist() == ["3", "2", "3", "1"]
    assert own.tag("frequency").tolist() == ["3", "1", "3", "3"]
    assert own.tag("answer").tolist() == ["x", "y", "x", "x"]
    assert own.tag("turns").tolist() == ["1"] * 4
    assert grouped(own, "subject") is None
    with pytest.raises(WorkbenchError, match="answer, length, steps, turns, frequency need none"):
        own.tag("subject")


def test_a_tag_of_that_name_comes_first():
    own = PromptSet("p", (Prompt("0", "a b", " x", tags={"length": "long"}),))
    assert own.tag("length").tolist() == ["long"]


def test_prompts_are_like_the_texts_whose_words_they_share():
    own = prompts("the cat sat on the mat", "a dog ran in the park", "the cat sat on a chair",
                  "stars burn in far space")  # fmt: skip
    found = likeness(own, ["Yesterday the cat sat on the mat x"])
    assert [p.tags["likeness"] for p in found] == ["like", "unlike", "like", "unlike"]
    assert likeness(own, own[:1]).tag("likeness").tolist()[0] == "like"
    with pytest.raises(WorkbenchError, match="0% of their runs"):
        likeness(own, ["nothing of the kind"])
