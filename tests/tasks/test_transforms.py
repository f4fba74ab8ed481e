"""Prompts made from prompts: renamings turn back, shots stand in front, answers stay."""

from __future__ import annotations

import re
from typing import Any

import pytest

from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.tasks.batching import rows
from workbench.tasks.english import RELATIONS
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.transforms import LEDGER_WORDS


def test_a_renaming_turns_back():
    plain = tasks.ledger(30, seed=0)
    other = tasks.renamed(plain, LEDGER_WORDS)
    back = tasks.renamed(other, {new: old for old, new in LEDGER_WORDS.items()})
    assert [p.text for p in back] == plain.texts
    assert all(a.prompt != b.prompt and a.target == b.target
               for a, b in zip(plain, other, strict=True))  # fmt: skip


def test_renamed_words_are_known_to_the_family():
    known = set(shipped.tokenizer().get_vocab())
    assert set(LEDGER_WORDS) | set(LEDGER_WORDS.values()) <= known


def test_renamings_that_cannot_turn_back():
    one = PromptSet("s", (Prompt("a", "the cup and the hat", " cup"),))
    with pytest.raises(WorkbenchError, match="already holds 'hat'"):
        tasks.renamed(one, {"cup": "hat"})
    with pytest.raises(WorkbenchError, match="same new name"):
        tasks.renamed(one, {"cup": "pen", "hat": "pen"})
    swapped = tasks.renamed(one, {"cup": "hat", "hat": "cup"})
    assert swapped.prompts[0].text == "the hat and the cup hat"


def test_a_renaming_that_renames_nothing_is_refused():
    for words in ({}, {"zebra": "lion"}):
        with pytest.raises(WorkbenchError):
            tasks.renamed(tasks.ledger(3, seed=0), words)


def test_shots_are_other_solved_prompts():
    plain = tasks.ledger(10, seed=0)
    shown = tasks.many_shot(plain, plain, count=3, between=" . ")
    for before, after in zip(plain, shown, strict=True):
        assert after.prompt.endswith(before.prompt)
        told = after.prompt.removesuffix(before.prompt)
        solved = [p.text for p in plain if p.text + " . " in told]
        assert len(solved) >= 3
        assert before.text not in told
        assert after.target == before.target
    with pytest.raises(WorkbenchError, match="at least 10"):
        tasks.many_shot(plain, plain, count=10)


def test_no_shot_tells_the_answer_in_other_words():
    """Two in five questions about the family's facts had the very fact among four solved ones."""
    asked = tasks.facts(60, seed=1, split="test")
    tags = ("person", "attribute")

    def leaks(shown: PromptSet) -> int:
        found = 0
        for before, after in zip(asked, shown, strict=True):
            told = after.prompt.removesuffix(before.prompt)
            person, answer = before.tags["person"], before.target.strip()
            found += any({person, answer} <= set(one.split()) for one in re.split(r" \. ", told))
        return found

    plain = tasks.many_shot(asked, asked, count=8, between=" . ")
    assert leaks(plain) > 0
    assert leaks(tasks.many_shot(asked, asked, count=8, between=" . ", group=tags)) == 0
    with pytest.raises(WorkbenchError, match="no tag 'town'"):
        tasks.many_shot(asked, asked, group=["town"])


def test_spans_move_with_the_shots():
    one = Prompt("a", "Box F", " it", spans={"label": (4, 5)})
    shots = PromptSet("s", (Prompt("b", "x", " y"),))
    (moved,) = tasks.many_shot(PromptSet("p", (one,)), shots, count=1)
    first, last = moved.spans["label"]
    assert moved.prompt[first:last] == "F"


def test_a_chat_needs_a_template():
    with pytest.raises(WorkbenchError, match="no chat template"):
        tasks.chat(tasks.instructions(2), shipped.tokenizer())
    words = shipped.tokenizer()
    words.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %} <it>"
    (first, *_) = tasks.chat(tasks.instructions(2), words)
    assert first.prompt == f"<user> {tasks.instructions(2).prompts[0].prompt} <it>"


def chatting(content: str) -> Any:
    words = shipped.tokenizer()
    words.chat_template = (
        "{% for m in messages %}system: user . apple \n" + content + "{% endfor %} . {{ '\\n' }}"
    )
    return words


@pytest.mark.parametrize(
    "content", ["{{ m.content }}", "{{ m.content | trim }}", "<{{ m.role }}> {{ m.content }}"]
)
def test_spans_and_foils_go_into_the_chat(content):
    """A span holds the same words as before, also where the template has those words, too."""
    asked = Prompt("a", " user apple ball", " cup", (" hat", "pen"), spans={
        "who": (1, 5), "thing": (6, 11), "last": (12, 16),
    })  # fmt: skip
    (told,) = tasks.chat(PromptSet("p", (asked,)), chatting(content))
    assert (told.target, told.foils) == ("cup", ("hat", "pen"))
    for name, (a, b) in asked.spans.items():
        first, last = told.spans[name]
        assert told.prompt[first:last] == asked.prompt[a:b]
        assert first > told.prompt.index("apple") + 5  # not the template's own


