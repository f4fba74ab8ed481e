"""What is written against transformers' own loop, one text at a time; pass@k by counting."""

import itertools
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import tiny
from tests.tasks.conftest import llama
from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.tasks.generation import drawn, generations, nucleus, pass_at
from workbench.tasks.kept import Kept
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.scorers import GSM8K, Generation, as_data, from_data, scorer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return llama(512)


def asked(n: int = 5) -> list[Prompt]:
    long = tasks.boxes_prompts(n, seed=1, count=3)
    return [Prompt(p.id, p.prompt[-20 * (i + 1) :], p.target) for i, p in enumerate(long)]


def alone(model, tokenizer, prompt: Prompt, length: int) -> str:
    """One text, without filling and with transformers' own settings."""
    ids = torch.tensor([tokenizer(prompt.prompt)["input_ids"]])
    made = model.generate(
        ids, do_sample=False, max_new_tokens=length, pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
    )[0, ids.shape[1] :].tolist()  # fmt: skip
    end = tokenizer.eos_token_id
    return tokenizer.decode(made[: made.index(end)] if end in made else made)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_rows_of_unequal_length_are_written_as_each_alone(model, subwords, batch_size):
    prompts = asked()
    made = generations(
        model, subwords, prompts, Generation(length=12), batch_size=batch_size, device=CPU
    )
    assert [texts[0] for texts in made] == [alone(model, subwords, p, 12) for p in prompts]


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_positions_of_filled_rows_are_their_own(kind):
    """Learned and rotary positions, in models that are told where a row begins."""
    model = tiny(kind).eval()
    words = SimpleNamespace(
        bos_token_id=1, eos_token_id=2, pad_token_id=0, eos_token="</s>", model_max_length=32,
        decode=lambda ids, **_: " ".join(map(str, ids)),
    )  # fmt: skip

    class Words:
        def __getattr__(self, name):
            return getattr(words, name)

        def __call__(self, text, **_):
            return {"input_ids": [3 + ord(c) % 40 for c in text]}

    prompts = [Prompt(f"{n}", "abcdefgh"[:n], "x") for n in (2, 5, 8)]
    together, apart = (
        generations(model, Words(), prompts, Generation(length=6), batch_size=size, device=CPU)
        for size in (3, 1)
    )
    assert together == apart


def test_a_text_ends_before_the_first_stop(model, subwords):
    (prompt, *_) = asked()
    whole = alone(model, subwords, prompt, 12)
    stop = whole[4:6]
    ended = generations(
        model, subwords, [prompt], Generation(length=12, stop=(stop, "never said")),
        batch_size=1, device=CPU,
    )[0][0]  # fmt: skip
    assert ended == whole[: whole.index(stop)]


def test_draws_depend_on_the_prompt_and_the_seed_alone(model, subwords):
    prompts = asked(4)
    asks = Generation(length=8, samples=3, temperature=1.0, seed=5)
    run = {"device": CPU}
    whole = generations(model, subwords, prompts, asks, batch_size=32, **run)
    assert generations(model, subwords, prompts, asks, batch_size=2, **run) == whole
    assert generations(model, subwords, prompts[2:], asks, batch_size=32, **run) == whole[2:]
    other = generations(
        model, subwords, prompts, Generation(length=8, samples=3, temperature=1.0, seed=6),
        batch_size=32, **run,
    )  # fmt: skip
    assert other != whole
    assert len({*whole[0]}) > 1  # samples differ


def test_draws_follow_the_probabilities():
    """20,000 evenly spaced numbers fall on every token as often as it is probable."""
    scores = torch.tensor([[1.0, 0.0, -1.0, 2.0]]).expand(20_000, -1)
    chances = torch.arange(20_000) / 20_000
    counts = torch.bincount(drawn(scores, chances), minlength=4) / 20_000
    assert counts.numpy() == pytest.approx(scores[0].softmax(-1).numpy(), abs=1e-4)


def test_the_nucleus_by_hand():
    """Probabilities .5, .3, .15, .05: .8 takes two, .81 three, .5 one; 1 all."""
    scores = torch.tensor([[0.3, 0.05, 0.5, 0.15]]).log()
    for top_p, kept in ((0.5, {2}), (0.79, {0, 2}), (0.81, {0, 2, 3}), (1.0, {0, 1, 2, 3})):
        assert set(nucleus(scores, top_p).isfinite()[0].nonzero()[:, 0].tolist()) == kept


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, data):
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    results = [i < right for i in range(n)]
    subsets = list(itertools.combinations(results, k))
    assert pass_at(n, right, k) == pytest.approx(np.mean([any(one) for one in subsets]))


