"""Scores agree with a plain loop and greedy decoding, whatever the padding or batch size."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import copy
import math
import re
from types import SimpleNamespace

import pytest
import torch

from tests.tasks.conftest import llama
from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.tasks import forward
from workbench.tasks.continuation import goes_on
from workbench.tasks.prompts import Prompt


@pytest.fixture(scope="module")
def model():
    return llama(512)


def reference(model, tokenizer, p: Prompt) -> tuple[float, bool, int]:
    """log_probability, correct, tokens, one text at a time, prompt and target tokenised apart."""
    before = tokenizer(p.prompt)["input_ids"]
    own = tokenizer(p.target, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([before + own])).logits[0].log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(own) - 1)
    total = sum(logits[i, t].item() for i, t in zip(places, own, strict=True))
    return total, written(model, tokenizer, before, own), len(own)


def written(model, tokenizer, before: list[int], own: list[int]) -> bool:
    """Whether a greedy continuation is the target and not the beginning of a longer word."""
    made = model.generate(
        torch.tensor([before]), do_sample=False, max_new_tokens=len(own) + 1, pad_token_id=0
    )[0].tolist()[len(before) :]
    text = tokenizer.decode(made, skip_special_tokens=True)
    behind = r"(?![^\W_]|[.,]\d)" if tokenizer.decode(own)[-1].isdigit() else r"(?![^\W_])"
    end = behind if tokenizer.decode(own)[-1].isalnum() else ""
    return made[: len(own)] == own and bool(re.match(re.escape(tokenizer.decode(own)) + end, text))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_agree_with_a_plain_loop(model, subwords, side: str, batch_size: int) -> None:
    prompts = [*tasks.boxes_prompts(7, seed=1), *tasks.boxes_prompts(6, seed=2, count=3)]
    subwords.padding_side = side
    table = tasks.answers(model, subwords, prompts, batch_size=batch_size)
    assert list(table.id) == [p.id for p in prompts]
    assert table.tokens.max() > 1
    for row, p in zip(table.itertuples(), prompts, strict=True):
        total, right, count = reference(model, subwords, p)
        assert row.log_probability == pytest.approx(total, abs=1e-4)
        assert row.correct == right
        assert row.tokens == count


def test_correct_means_that_greedy_decoding_gives_the_target(model, subwords) -> None:
    prompts = []
    for i, p in enumerate(tasks.boxes_prompts(12, seed=3, count=3)):
        ids = torch.tensor([subwords(p.prompt)["input_ids"]])
        made = model.generate(ids, do_sample=False, max_new_tokens=2, pad_token_id=0)[0]
        said = subwords.decode(made[ids.shape[1] :])
        joined = subwords(p.prompt + said)["input_ids"]
        # Only where the text cuts into the very tokens that were generated.
        if said.startswith(" ") and joined == made.tolist():
            prompts.append(Prompt(f"p{i}", p.prompt, said))
        prompts.append(Prompt(f"q{i}", p.prompt, p.target))
    table = tasks.answers(model, subwords, prompts).set_index("id")
    assert table.correct.to_dict() == {p.id: reference(model, subwords, p)[1] for p in prompts}


def saying(words, *tokens: int):
    """A model that says these tokens, one after the other, whatever it reads."""
    model = llama(len(words))

    def forward(input_ids, **_):
        logits = torch.zeros(*input_ids.shape, len(words))
        for place, token in enumerate(tokens):
            logits[:, input_ids.shape[1] - len(tokens) + place, token] = 9.0
        return SimpleNamespace(logits=logits)

    model.forward = forward
    return model


@pytest.mark.parametrize(
    ("target", "then", "right"),
    [
        (" 9", "08", False), (" 9", " 08", True), (" 9", ".", True),
        (" 9", "th", False), (" Paris", "ian", False), (" Paris", ",", True),
        (" Paris", " is", True), (" (x)", "y", True), (" 3.1", "4", False), (" 9", "%", True),
        (" 9", "<|endoftext|>", True), (" é", "a", False), (" 北京", "a", True),
    ],
)  # fmt: skip
def test_the_beginning_of_a_longer_word_or_number_is_no_answer(
    target: str, then: str, right: bool, subwords
) -> None:
    """ "9" is not what is said where the model says "908"."""
    own, (first, *_) = subwords(target).input_ids, subwords(then).input_ids
    assert goes_on(subwords, own, first) is not right
    model = saying(subwords, *own, first)
    found = tasks.answers(model, subwords, [Prompt("a", "Say", target)]).iloc[0]
    assert found["correct"] == right
    assert found["first_correct"]


def test_a_decimal_goes_on_with_its_number_and_a_stop_does_not(subwords) -> None:
    words = copy.deepcopy(subwords)
    words.add_tokens([".5", ".x"])
    nine = words(" 9").input_ids
    more, other, stop = (words.convert_tokens_to_ids(token) for token in (".5", ".x", "."))
    assert goes_on(words, nine, more)
    assert not goes_on(words, nine, other)
    assert not goes_on(words, nine, stop)


def test_a_character_that_is_cut_in_two_goes_on(subwords) -> None:
    ids = subwords("é").input_ids
    assert len(ids) == 2
    assert goes_on(subwords, ids[:1], ids[1])


def test_logit_difference_is_against_the_best_foil(model) -> None:
    words = shipped.tokenizer()
    p = tasks.boxes(1, seed=0, count=4).prompts[0]
    row = tasks.answers(model, words, [p]).iloc[0]
    with torch.inference_mode():
        logits = model(torch.tensor([words(p.prompt)["input_ids"]])).logits[0, -1]
    ids = [words.convert_tokens_to_ids(t.strip()) for t in (p.target, *p.foils)]
    expected = (logits[ids[0]] - logits[ids[1:]].max()).item()
    assert row.logit_difference == pytest.approx(expected, abs=1e-4)
    for foils in ((), (p.target,)):
        bare = tasks.answers(model, words, [Prompt("x", p.prompt, p.target, foils)])
        assert math.isnan(bare.logit_difference[0])
    same = tasks.answers(model, words, [Prompt("x", p.prompt, p.target, (*p.foils, p.target))])
    assert same.logit_difference[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_text_loss_of_long_texts_is_the_loss_of_their_pieces(model, batch_size: int) -> None:
    words = shipped.tokenizer()
    texts = tasks.narration(6, seed=0).texts
    whole = tasks.text_loss(model, words, texts, batch_size=batch_size)
    cut = tasks.text_loss(model, words, texts, batch_size=batch_size, max_length=9)
    assert (whole.tokens == cut.tokens).all()
    for text, row, piece in zip(texts, whole.itertuples(), cut.itertuples(), strict=True):
        ids = torch.tensor([words(text)["input_ids"]])
        with torch.inference_mode():
            loss = model(ids, labels=ids).loss.item()
            spans = [ids[:, b : b + 9] for b in range(0, ids.shape[1] - 1, 8)]
            sums = [model(s, labels=s).loss.item() * (s.shape[1] - 1) for s in spans]
        assert row.loss == pytest.approx(loss, abs=1e-4)
        assert row.tokens == ids.shape[1] - 1
        assert piece.loss == pytest.approx(sum(sums) / row.tokens, abs=1e-4)


def test_the_mode_comes_back_and_no_gradient_is_left(model) -> None:
    words = shipped.tokenizer()
    model.train()
    model.model.layers[0].eval()
    before = [m.training for m in model.modules()]
    tasks.answers(model, words, tasks.boxes(3, seed=0))
    assert [m.training for m in model.modules()] == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model.train()


def test_a_batch_that_does_not_fit_is_halved(model, monkeypatch, capsys) -> None:
    words, prompts = shipped.tokenizer(), tasks.boxes(9, seed=0)
    expected = tasks.answers(model, words, prompts)
    real = forward._forward

    def tight(model, encoded, device, fill, rows):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, encoded, device, fill, rows)

    monkeypatch.setattr(forward, "_forward", tight)
    table = tasks.answers(model, words, prompts, batch_size=8)
    assert table.log_probability.to_numpy() == pytest.approx(
        expected.log_probability.to_numpy(), abs=1e-4
    )
    assert capsys.readouterr().err.count("halved") == 2


def test_errors_are_said(model) -> None:
    words = shipped.tokenizer()
    with pytest.raises(WorkbenchError, match="batch_size"):
        tasks.answers(model, words, tasks.boxes(2, seed=0), batch_size=0)
    with pytest.raises(WorkbenchError, match="max_length"):
        tasks.text_loss(model, words, ["The apple"], max_length=1)
