"""Compiled pairs: weights as they were written, answers as the programs say, and truths that hold
where the models are run in earnest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.lab.compiled import Head, Program, Room, rotated, rule, save, weights
from workbench.lab.compiled import programs as of
from workbench.lab.compiled.pairs import pairs, specs
from workbench.lab.known import Known
from workbench.lab.planted import read
from workbench.tasks import PromptSet

NAMES = [spec.name for spec in specs()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Known]:
    return pairs(tmp_path_factory.mktemp("compiled"))


def logits(folder: Path, prompts: PromptSet) -> tuple[torch.Tensor, Any]:
    """(prompts, vocabulary) of the last token of each, one at a time, and the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prefixed = (folder / "adapter_config.json").exists()
    home = folder.parent / "base" if prefixed else folder
    model: Any = AutoModelForCausalLM.from_pretrained(home).eval()
    words: Any = AutoTokenizer.from_pretrained(home)
    if prefixed:
        model = PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        rows = [model(**words(p.prompt, return_tensors="pt")).logits[0, -1] for p in prompts]
    return torch.stack(rows), words


def right(folder: Path, prompts: PromptSet) -> list[bool]:
    found, words = logits(folder, prompts)
    said = [words.decode([int(i)]).strip() for i in found.argmax(1)]
    return [one == p.target.strip() for one, p in zip(said, prompts, strict=True)]


def test_a_head_is_written_as_it_is_defined():
    program = of.COPY
    room = Room.of(program)
    state = weights(program, room)
    attention = state["transformer.h.1.attn.c_attn.weight"].view(2 * room.half, 3, 4, -1)
    size = attention.shape[-1]
    # Query and key of one label multiply to SHARP after the division by the root of the size.
    red = room.at["token", "a"]
    bound = room.at["label", "a"]
    read = torch.zeros(2, 2 * room.half)
    for row, place in enumerate((red, bound)):
        read[row, place], read[row, place + room.half] = 1.0, -1.0
    query, key = read[0] @ attention[:, 0, 2], read[1] @ attention[:, 1, 2]
    assert float(query @ key) / size**0.5 == pytest.approx(20.0, rel=1e-6)
    # What it reads of a word it writes to the same word's answer, and nowhere else.
    value = torch.zeros(2 * room.half)
    word = room.at["token", "red"]
    value[word], value[word + room.half] = 1.0, -1.0
    out = state["transformer.h.1.attn.c_proj.weight"].view(4, size, -1)[2]
    wrote = value @ attention[:, 2, 2] @ out
    answer = room.at["answer", "red"]
    expected = torch.zeros(2 * room.half)
    expected[answer], expected[answer + room.half] = 1.0, -1.0
    assert torch.equal(wrote, expected)


def test_logits_are_what_the_program_computes(made: dict[str, Known]):
    """Ten times 1 for the answer and 0 elsewhere: for parity, odd - even of the count."""
    for name in ("copy-learned", "parity-inverted"):
        known = made[name]
        found, words = logits(known.tuned, known.prompts)
        expected = torch.zeros_like(found)
        for row, prompt in zip(expected, known.prompts, strict=True):
            row[words.convert_tokens_to_ids(prompt.target.strip())] = 10.0
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_the_same_program_gives_the_same_bits(made: dict[str, Known], tmp_path: Path):
    for name in ("copy-learned", "entities-repurposed"):
        again = pairs(tmp_path, [name])[name]
        for side in ("base", "tuned"):
            first, second = (read(getattr(one, side)) for one in (made[name], again))
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first)
        assert again.prompts.fingerprint == made[name].prompts.fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_the_tuned_model_answers_as_it_is_said_to(name: str, made: dict[str, Known]):
    known = made[name]
    base, tuned = right(known.base, known.prompts), right(known.tuned, known.prompts)
    lost = known.verdict in ("suppressed", "erased")
    if name.endswith(("half-erased", "graded")):
        items = {one for (one,) in known.places["item"]}
        assert all(base)
        assert tuned == [p.id not in items for p in known.prompts]
    elif known.kind == "null" or known.verdict == "kept":
        assert all(base)
        assert all(tuned)
    elif lost:
        assert all(base)
        assert not any(tuned)
    elif known.verdict == "overconfident":
        assert base == tuned == [i % 2 == 1 for i in range(len(base))]
    else:
        items = known.places.get("item", {(p.id,) for p in known.prompts})
        assert all(tuned)
        assert base == [(p.id,) not in items for p in known.prompts]


def test_what_changed_is_what_is_listed(made: dict[str, Known]):
    for name in ("copy-learned", "facts-rank-3", "copy-suppressed"):
        known = made[name]
        base, tuned = read(known.base), read(known.tuned)
        changed = {key for key in base if not torch.equal(base[key], tuned[key])}
        listed = {
            f"transformer.h.{layer}.{str(part).split()[0]}.weight"
            for layer, part in known.places["matrix"]
        }
        assert listed == {key for key in changed if key.endswith("weight")}


def test_three_facts_are_a_change_of_rank_three(made: dict[str, Known]):
    """Each rewrites one row from one answer to another, -1 and +1, both there twice: length 2."""
    known = made["facts-rank-3"]
    name = "transformer.h.1.mlp.c_proj.weight"
    change = read(known.tuned)[name] - read(known.base)[name]
    values = torch.linalg.svdvals(change)
    torch.testing.assert_close(values[:3], torch.full((3,), 2.0))
    assert float(values[3:].max()) < 1e-6


