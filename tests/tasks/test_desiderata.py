"""Each counterfactual target follows its definition, read back from the texts alone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.tasks import world
from workbench.tasks.batching import batch, rows
from workbench.tasks.desiderata import KINDS
from workbench.tasks.prompts import Prompt

SPANS = ("query box", "correct label", "correct object")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"count": 4},
    {"count": 5, "order": "label first", "seed": 3},
    {"count": 12, "split": "test"},
]


@pytest.fixture(scope="module")
def subwords():
    """A byte-level BPE tokenizer, as GPT-2's, that has some objects as one token and cuts others.

    Short of vocabulary, but with every label whole: " Q" and the like.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=470, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(tasks.boxes_prompts(300, seed=0).texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>")


def read(prompt: Prompt) -> tuple[list[str], list[str], str]:
    """The labels and objects in the order of their statements, and the label in the question."""
    first = re.findall(r"[Tt]he (\w+) is in Box (\w)", prompt.prompt)
    second = re.findall(r"Box (\w) holds the (\w+)", prompt.prompt)
    labels = [x for _, x in first] or [x for x, _ in second]
    objects = [o for o, _ in first] or [o for _, o in second]
    (query,) = re.findall(r"Box (\w) contains the$", prompt.prompt)
    assert len(labels) == len(objects) == int(prompt.tags["boxes"])
    return labels, objects, query


def by_definition(base: Prompt, source: Prompt) -> dict[str, str]:
    """The four answers of the base, and the source's."""
    labels, objects, own = read(base)
    other_labels, other_objects, query = read(source)
    return {
        "own": objects[labels.index(own)],
        "object value": other_objects[other_labels.index(query)],
        "box label": objects[labels.index(query)],
        "positional": objects[other_labels.index(query)],
        "reverse": objects[other_labels.index(own)],
    }


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_targets_follow_their_definitions(kind: str, options: dict[str, Any]) -> None:
    pairs = tasks.desiderata(kind, 60, **options)
    assert len(pairs) == 60
    for pair in pairs:
        answers = {k: f" {v}" for k, v in by_definition(pair.base, pair.source).items()}
        assert pair.target == answers[kind]
        assert dict(pair.rivals) == {k: answers[k] for k in KINDS if k != kind}
        assert pair.base.target == answers["own"]
        assert pair.source.target == answers["object value"]
        assert len(set(answers.values())) == 5
    assert pairs.kind == kind


@pytest.mark.parametrize("options", SETTINGS)
def test_pairs_share_labels_and_nothing_else(options: dict[str, Any]) -> None:
    order = options.get("order", "object first")
    for pair in tasks.desiderata("positional", 60, **options):
        labels, objects, own = read(pair.base)
        other_labels, other_objects, query = read(pair.source)
        assert own != query
        assert sorted(labels) == sorted(other_labels)
        assert not any(a == b for a, b in zip(labels, other_labels, strict=True))
        assert not set(objects) & set(other_objects)
        assert len(set(labels)) == len(set(objects)) == options.get("count", 7)
        assert pair.base.tags["order"] == pair.source.tags["order"] == order


def test_every_statement_is_asked_for() -> None:
    """Published pairs always asked the base for its first box; these do not."""
    pairs = tasks.desiderata("positional", 300, count=4)
    for prompts in (pairs.bases, pairs.sources):
        asked = [read(p)[0].index(read(p)[2]) for p in prompts]
        assert all(45 <= asked.count(i) <= 105 for i in range(4))


@pytest.mark.parametrize("order", world.BOX_STATEMENTS)
def test_statements_have_equal_lengths_and_spans_the_right_words(order: str) -> None:
    check_tokens(shipped.tokenizer(), order=order)


def test_subword_tokenizers_get_english_spacing_and_whole_words(subwords) -> None:
    single = [o for o in world.OBJECTS if len(subwords(f" {o}")["input_ids"]) == 1]
    assert 14 <= len(single) < len(world.OBJECTS)
    check_tokens(subwords, tokenizer=subwords, count=4)
    base = tasks.desiderata("box label", 1, count=4, tokenizer=subwords).bases.prompts[0]
    assert re.fullmatch(
        r"The \w+ is in Box \w(, the \w+ is in Box \w){3}\. Box \w contains the", base.prompt
    )


def check_tokens(words: Any, **options: Any) -> None:
    """Both prompts and the partner differ in labels and objects alone, a token each, all in place;
    every span is one token, and the right one."""
    pairs = tasks.desiderata("box label", 40, **options)
    partners = tasks.corrupt(pairs.bases, tokenizer=options.get("tokenizer"))
    blank = r"\b(" + "|".join((*world.OBJECTS, *world.LABELS)) + r")\b"
    own = rows(words, pairs.bases)
    for prompts in (pairs.bases, pairs.sources, partners):
        made = rows(words, prompts)
        for base, other, a, b in zip(own, made, pairs.bases, prompts, strict=True):
            assert re.sub(blank, "_", a.prompt) == re.sub(blank, "_", b.prompt)
            changed = [x != y for x, y in zip(base.ids, other.ids, strict=True)]
            count = 2 * int(a.tags["boxes"]) + 1
            assert sum(changed) == (0 if a is b else count)
        together = batch(made, range(len(made)), "cpu", 0)
        for name in SPANS:
            ids = together.ids.gather(1, together.index(name))[:, 0].tolist()
            said = [token.lstrip("Ġ") for token in words.convert_ids_to_tokens(ids)]
            assert said == [p.prompt[slice(*p.spans[name])] for p in prompts]
    for prompt in (*pairs.bases, *pairs.sources):
        labels, objects, query = read(prompt)
        said = {name: prompt.prompt[a:b] for name, (a, b) in prompt.spans.items()}
        thing = objects[labels.index(query)]
        assert said == dict(zip(SPANS, (query, query, thing), strict=True))
        assert prompt.spans["query box"][0] > prompt.prompt.rindex(objects[-1])
        assert prompt.spans["correct label"][1] < prompt.spans["query box"][0]


def test_seed_decides_and_kinds_share_their_pairs() -> None:
    drawn = {kind: tasks.desiderata(kind, 30, seed=5) for kind in KINDS}
    first = drawn["positional"]
    assert first == tasks.desiderata("positional", 30, seed=5)
    assert first.fingerprint == tasks.desiderata("positional", 30, seed=5).fingerprint
    assert first.fingerprint != tasks.desiderata("positional", 30, seed=6).fingerprint
    assert len({each.fingerprint for each in drawn.values()}) == 3
    for each in drawn.values():
        assert each.bases.fingerprint == first.bases.fingerprint
        assert each.sources.fingerprint == first.sources.fingerprint
    assert first.pairs[:10] == tasks.desiderata("positional", 10, seed=5).pairs


def test_both_prompts_are_of_one_split_and_boxes_knows_them() -> None:
    mixed = tasks.desiderata("positional", 80)
    assert {p.base.split for p in mixed} == {"train", "validation", "test"}
    texts: list[set[str]] = []
    for split in ("train", "validation", "test"):
        pairs = tasks.desiderata("positional", 40, split=split)
        assert {p.base.split for p in pairs} == {p.source.split for p in pairs} == {split}
        texts.append({*pairs.bases.texts, *pairs.sources.texts})
        assert all(p.source.split == split for p in mixed.select(split=split))
    assert sum(map(len, texts)) == len(set.union(*texts)) == 240
    # The very prompt that `boxes` would make, in all but the draw.
    one = tasks.desiderata("positional", 1, count=4).bases.prompts[0]
    alike = tasks.boxes(1, count=4, order="object first").prompts[0]
    assert (one.tags, one.template, [*one.spans]) == (alike.tags, alike.template, [*alike.spans])
    assert re.fullmatch(r"boxes-[0-9a-f]{16}", one.id)
    assert {f.strip() for f in one.foils} | {one.target.strip()} == set(read(one)[1])


def test_wanted_scores_the_counterfactual_answer() -> None:
    pairs = tasks.desiderata("object value", 20)
    for pair, prompt in zip(pairs, pairs.wanted, strict=True):
        assert (prompt.prompt, prompt.spans) == (pair.base.prompt, pair.base.spans)
        assert prompt.target == pair.target
        assert set(prompt.foils) == {pair.base.target, *pair.rivals.values()}
        assert prompt.target not in prompt.foils


@pytest.mark.parametrize("options", [{}, {"questions": 3}, {"count": 2}, {"count": 12}])
def test_corrupt_partners_hold_nothing_of_the_answer(options: dict[str, Any]) -> None:
    prompts = tasks.boxes(80, seed=1, **options)
    partners = tasks.corrupt(prompts, seed=4)
    words = shipped.tokenizer()
    for clean, other in zip(prompts, partners, strict=True):
        a, b = clean.prompt.split(), other.prompt.split()
        changed = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        drawn = [i for i, x in enumerate(a) if x in world.LABELS or x in world.OBJECTS]
        assert changed == drawn
        assert not {a[i] for i in drawn} & {b[i] for i in drawn}
        assert len(words(clean.prompt)["input_ids"]) == len(words(other.prompt)["input_ids"])
        said = {name: other.prompt[x:y] for name, (x, y) in other.spans.items()}
        assert said["query box"] == b[-3]
        assert b.count(b[-3]) == 1
        assert re.search(
            rf"he {said['correct object']} is in Box {said['correct label']} "
            rf"|Box {said['correct label']} holds the {said['correct object']} ",
            other.prompt,
        )
        own = len(clean.prompt[: clean.spans["correct label"][0]].split())
        away = len(other.prompt[: other.spans["correct label"][0]].split())
        assert own != away
        assert (other.target, other.foils) == (clean.target, clean.foils)
        assert clean.target.strip() not in b


def test_a_partner_depends_on_its_prompt_and_the_seed() -> None:
    prompts = tasks.boxes_prompts(20, seed=2)
    whole = tasks.corrupt(prompts, seed=1)
    alone = tasks.corrupt(replace(prompts, prompts=prompts.prompts[7:8]), seed=1)
    assert alone.prompts == whole.prompts[7:8]
    assert whole.fingerprint == tasks.corrupt(prompts, seed=1).fingerprint
    assert whole.fingerprint != tasks.corrupt(prompts, seed=2).fingerprint
    assert all(re.fullmatch(r"The \w+ is in Box \w(, .*){6}\. Box \w contains the", p.prompt)
               for p in whole)  # fmt: skip


def test_whole_words_leaves_out_what_the_tokenizer_cuts(subwords) -> None:
    prompts = tasks.boxes_prompts(120, seed=3, count=3)
    kept = tasks.whole_words(prompts, subwords)
    assert 0 < len(kept) < len(prompts)
    for p in prompts:
        _, objects, _ = read(p)
        whole = all(len(subwords(f" {o}")["input_ids"]) == 1 for o in objects)
        assert (p in kept.prompts) == whole
    tasks.corrupt(kept, tokenizer=subwords)
    with pytest.raises(WorkbenchError, match=r"not one token.*tasks\.whole_words"):
        tasks.corrupt(prompts, tokenizer=subwords)


def test_bad_requests_are_said() -> None:
    with pytest.raises(WorkbenchError, match="'colour'; use one of object value, box label, posi"):
        tasks.desiderata("colour", 3)
    with pytest.raises(WorkbenchError, match="order 'any'"):
        tasks.desiderata("positional", 3, order="any")
    with pytest.raises(WorkbenchError, match="split 'dev'"):
        tasks.desiderata("positional", 3, split="dev")  # pyright: ignore
    with pytest.raises(WorkbenchError, match="at least 1"):
        tasks.desiderata("positional", 0)
    for count in (3, 27):
        with pytest.raises(WorkbenchError, match=f"4 to 26 boxes .* count = {count}"):
            tasks.desiderata("positional", 3, count=count)
    # In English spacing the family's tokenizer joins a word and its comma.
    with pytest.raises(
        WorkbenchError, match="found 0 and 0; give None for the shipped family's tokenizer"
    ):
        tasks.desiderata("positional", 3, tokenizer=shipped.tokenizer())
    with pytest.raises(WorkbenchError, match="split 'dev'"):
        tasks.desiderata("positional", 3).select(split="dev")  # pyright: ignore
    for prompts in (tasks.moves(2), tasks.boxes(2, count=1)):
        with pytest.raises(WorkbenchError, match="not a question about one of several boxes"):
            tasks.corrupt(prompts)
    with pytest.raises(WorkbenchError, match="fewer boxes"):
        tasks.corrupt(tasks.boxes(1, count=13))
