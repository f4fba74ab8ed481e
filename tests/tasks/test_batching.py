"""Rows, positions and spans of prompt batches, by hand."""

from __future__ import annotations

import pytest
import torch

from tests.calls import write_pair
from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.tasks import batching
from workbench.tasks.batching import batch, in_batches, read_as, rows
from workbench.tasks.prompts import Prompt

SHORT = Prompt("a", "the apple is in Box F", " .", spans={"label": (20, 21), "object": (0, 9)})
LONG = Prompt("b", "the book and the cup", " .", spans={"object": (0, 8)})


def test_positions_count_from_each_rows_own_end():
    words = shipped.tokenizer()
    made = batch(rows(words, [SHORT, LONG]), [0, 1], "cpu", 0)
    assert made.mask.sum(1).tolist() == [7, 6]
    assert made.last.tolist() == [6, 5]
    assert made.index(-1).tolist() == [[6], [5]]
    assert made.index(-2).tolist() == [[5], [4]]
    assert made.index(1).tolist() == [[1], [1]]
    assert made.index("object").tolist() == [[1, 2], [1, 2]]
    last = made.ids[torch.arange(2), made.last].tolist()
    assert words.convert_ids_to_tokens(last) == ["F", "cup"]


def test_places_that_are_not_there():
    made = batch(rows(shipped.tokenizer(), [SHORT, LONG]), [0, 1], "cpu", 0)
    for position, said in (("label", "'b' has no span 'label'"), (-7, "outside"), (6, "outside")):
        with pytest.raises(WorkbenchError, match=said):
            made.index(position)


def test_plain_texts_are_run_whole():
    (row,) = rows(shipped.tokenizer(), ["the apple"])
    assert len(row.ids) == 3
    with pytest.raises(WorkbenchError, match="found no prompt"):
        rows(shipped.tokenizer(), [])


@pytest.mark.parametrize("room", [1, 2, 3, 8])
def test_every_place_comes_once_however_small_the_memory(room: int):
    def run(places: list[int]) -> list[int]:
        if len(places) > room:
            raise RuntimeError("not enough memory")
        return places

    done = [place for _, made in in_batches([5, 3, 9, 1, 7], 4, run) for place in made]
    assert done == [3, 1, 0, 4, 2]


def test_other_errors_are_not_swallowed():
    def run(places: list[int]) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches([1, 2], 2, run))


def test_unknown_words_are_told_once(capsys):
    words = shipped.tokenizer()
    strange = [Prompt(str(i), f"inventory : {i} zyx", " coins") for i in range(3)]
    plain = [Prompt("p", "inventory : 9", " coins")]
    for _ in range(2):
        rows(words, [*strange, *plain])
    rows(words, plain)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "3 of 4 prompts contain words that the tokenizer does not know" in told[0]


def told(words, prompts: list[Prompt], capsys) -> str:
    batching._say.cache_clear()
    rows(words, prompts)
    return capsys.readouterr().err


def test_what_is_odd_about_prompts_is_said_before_any_run(capsys):
    words = shipped.tokenizer()
    plain = [Prompt("a", "Box F contains the", " apple"), Prompt("b", "In Box G is the", " book")]
    assert told(words, plain, capsys) == ""
    glued = [plain[0], Prompt("c", "Box F contains the", "apple")]
    assert "1 of 2 prompts have an answer that continues" in told(words, glued, capsys)
    strange = [Prompt("d", "Box F contains zzz the", " apple"), plain[1]]
    assert "(the first is 'd')" in told(words, strange, capsys)
    twice = [Prompt("e", f"{words.bos_token}Box F contains the", " apple")]
    if words("x").input_ids[0] == words.bos_token_id:
        assert "begin with two" in told(words, twice, capsys)


def test_a_text_that_is_too_long_for_the_model_is_refused_by_name(tmp_path):
    """Also by its checkpoint's tokenizer, which knows the model's places."""
    pair = write_pair(tmp_path)
    words = pair.base.tokenizer()
    assert words.model_max_length == 128
    long = Prompt("wordy", "apple " * 200 + "the", " apple")
    with pytest.raises(WorkbenchError, match=r"'wordy' has 202 tokens, but the .* 128"):
        rows(words, [long])
    with pytest.raises(WorkbenchError, match="'wordy' has 203 tokens"):
        tasks.answers(pair.base.load(), words, [long])


def test_a_prompt_is_shown_as_it_is_cut():
    words = shipped.tokenizer()
    (prompt,) = tasks.boxes(1, seed=3, count=3)
    shown = read_as(words, prompt)
    asked, _, answer = shown.partition(" -> ")
    assert answer == prompt.target.strip()
    assert asked.split("|")[-1] == prompt.prompt.split()[-1]
    assert len(asked.split("|")) == len(words(prompt.prompt).input_ids)
