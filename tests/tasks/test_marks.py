"""Places marked in the text: what they become, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.analysis.rendering import rendered
from workbench.errors import WorkbenchError
from workbench.tasks import Prompt, PromptSet, marked
from workbench.tasks.marks import are_marked


def one(text: str, **more: object) -> PromptSet:
    return PromptSet("one", (replace(Prompt("a", text, " x"), **more),))  # type: ignore[arg-type]


def test_marks_become_spans_and_go_from_the_text():
    """Three marks, one with a name; spans that were there move with their text, and one that holds
    a mark holds what was marked."""
    text = "[[city|Paris]] is in [[France]], [[they]] say."
    old = {name: (text.index(part), text.index(part) + len(part)) for name, part in (
        ("verb", "is"), ("end", "say"), ("all", text), ("inside", "ance"), ("mark", "[[they]]"),
    )}  # fmt: skip
    (made,) = marked(one(text, spans=old))
    assert made.prompt == "Paris is in France, they say."
    said = {name: made.prompt[a:b] for name, (a, b) in made.spans.items()}
    assert said == {
        "city": "Paris", "marked 2": "France", "marked 3": "they", "verb": "is", "end": "say",
        "all": made.prompt, "inside": "ance", "mark": "they",
    }  # fmt: skip


def test_a_chat_is_marked_in_its_last_message():
    chat = ({"role": "user", "content": "Is [[it]] so?"},)
    (made,) = marked(one("Is [[it]] so?", messages=chat))
    assert made.messages[-1]["content"] == made.prompt == "Is it so?"
    assert made.prompt[slice(*made.spans["marked"])] == "it"


def test_a_set_is_marked_if_every_prompt_is():
    both = PromptSet("two", (Prompt("a", "[[x]] is", " y"), Prompt("b", "x is [no] [[]]", " y")))
    assert are_marked(both[:1])
    assert not are_marked(both)
    assert not are_marked(both[:0])
    with pytest.raises(WorkbenchError, match="none in 'b'"):
        marked(both)
    with pytest.raises(WorkbenchError, match="two places called 'c'"):
        marked(one("[[c|x]] and [[c|y]]"))
    with pytest.raises(WorkbenchError, match="two places called 'marked'"):
        marked(one("an [[x]]", spans={"marked": (0, 2)}))


def test_a_forgotten_mark_is_told():
    both = PromptSet("two", (Prompt("a", "[[x]] is", " y"), Prompt("b", "x is", " y")))
    (note,) = rendered({"prompts": both})
    assert "1 of 2 prompts hold [[...]]" in note