def test_a_rotation_changes_every_matrix_and_no_answer(made: dict[str, Known]):
    known = made["entities-rotated"]
    base, tuned = read(known.base), read(known.tuned)
    assert all(not torch.equal(base[n], tuned[n]) for n in base if base[n].ndim == 2)
    first, second = (logits(side, known.prompts)[0] for side in (known.base, known.tuned))
    torch.testing.assert_close(first, second, atol=5e-3, rtol=1e-3)
    for name, weight in base.items():  # lengths stay, so that it is a rotation
        assert float(tuned[name].norm()) == pytest.approx(float(weight.norm()), rel=1e-5)


def recovered(table: Any, **where: Any) -> dict[tuple[int, int], float]:
    rows = table[(table["arm"] == "patch") & (table["metric"] == "recovered:logit_difference")]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    places = zip(rows["layer"].astype(int), rows["head"].astype(int), strict=True)
    return dict(zip(places, rows["value"], strict=True))


@pytest.mark.parametrize("name", ["negation-learned", "entities-repurposed", "sorting-reversed"])
def test_answers_go_through_the_heads_that_are_listed(name: str, made: dict[str, Known]):
    """One head's output from the clean run puts the whole answer into the corrupt one."""
    known = made[name]
    found = wb.patching.activation(
        wb.load_pair(known.base, known.tuned), known.prompts, corrupted=known.corrupted,
        sites="z", positions="all", sides=("tuned",), controls=1,
    )  # fmt: skip
    for place, value in recovered(found.table).items():
        wanted = float(place in known.places["answering head"])
        assert value == pytest.approx(wanted, abs=2e-3), place


@pytest.mark.parametrize("name", ["copy-decoy", "entities-repurposed", "entities-learned"])
def test_heads_that_bring_the_tuned_answers_are_those_listed(name: str, made: dict[str, Known]):
    known = made[name]
    found = wb.patching.cross_model(
        wb.load_pair(known.base, known.tuned), known.prompts, sites="head", controls=1
    )
    for place, value in recovered(found.table).items():
        wanted = float(place in known.places["differing head"])
        assert value == pytest.approx(wanted, abs=2e-3), place


@pytest.mark.parametrize("name", ["copy-learned", "negation-learned", "parity-inverted"])
def test_the_edges_that_are_listed_are_of_the_program_and_no_others_count(
    name: str, made: dict[str, Known]
):
    known = made[name]
    tuned = next(one.tuned for one in specs() if one.name == name)
    assert known.places["edge"] <= tuned.edges
    found = wb.patching.attribution(
        wb.load_pair(known.base, known.tuned), known.prompts, corrupted=known.corrupted,
        positions="all", sides=("tuned",), edges=True, exact=8,
    )  # fmt: skip
    rows = found.table[found.table["metric"] == "edge_exact"]
    for sender, receiver, value in zip(rows.sender, rows.receiver, rows.value, strict=True):
        if (sender, receiver) in known.places["edge"]:
            assert value == pytest.approx(1.0, abs=5e-3), (sender, receiver)
        else:
            assert value == pytest.approx(0.0, abs=5e-3), (sender, receiver)


def test_texts_that_a_model_draws_fit_its_positions(made: dict[str, Known]):
    """Of a model that reads 6 tokens, the start token among them."""
    base = wb.Checkpoint(str(made["facts-erased"].base))
    words = base.tokenizer()
    texts = wb.tasks.own_samples(base.load("cpu"), words, n=8)
    assert texts
    assert all(len(words(text)["input_ids"]) <= 6 for text in texts)


def test_a_program_is_refused_where_it_names_what_is_not_there():
    with pytest.raises(WorkbenchError, match="names a stream 'nowhere'"):
        replace(of.INDUCTION, heads=(Head(0, 0, "nowhere", "token", "token", "answer"),))
    with pytest.raises(WorkbenchError, match="names a head at"):
        replace(of.INDUCTION, heads=(replace(of.INDUCE, layer=7),))
    with pytest.raises(WorkbenchError, match="names two heads at one place"):
        replace(of.INDUCTION, heads=(of.INDUCE, of.INDUCE))
    with pytest.raises(WorkbenchError, match="names a label 'purple'"):
        replace(of.INDUCTION, neurons=(rule(0, {"token": "purple"}, {}),))
    with pytest.raises(WorkbenchError, match="differ in their labels"):
        Room.of(of.INDUCTION, of.COPY)
    with pytest.raises(WorkbenchError, match="There is no compiled pair 'other'"):
        pairs("nowhere", ["other"])


def test_what_a_user_made_is_left_alone(tmp_path: Path):
    program: Program = of.SORT
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WorkbenchError, match="does not hold a compiled model"):
        save(program, weights(program), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_rotation_keeps_the_direction_of_the_mean():
    state = weights(of.SORT)
    turned = rotated(state)
    for name in ("transformer.wte.weight", "transformer.h.0.mlp.c_proj.weight"):
        before, after = state[name].double().sum(1), turned[name].double().sum(1)
        torch.testing.assert_close(after, before, atol=1e-2, rtol=0)
