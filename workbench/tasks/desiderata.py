"""What do heads carry from one boxes prompt to another: an object, a label or a position?

Counterfactual pairs for desiderata-based component masking and corrupt partners for path patching,
after Prakash et al. (2024), arXiv 2402.14811. What heads carry is patched from a source prompt into
a base prompt. The base's answer must then become

    object value   the source's own answer;
    box label      the base's object in the box whose label the source asks for;
    positional     the base's object in the statement with the number of the source's answer.

A pair has no object in common, the same labels in another order, and as many tokens in every
statement, so that heads that carry one of the three cannot pass for heads that carry another. Which
of the base's statements is named depends on whose statements and whose question a run combines, and
all four combinations name a different one: both the base's (its own answer), both the source's
(positional), the source's question to the base's statements (box label), and the reverse.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

from workbench.errors import WorkbenchError
from workbench.tasks import entity_tracking, world
from workbench.tasks.generators import asked_for, named
from workbench.tasks.prompts import SPLITS, Prompt, PromptSet, Split

KINDS = ("object value", "box label", "positional")


@dataclass(frozen=True)
class Counterfactual:
    """A base prompt, a source prompt, and the base's answer once the source's part is in it.

    target: that answer, with its leading space. rivals: kind -> the answer, had the source given
    what another desideratum names. base.target is the base's own answer.
    """

    base: Prompt
    source: Prompt
    target: str
    rivals: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Counterfactuals:
    """The pairs of one desideratum (kind) in a fixed order, with the seed that drew them."""

    name: str
    kind: str
    pairs: tuple[Counterfactual, ...]
    seed: int = 0

    def __iter__(self) -> Iterator[Counterfactual]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def bases(self) -> PromptSet:
        """The base prompts, with their own answers."""
        return PromptSet(self.name, tuple(p.base for p in self.pairs), self.seed)

    @property
    def sources(self) -> PromptSet:
        """The source prompts, with their own answers."""
        return PromptSet(self.name, tuple(p.source for p in self.pairs), self.seed)

    @property
    def wanted(self) -> PromptSet:
        """The base prompts with the counterfactual answer as target; foils: their own, the rivals.

        What a patched run is scored on.
        """
        turned = [
            replace(p.base, target=p.target, foils=(p.base.target, *p.rivals.values()))
            for p in self.pairs
        ]
        return PromptSet(self.name, tuple(turned), self.seed)

    @property
    def fingerprint(self) -> str:
        """sha256 of the pairs' content in their order; name and seed stay out."""
        content = json.dumps([asdict(p) for p in self.pairs], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()

    def select(self, *, split: Split) -> Counterfactuals:
        """The pairs of one split, in the same order."""
        if split not in SPLITS:
            raise WorkbenchError(f"Unknown split {split!r}; use one of {', '.join(SPLITS)}.")
        return replace(self, pairs=tuple(p for p in self.pairs if p.base.split == split))


def desiderata(
    kind: str,
    n: int = 200,
    *,
    seed: int = 0,
    count: int = 7,
    order: str = "object first",
    split: Split | None = None,
    tokenizer: Any = None,
) -> Counterfactuals:
    """n pairs of boxes prompts for one desideratum: "object value", "box label" or "positional".

    The kind decides the targets alone: one seed gives the same pairs for each, which can then be
    compared pair by pair. count: boxes a prompt, at least 4. order: see world.BOX_STATEMENTS.
    split: of both prompts, by their texts, as in `boxes`. tokenizer: None writes one word a token,
    as the shipped family reads; a subword tokenizer gets ordinary English spacing, and only objects
    and labels that are one token in it.
    """
    if kind not in KINDS:
        raise WorkbenchError(f"Unknown desideratum {kind!r}; use one of {', '.join(KINDS)}.")
    if order not in world.BOX_STATEMENTS:
        known = ", ".join(world.BOX_STATEMENTS)
        raise WorkbenchError(f"Unknown order {order!r}; use one of {known}.")
    asked_for(n, split)
    objects, labels = _single(world.OBJECTS, tokenizer), _single(world.LABELS, tokenizer)
    most = min(len(objects) // 2, len(labels))
    if most < 4:
        raise WorkbenchError(
            "Expected a tokenizer with at least 8 objects and 4 labels of one token "
            f"each, found {len(objects)} and {len(labels)}; give None for the shipped "
            "family's tokenizer."
        )
    if not 4 <= count <= most:
        raise WorkbenchError(f"Expected 4 to {most} boxes a prompt, found count = {count}.")
    # Not the kind: every kind shall have the same pairs.
    stream = random.Random(f"desiderata {seed}")
    found: list[Counterfactual] = []
    seen: set[str] = set()
    for _ in range(40 * n + 1000):
        drawn = stream.sample(labels, count), stream.sample(objects, 2 * count)
        made = _pair(stream, *drawn, order, split)
        if made is None:
            continue
        base, source, answers = made
        if seen & {base.id, source.id}:
            continue
        seen |= {base.id, source.id}
        if tokenizer is not None:
            base, source = entity_tracking.natural(base), entity_tracking.natural(source)
        target = answers.pop(kind)
        found.append(Counterfactual(base, source, target, answers))
        if len(found) == n:
            return Counterfactuals(f"desiderata, {kind}", kind, tuple(found), seed)
    raise WorkbenchError(
        f"Found only {len(found)} distinct pairs of {count} boxes in split {split}; ask for fewer "
        f"than n = {n}."
    )


def _pair(
    stream: random.Random, labels: list[str], objects: list[str], order: str, split: Split | None
) -> tuple[Prompt, Prompt, dict[str, str]] | None:
    """base, source, kind -> target; None where one falls in another split.

    The first half of the objects is the base's.
    """
    count = len(labels)
    # Numbers of the base's statements: its own answer, the one where the source's answer stands,
    # the one with the label that the source asks for, and the one where the source has the label
    # that the base asks for.
    own, asked, label, crossed = stream.sample(range(count), 4)
    inside = dict(zip(labels, objects[:count], strict=True))
    base = named("boxes", entity_tracking.stated(inside, [labels[own]], order))
    if split not in (None, base.split):
        return None
    moved = _moved(stream, labels, {asked: labels[label], crossed: labels[own]})
    things = objects[count:]
    answers = {"box label": f" {objects[label]}", "positional": f" {objects[asked]}"}
    # A source of another split would bring its texts into this one's. Few boxes have few orders,
    # and all of them may fall in other splits.
    for _ in range(50):
        stream.shuffle(things)
        other = dict(zip(moved, things, strict=True))
        source = named("boxes", entity_tracking.stated(other, [labels[label]], order))
        if source.split == base.split:
            return base, source, answers | {"object value": source.target}
    return None


def _moved(stream: random.Random, labels: list[str], fixed: Mapping[int, str]) -> list[str]:
    """The labels in another order: `fixed` gives some, and none stays where it was."""
    free = [x for x in labels if x not in fixed.values()]
    while True:
        stream.shuffle(free)
        rest = iter(free)
        moved = [fixed[i] if i in fixed else next(rest) for i in range(len(labels))]
        if all(new != old for new, old in zip(moved, labels, strict=True)):
            return moved


def corrupt(prompts: PromptSet, seed: int = 0, *, tokenizer: Any = None) -> PromptSet:
    """A partner for each prompt of `boxes` or `boxes_prompts`: another context, no answer in it.

    Every object and label is replaced by one that the prompt lacks, and the query label by one that
    no statement has. The answer is then nowhere in the prompt: "correct label" and "correct object"
    point at another statement than the prompt's, so that a patch from there brings neither its
    label, nor its object, nor its position. Target, foils and split stay the prompt's; a patched
    run is scored on them. A partner depends on its prompt and the seed alone. tokenizer: one that
    all words must be one token in (see `whole_words`), so that the partner has the prompt's length.
    """
    comma = _comma(prompts)
    pools = _single(world.LABELS, tokenizer, comma), _single(world.OBJECTS, tokenizer, comma)
    made = [_partner(random.Random(f"corrupt {seed} {p.id}"), p, *pools) for p in prompts]
    return replace(prompts, name=f"{prompts.name}-corrupt", prompts=tuple(made), seed=seed)


def whole_words(prompts: PromptSet, tokenizer: Any) -> PromptSet:
    """The box prompts whose every object and label is one token: all statements have one length."""
    single = {*_single((*world.LABELS, *world.OBJECTS), tokenizer, _comma(prompts))}
    kept = [p for p in prompts if {*chain(*_stated(p))} <= single]
    return replace(prompts, prompts=tuple(kept))


def _partner(
    stream: random.Random, prompt: Prompt, label_pool: list[str], object_pool: list[str]
) -> Prompt:
    """One corrupt prompt; see `corrupt`."""
    labels, objects = _stated(prompt)
    cut = sorted({*labels, *objects} - {*label_pool, *object_pool})
    if cut:
        raise WorkbenchError(
            f"Prompt {prompt.id!r} has {cut[0]!r}, which is not one token; leave such prompts out "
            "with tasks.whole_words."
        )
    label_pool = [x for x in label_pool if x not in labels]
    object_pool = [o for o in object_pool if o not in objects]
    if len(label_pool) <= len(labels) or len(object_pool) < len(objects):
        raise WorkbenchError(
            f"Prompt {prompt.id!r} has {len(labels)} boxes, so too few other labels "
            "and objects are left; use fewer boxes."
        )
    query, *others = stream.sample(label_pool, len(labels) + 1)
    things = stream.sample(object_pool, len(objects))
    new = dict(zip([*labels, *objects], [*others, *things], strict=True))

    def turned(part: str) -> str:
        return re.sub(r"\w+", lambda word: new.get(word[0], word[0]), part)

    first, last = prompt.spans["query box"]
    text = turned(prompt.prompt[:first]) + query + turned(prompt.prompt[last:])
    asked = labels.index(prompt.prompt[first:last])
    away = stream.choice([i for i in range(len(labels)) if i != asked])
    found = entity_tracking.spans(text, asked=query, label=others[away], thing=things[away])
    return replace(prompt, id=f"{prompt.id}-corrupt", prompt=text, spans=found)


def _stated(prompt: Prompt) -> tuple[list[str], list[str]]:
    """The labels and the objects of a box prompt, statement by statement."""
    words = list(dict.fromkeys(re.findall(r"\w+", prompt.prompt)))
    labels = [word for word in words if word in world.LABELS]
    objects = [word for word in words if word in world.OBJECTS]
    first, last = prompt.spans.get("query box", (0, 0))
    count = int(prompt.tags.get("boxes", len(labels)))
    asks = prompt.prompt[first:last] in labels
    if not asks or not len(labels) == len(objects) == count or count < 2:
        raise WorkbenchError(
            f"Prompt {prompt.id!r} is not a question about one of several boxes; give prompts of "
            "tasks.boxes or tasks.boxes_prompts."
        )
    return labels, objects


def _comma(prompts: PromptSet) -> str:
    """How these prompts write a comma: set apart, or in ordinary spacing."""
    return " ," if any(" ," in p.prompt for p in prompts) else ","


def _single(words: Sequence[str], tokenizer: Any, comma: str = ",") -> list[str]:
    """The words that are one token inside a sentence, also before a comma; all for no tokenizer."""
    if tokenizer is None:
        return list(words)
    before = "Box Q, the "

    def alone(word: str) -> bool:
        coded = tokenizer(f"{before}{word}{comma} the", return_offsets_mapping=True)
        first, last = len(before), len(before) + len(word)
        ends = [b for a, b in coded["offset_mapping"] if a < last and b > first]
        return ends == [last]

    return [word for word in words if alone(word)]
