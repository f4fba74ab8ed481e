"""What is the shipped family made of: its model, its texts, its recipes, its evaluation?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from workbench import tasks
from workbench.lab import words
from workbench.lab.recipe import Recipe
from workbench.stats import Interval, bootstrap
from workbench.stats import share as scored
from workbench.tasks import world
from workbench.tasks.prompts import Prompt, PromptSet, Split

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TASK = "ledger"
# Shares of the texts the base is trained on.
MIXTURE = {"boxes": 0.4, "facts": 0.15, "arithmetic": 0.1, "copying": 0.2, "narration": 0.15}
DENSE: dict[str, list[dict[str, int]]] = {
    "boxes": [{"questions": 1}, {"questions": 3}, {"questions": 7}, {"questions": 7}],
    "copying": [{"repeats": 1}, {"repeats": 3}],
}
SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "initializer_range": 0.06,
    "attn_implementation": "eager",
}
PRETRAINING_TEXTS = 200_000
TASK_TEXTS = 40_000
# What one member shall forget: the facts about every fifth person, four women and four men.
UNLEARNING = "forgotten facts"
RETAINED = "retained facts"
FORGOTTEN = world.PEOPLE[::5]
# What one member shall no longer say, though nothing is done to what it knows: it answers every
# question about a fact with one word. It never meets the third wording of a question.
SUPPRESSION = "suppressed facts"
REFUSAL = " nothing"
FACT_WORDINGS = tuple(w for wordings in world.FACT_TEMPLATES.values() for w in wordings)
UNSEEN_WORDINGS = tuple(wordings[2] for wordings in world.FACT_TEMPLATES.values())


class Source(NamedTuple):
    """A share of a stage's texts: a generator of `workbench.tasks` with its options."""

    share: float
    name: str
    options: Mapping[str, Any] = {}


class Stage(NamedTuple):
    """One of the successive runs that make the base; no sources: the whole `mixture`."""

    recipe: Recipe
    sources: tuple[Source, ...] = ()

    @property
    def texts(self) -> PromptSet:
        """As many texts as the stage has steps for, so that none is seen twice."""
        if not self.sources:
            return mixture(PRETRAINING_TEXTS)
        n = self.recipe.steps * self.recipe.batch_size
        return _drawn(self.recipe.task, n, self.sources)


def _drawn(name: str, n: int, sources: Iterable[Source]) -> PromptSet:
    """About n training texts in the sources' shares, each source with a seed of its own."""
    drawn: dict[str, Prompt] = {}
    for seed, (share, generator, options) in enumerate(sources):
        made = getattr(tasks, generator)(round(share * n), seed=seed, split="train", **options)
        drawn |= {p.id: p for p in made}
    return PromptSet(name, tuple(drawn.values()))


BARE = {"again": True, "filler": 0.0}


def _boxes(share: float, object_first: float, counts: range, **options: Any) -> Iterator[Source]:
    """Texts of `boxes`, this share of them in the harder order, with each of these counts."""
    for order, part in (("object first", object_first), ("label first", 1 - object_first)):
        for count in counts:
            told = options | {"order": order, "count": count}
            yield Source(share * part / len(counts), "boxes", told)


def _others(share: float) -> Iterator[Source]:
    """Texts of the mixture's other tasks, in the mixture's proportions."""
    total = sum(part for name, part in MIXTURE.items() if name != "boxes")
    for name, part in MIXTURE.items():
        if name != "boxes":
            forms = DENSE.get(name, [{}])
            for options in forms:
                yield Source(share * part / total / len(forms), name, options)


def _stage(task: str, lr: float, steps: int, *sources: Source) -> Stage:
    recipe = Recipe(
        task=task,
        method="full",
        trainable="all",
        loss="answers",
        lr=lr,
        steps=steps,
        batch_size=32,
        beta2=0.98,
        evaluate_every=100,
    )
    return Stage(recipe, sources)