def test_scores_of_generations(model, subwords):
    """Right where what was written holds the target; a share of samples; pass@k of them."""
    prompts = asked(3)
    written = [alone(model, subwords, p, 6) for p in prompts]
    made = [
        Prompt(p.id, p.prompt, text if i else " surely not this")
        for i, (p, text) in enumerate(zip(prompts, written, strict=True))
    ]
    one = PromptSet("w", tuple(made), scorer=Generation(length=6))
    table = tasks.answers(model, subwords, one)
    assert table["correct"].tolist() == [0.0, 1.0, 1.0]
    assert table["answer"].tolist() == written
    plain = tasks.answers(model, subwords, list(one))
    assert table["log_probability"].to_numpy() == pytest.approx(plain["log_probability"])
    sampled = PromptSet(
        "s", tuple(made), scorer=Generation(length=6, samples=4, temperature=0.01, passes=(1, 2))
    )
    table = tasks.answers(model, subwords, sampled)
    assert table["correct"].tolist() == [0.0, 1.0, 1.0]  # so cold that all are greedy
    assert table["right"].tolist() == [0, 4, 4]
    assert table["pass@1"].tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "target", "right"),
    [
        (" She earns 9 * 2 = $18 a day.\n#### 18", " 16-3-4 = 9\n#### 18", True),
        (" So 18.0", "#### 18", True), (" So 18.", "#### 18", True), ("$1,800", "#### 1800", True),
        (" 18 eggs, of which 9", "#### 18", False), (" none", "#### 18", False),
        (" 118", "#### 18", False), (" -18", "#### 18", False), (" 0.5", "#### .5", True),
    ],
)  # fmt: skip
def test_the_last_number_counts(text: str, target: str, right: bool):
    assert GSM8K.right(text, target) is right


@pytest.mark.parametrize(
    ("asks", "text", "target", "right"),
    [
        (Generation(), " Paris", "paris", True),
        (Generation(alike=()), " Paris", " paris", False),
        (Generation(alike=("punctuation", "case")), "Paris!", "paris", True),
        (Generation(extract=r"<a>(.*?)</a>", pick=0), "<a>1</a><a>2</a>", "<a>1</a>", True),
        (Generation(extract=r"<a>(.*?)</a>", pick=1), "<a>1</a><a>2</a>", "<a>1</a>", False),
        (Generation(extract=r"<a>(.*?)</a>"), "no tag", "no tag", False),
        (Generation(extract=lambda text: text[:1]), "yes", "yonder", True),
        (Generation(extract=r"(\d+)|([a-z]+)", pick=0), "7 b", "7", True),
        (Generation(extract=r"answer is (\w+)"), "So the answer is Paris.", " paris", True),
        (Generation(extract=r"answer is (\w+)"), "So the answer is Rome.", " Paris", False),
        (Generation(extract=r"answer is (\w+)"), "Paris", " Paris", False),
        (Generation(extract=r"\w+", pick=1, alike=()), "is 18", " 18", True),
    ],
)  # fmt: skip
def test_what_counts_of_a_text(asks: Generation, text: str, target: str, right: bool):
    assert asks.right(text, target) is right


def test_what_was_written_is_found_again(model, subwords, monkeypatch):
    """A second call writes nothing; one that was cut off writes what is missing."""
    prompts, asks = asked(4), Generation(length=5)
    kept = Kept("a test", id(prompts))
    run = {"batch_size": 2, "device": CPU, "kept": kept}
    first = generations(model, subwords, prompts[:3], asks, **run)
    calls = []
    real = type(model).generate

    def counted(self, input_ids, **more):
        calls.append(len(input_ids))
        return real(self, input_ids, **more)

    monkeypatch.setattr(type(model), "generate", counted)
    assert generations(model, subwords, prompts[:3], asks, **run) == first
    assert calls == []
    with kept.place.open("a") as file:
        file.write('{"name": "cut o')  # a line that never ended
    again = generations(model, subwords, prompts, asks, **run)
    assert again[:3] == first
    assert sum(calls) == 1
    longer = generations(model, subwords, prompts, Generation(length=6), **run)
    assert sum(calls) == 5  # another length is another question
    assert all(b[0].startswith(a[0]) for a, b in zip(again, longer, strict=True))


def test_a_prompt_without_room_is_refused_by_name(model, subwords):
    with pytest.raises(WorkbenchError, match="places for 128; shorten it"):
        generations(model, subwords, asked(1), Generation(length=127), batch_size=1, device=CPU)