def test_a_template_that_rewrites_the_message_leaves_no_span(caplog):
    asked = Prompt("a", "Apple", " cup", spans={"thing": (0, 5)})
    (told,) = tasks.chat(PromptSet("p", (asked,)), chatting("{{ m.content | lower }}"))
    assert told.spans == {}
    assert "1 of 1 prompts (the first is a)" in caplog.text


def test_answers_and_foils_of_a_chat_begin_at_the_same_place():
    """A foil that is the answer says nothing, and another is its own word's token."""
    words = chatting("{{ m.content }}")
    asked = Prompt("a", "the ball", " cup", (" cup", " hat"))
    (told,) = tasks.chat(PromptSet("p", (asked,)), words)
    (row,) = rows(words, [told], answers=True)
    right, wrong = (words(f"the {word}")["input_ids"][-1] for word in ("cup", "hat"))
    assert row.answer == (right,)
    assert row.foils == (wrong,)


def test_scrambled_words_are_those_of_the_texts_at_the_prompts_lengths():
    plain, texts = tasks.ledger(20, seed=1), tasks.narration(20, seed=1)
    found = tasks.scrambled(plain, texts, times=2)
    assert len({prompt.id for prompt in found}) == len(found) == 40
    known = {word for text in texts for word in text.text.split()}
    own = [prompt for prompt in plain for _ in range(2)]
    for made, prompt in zip(found, own, strict=True):
        assert len(made.prompt.split()) == len(prompt.prompt.split())
        assert set(made.prompt.split()) <= known
        assert made.target == prompt.target
    assert found.prompts[0].prompt != found.prompts[1].prompt
    assert found.fingerprint == tasks.scrambled(plain, texts, times=2).fingerprint
    assert found.fingerprint != tasks.scrambled(plain, texts, times=2, seed=1).fingerprint
    # A word is drawn as often as it stands in the texts.
    said = " ".join(text.text for text in texts).split()
    drawn = " ".join(one.prompt for one in tasks.scrambled(plain, texts, times=100)).split()
    assert drawn.count(".") / len(drawn) == pytest.approx(said.count(".") / len(said), abs=0.01)
    with pytest.raises(WorkbenchError, match="texts with words"):
        tasks.scrambled(plain, PromptSet("empty", ()))


def test_shuffled_answers_are_those_there_were_and_lead_nowhere():
    """Also those that stand in the prompt, whose spans move with them."""
    plain = tasks.boxes(200, seed=0, split="train", questions=3)
    other = tasks.shuffled(plain, seed=1)
    said = [
        [p.target.strip(), *(p.prompt[a:b] for name, (a, b) in p.spans.items() if "answer" in name)]
        for p in (*plain, *other)
    ]
    before, after = ([one for own in part for one in own] for part in (said[:200], said[200:]))
    assert len(before) == 600
    assert sorted(before) == sorted(after)
    assert sum(map(str.__eq__, before, after)) < 60  # of about 50 objects each comes back at times
    for prompt, new in zip(plain, other, strict=True):
        boxes = [p.prompt[slice(*p.spans["query box"])] for p in (prompt, new)]
        assert boxes[0] == boxes[1]
        assert new.prompt.split(" . ")[0] == prompt.prompt.split(" . ")[0]  # what is told first
        assert new.target.startswith(" ")
        assert new.foils == ()
    assert other == tasks.shuffled(plain, seed=1)
    assert other.texts != tasks.shuffled(plain, seed=2).texts


def test_answers_are_exchanged_within_one_wording():
    made = tasks.shuffled(tasks.facts(120, seed=0), seed=3)
    for own, new in zip(tasks.facts(120, seed=0), made, strict=True):
        kind = {p.target for p in tasks.facts(600, seed=0) if p.template == own.template}
        assert new.target in kind


def test_conversations_are_not_shuffled():
    chat = Prompt("1", "hello", " you", messages=({"role": "user", "content": "hello"},))
    with pytest.raises(WorkbenchError, match="found conversations in 'chat'"):
        tasks.shuffled(PromptSet("chat", (chat,)))


def test_in_context_answers_follow_the_relation():
    for prompt in tasks.in_context(40, seed=1, shots=3):
        pairs = RELATIONS[prompt.tags["relation"]]
        *told, asked = prompt.prompt.split("\n")
        assert len(told) == 3
        assert all(pairs[line.split(" -> ")[0]] == line.split(" -> ")[1] for line in told)
        assert prompt.target == f" {pairs[asked.removesuffix(' ->')]}"
        assert prompt.target not in prompt.foils


def test_english_sets_are_drawn_by_seed():
    for generate in (tasks.in_context, tasks.instructions, tasks.prose):
        assert generate(12, seed=3).fingerprint == generate(12, seed=3).fingerprint
        assert generate(12, seed=3).fingerprint != generate(12, seed=4).fingerprint