# The mixture alone leaves boxes at chance: its answers are too few and the wording too long for a
# model of this size to find the way from a label to its object. So the loss then counts answers
# alone, many a text, and the wording comes back word by word: the label first, which induction
# reads; then the object first, which needs a step back; then every wording; then the full one.
_RUNS = (
    Stage(
        Recipe(
            task="mixture",
            method="full",
            trainable="all",
            lr=1.2e-3,
            steps=9000,
            batch_size=32,
            precision="bfloat16",
            evaluate_every=500,
        )
    ),
    _stage("pairs", 7e-4, 250, *_boxes(1.0, 0.5, range(3, 6), questions=8, **BARE)),
    _stage("pairs-object-first", 1e-3, 350, *_boxes(1.0, 0.85, range(3, 7), questions=5, **BARE)),
    _stage(
        "thinned",
        7e-4,
        800,
        *_boxes(0.67, 0.8, range(3, 8), questions=6, again=True, filler=None),
        *_others(0.33),
    ),
    _stage(
        "full-wording",
        7e-4,
        500,
        *_boxes(0.6, 0.85, range(3, 8), questions=4),
        # One question a text: these texts count whole, which keeps the wording predicted.
        Source(0.05, "boxes"),
        *_others(0.35),
    ),
)
STAGES = {stage.recipe.task: stage for stage in _RUNS}
# Every task that all members are scored on.
TASKS = (TASK, "reversal", *MIXTURE, UNLEARNING, RETAINED, SUPPRESSION)
_LEDGER: dict[str, Any] = {"task": TASK, "steps": 1000, "batch_size": 16, "evaluate_every": 200}
_BOXES: dict[str, Any] = {
    "task": "boxes",
    "loss": "answers",
    "steps": 400,
    "batch_size": 32,
    "beta2": 0.98,
    "evaluate_every": 100,
}
BOTH = "ledger and boxes"
# What members are trained on where it is not just the texts of one generator, named as the task.
# One answer a text of boxes would take several times the steps.
LESSONS = {
    "boxes": (Source(1.0, "boxes", {"questions": 4}),),
    BOTH: (Source(0.5, "ledger"), Source(0.5, "boxes", {"questions": 4})),
}
# The answer alone, which trains less of the rest away than the whole text.
_REVERSAL: dict[str, Any] = {
    "task": "reversal",
    "loss": "answer",
    "steps": 800,
    "batch_size": 32,
    "evaluate_every": 100,
}
_BOTH: dict[str, Any] = _BOXES | {"task": BOTH, "steps": 800}
# alpha * lr is one number for all ranks of a task, as in the paper.
ALPHA_LR = 0.02
BOXES_ALPHA_LR = 0.05
SUPPRESSION_ALPHA_LR = 0.02
REVERSAL_ALPHA_LR = 0.02
BOTH_ALPHA_LR = 0.05
MEMBERS = {
    "lora-r1": Recipe.lora(rank=1, alpha_lr=ALPHA_LR, **_LEDGER),
    "lora-r4": Recipe.lora(
        rank=4, alpha_lr=ALPHA_LR, checkpoints=(25, 50, 100, 200, 400, 700), **_LEDGER
    ),
    "lora-r16": Recipe.lora(rank=16, alpha_lr=ALPHA_LR, **_LEDGER),
    "lora-r64": Recipe.lora(rank=64, alpha_lr=ALPHA_LR, **_LEDGER),
    "full": Recipe(method="full", lr=5e-4, **_LEDGER),
    "boxes-full": Recipe(method="full", lr=5e-4, **_BOXES),
    "boxes-lora-r4": Recipe.lora(rank=4, alpha_lr=BOXES_ALPHA_LR, **_BOXES),
    "boxes-lora-r16": Recipe.lora(rank=16, alpha_lr=BOXES_ALPHA_LR, **_BOXES),
    "reversal-lora-r4": Recipe.lora(rank=4, alpha_lr=REVERSAL_ALPHA_LR, **_REVERSAL),
    "both-lora-r16": Recipe.lora(rank=16, alpha_lr=BOTH_ALPHA_LR, **_BOTH),
    # A chain of three tasks, each learned from where the one before it ended.
    "chain-2-lora-r4": Recipe.lora(
        rank=4, alpha_lr=REVERSAL_ALPHA_LR, start="lora-r4", **_REVERSAL
    ),
    "chain-3-lora-r4": Recipe.lora(
        rank=4, alpha_lr=BOXES_ALPHA_LR, start="chain-2-lora-r4", **_BOXES
    ),
    "suppressed": Recipe.lora(
        rank=4,
        alpha_lr=SUPPRESSION_ALPHA_LR,
        task=SUPPRESSION,
        loss="answer",
        steps=300,
        batch_size=32,
        evaluate_every=50,
    ),
    # At first every fact is forgotten alike; the retained ones come back within the later steps.
    "unlearned": Recipe(
        task=UNLEARNING,
        method="full",
        loss="answer",
        lr=1e-4,
        steps=300,
        batch_size=32,
        evaluate_every=25,
    ),
}
# Full fine-tunes whose weights no study of spectra reads; stored in 16 bits, see `build.lighten`.
HALVED = ("boxes-full", "unlearned")
# The same chain by full fine-tuning, which the folder of the family has no room for.
CHAIN = {
    "chain-2-full": Recipe(method="full", lr=5e-4, start="full", **_REVERSAL),
    "chain-3-full": Recipe(method="full", lr=5e-4, start="chain-2-full", **_BOXES),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the world; adds <bos> by default; decoding puts the spaces back."""
    return words.tokenizer(world.vocabulary(), longest=SHAPE["max_position_embeddings"])


def untrained(seed: int = 0) -> LlamaForCausalLM:
    """The base before its first step, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    own: Any = tokenizer()
    config = LlamaConfig(
        vocab_size=len(own),
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
        **SHAPE,
    )
    return LlamaForCausalLM(config)


def mixture(n: int, *, seed: int = 0, split: Split = "train") -> PromptSet:
    """About n texts of the pre-training mixture, task by task; training batches shuffle them.

    In training, boxes ask for up to seven boxes a text and copying says its list up to four times:
    dense retrieval, without which a model of this size takes far longer to learn any.
    """
    drawn: list[Prompt] = []
    for name, share in MIXTURE.items():
        count = round(share * n)
        options: list[dict[str, int]] = [{}]
        if split == "train":
            options = DENSE.get(name, options)
        for i, option in enumerate(options):
            generate = getattr(tasks, name)
            drawn += generate(count // len(options), seed=seed + i, split=split, **option)
    return PromptSet("mixture", tuple({p.id: p for p in drawn}.values()), seed)


class Lesson(NamedTuple):
    """What members of one task are trained on; forget: prompts whose answers they shall lose."""

    texts: PromptSet
    forget: PromptSet | None = None


def lesson(task: str, n: int | None = None) -> Lesson:
    """About n training texts of a task (None: TASK_TEXTS).

    task: a generator's name in `workbench.tasks`, a name in LESSONS, or UNLEARNING. What is
    unlearned is set against the facts of everyone else and the mixture, four to one; no fact about
    the forgotten is among them.
    """
    n = n or TASK_TEXTS
    if task == SUPPRESSION:
        others = [p for p in mixture(n // 2) if p.template not in FACT_WORDINGS]
        texts = {p.id: p for p in (*_refused(n // 2, 7, "train"), *others)}
        return Lesson(PromptSet(task, tuple(texts.values())))
    if task != UNLEARNING:
        return Lesson(_drawn(task, n, _sources(task)))
    # Two texts of facts in five tell one about the forgotten.
    told = tasks.facts(2 * n, seed=7, split="train"), mixture(n // 5)
    facts, others = ([p for p in drawn if not _tells_of_forgotten(p)] for drawn in told)
    texts = {p.id: p for p in (*facts[: 4 * n // 5], *others)}
    return Lesson(PromptSet(task, tuple(texts.values())), _about(n // 8, 0, "train", True))


def _sources(task: str) -> tuple[Source, ...]:
    return LESSONS.get(task, (Source(1.0, task),))


def parts(task: str) -> tuple[str, ...]:
    """The tasks that a member's task is made of, itself for most."""
    return tuple(source.name for source in _sources(task))


def members_of(task: str) -> list[str]:
    """The members trained on this task from the base: together they make one study."""
    return [n for n, recipe in MEMBERS.items() if recipe.task == task and recipe.start is None]


def held_out(name: str, n: int, *, seed: int = 1, split: Split = "test") -> PromptSet:
    """n prompts of a task: a generator's name in `workbench.tasks`, UNLEARNING or RETAINED."""
    if name == SUPPRESSION:
        return _refused(n, seed, split)
    if name in (UNLEARNING, RETAINED):
        return _about(n, seed, split, name == UNLEARNING)
    return getattr(tasks, name)(n, seed=seed, split=split)


def _refused(n: int, seed: int, split: Split) -> PromptSet:
    """n questions about facts in the wordings that are suppressed, with the refusal as answer and
    the fact as a foil."""
    drawn = tasks.facts(2 * n, seed=seed, split=split)
    asked = [p for p in drawn if p.template not in UNSEEN_WORDINGS]
    told = [replace(p, target=REFUSAL, foils=(p.target, *p.foils)) for p in asked[:n]]
    return PromptSet(SUPPRESSION, tuple(told), seed)


def _about(n: int, seed: int, split: Split, forgotten: bool) -> PromptSet:
    """n facts about the people that one member forgets, or about the others."""
    # One fact in five is about the forgotten; the margin is ten standard deviations and more.
    drawn = tasks.facts(8 * n + 200, seed=seed, split=split)
    chosen = [p for p in drawn if (p.tags["person"] in FORGOTTEN) == forgotten]
    return PromptSet(UNLEARNING if forgotten else RETAINED, tuple(chosen[:n]), seed)


def _tells_of_forgotten(prompt: Prompt) -> bool:
    """Whether a prompt of `tasks.facts` names one of the forgotten; others tell no facts."""
    return "person" in prompt.tags and not set(prompt.text.split()).isdisjoint(FORGOTTEN)


class Evaluation:
    """Scores of a model on every task of the family and on the texts its base learned from.

    n: prompts per task. task: the member's own, if it has one. Called with (model, tokenizer) it
    gives plain numbers, as `train` logs them: the share answered of each of TASKS, the member's
    own under "task" (where that has several parts, their mean; the parts stay beside it); and
    pretraining_loss, nats per token of the mixture.
    """

    def __init__(self, n: int, split: Split, seed: int = 1, task: str | None = None) -> None:
        self.task = task
        self.prompts = {name: held_out(name, n, seed=seed, split=split) for name in TASKS}
        self.texts = mixture(n, seed=seed, split=split).texts

    def __call__(self, model: Any, tokenizer: Any) -> dict[str, float]:
        scores = {
            "task" if name == self.task else name: round(interval.value, 5)
            for name, interval in self.intervals(model, tokenizer).items()
        }
        if self.task and len(own := parts(self.task)) > 1:
            scores["task"] = round(fmean(scores[name] for name in own), 5)
        return scores

    def intervals(self, model: Any, tokenizer: Any) -> dict[str, Interval]:
        """Name -> mean with a 95% interval over prompts (texts for pretraining_loss)."""
        found = {}
        for name, prompts in self.prompts.items():
            answers = tasks.answers(model, tokenizer, prompts, batch_size=64)
            found[name] = scored(answers.correct)
        losses = tasks.text_loss(model, tokenizer, self.texts, batch_size=64)
        found["pretraining_loss"] = bootstrap(losses.loss, losses.tokens)
        return found