def test_a_model_without_places_has_room(model, subwords, monkeypatch):
    monkeypatch.setattr(model.config, "max_position_embeddings", 0)
    generations(model, subwords, asked(1), Generation(length=2), batch_size=1, device=CPU)


def test_the_model_keeps_its_own_settings(model, subwords):
    before = model.generation_config
    generations(model, subwords, asked(1), Generation(length=2), batch_size=1, device=CPU)
    assert model.generation_config is before


def test_scorers_as_data_and_as_typed():
    for one in (GSM8K, tasks.Choices("byte"), tasks.Loss(), Generation(stop=("a", "b"), length=3)):
        assert from_data(as_data(one)) == one
    assert scorer("choices by=byte") == tasks.Choices("byte")
    assert scorer('generation length=64 stop="Question:|\\n" extract="#### (\\d+)" samples=2 '
                  "temperature=0.5 passes=1|2") == Generation(
        length=64, stop=("Question:", "\n"), extract=r"#### (\d+)", samples=2, temperature=0.5,
        passes=(1, 2),
    )  # fmt: skip
    assert scorer("gsm8k") == GSM8K


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("multiple", "Expected a scorer of continuation, choices, generation, loss or gsm8k"),
        ("choices by=token", "Expected choices by sum, byte, unconditional, found 'token'"),
        ("generation length=many", "Expected a number for length, found 'many'"),
        ("generation size=3", "The scorer generation has no setting 'size'"),
        ("generation samples=5", "5 samples at temperature 0 are all the same"),
        ('generation extract="("', "is not a regular expression"),
        ("generation passes=3", "Expected passes of 1 to 1"),
        ("generation length", "Expected NAME=VALUE"),
        ('generation stop="a', "cannot be read"),
    ],
)
def test_a_scorer_that_makes_no_sense_is_refused(typed: str, said: str):
    with pytest.raises(WorkbenchError, match=said.replace("(", r"\(")):
        scorer(typed)


def test_sampling_probabilities_of_a_tiny_vocabulary():
    """A model that knows one distribution writes its tokens as often as it says."""
    model = llama(8)
    chances = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.3, 0.2, 0.0, 0.0])

    def forward(input_ids, **_):
        logits = chances.log().clamp(min=-1e4).expand(*input_ids.shape, 8)
        return SimpleNamespace(logits=logits, past_key_values=None)

    from transformers.modeling_outputs import CausalLMOutputWithPast

    model.forward = lambda input_ids, **more: CausalLMOutputWithPast(
        logits=forward(input_ids).logits
    )

    class Words:
        bos_token_id = eos_token_id = None
        pad_token_id, eos_token, model_max_length = 0, None, 64

        def __call__(self, text, **_):
            return {"input_ids": [3, 4]}

        def decode(self, ids, **_):
            return " ".join(map(str, ids))

    asks = Generation(length=1, samples=3000, temperature=1.0)
    ((*texts,),) = generations(model, Words(), [Prompt("a", "x", "y")], asks, batch_size=500,
                               device=CPU)  # fmt: skip
    share = [texts.count(str(token)) / 3000 for token in (3, 4, 5)]
    assert share == pytest.approx([0.5, 0.3, 0.2], abs=4 * math.sqrt(0.25 / 3000))


def first(count: int, text: str) -> str:
    return text[:count]


class First:
    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, text: str) -> str:
        return text[: self.count]

    def method(self, text: str) -> str:
        return self(text)


def typed(count: int):
    """A function without a source, as one that was typed at a prompt."""
    made: dict = {}
    exec(f"def found(text): return text[:{count}]", made)
    return made["found"]


@pytest.mark.parametrize(
    "made",
    [
        lambda count: lambda text: text[:count],
        lambda count: lambda text, most=count: text[:most],
        lambda count: partial(first, count),
        First,
        lambda count: First(count).method,
        typed,
    ],
    ids=["closure", "default", "partial", "object", "method", "typed"],
)
def test_functions_that_find_other_things_are_other_scorers(made):
    """What a side answered is kept by the scorer, so that one must not stand for another."""
    one, again, other = (as_data(Generation(extract=made(count))) for count in (1, 1, 2))
    assert one == again != other


def test_a_function_of_python_itself_finds_an_answer():
    prompts = PromptSet("p", (Prompt("1", "a", "b"),), scorer=Generation(extract=str.strip))
    other = replace(prompts, scorer=Generation(extract=str.lower))
    assert prompts.fingerprint != other.fingerprint


def test_a_function_that_calls_itself_is_named():
    def made():
        def found(text: str) -> str:
            return text if len(text) < 2 else found(text[1:])

        return found

    assert as_data(Generation(extract=made())) == as_data(Generation(extract=made()))
