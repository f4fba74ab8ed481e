"""Token by token: which tokens did fine-tuning make likelier, and was the base confident of others
there?

For every scored token of the base's probability p, with H the entropy of the base's distribution
there, delta log p = log p_tuned - log p, and KL(tuned || base) of the two distributions. The plane
of p and H is that of Diao et al. 2026, arXiv 2601.02151: a token of low p at low H is a confident
conflict, in which the base was certain of another token. Learnability is the share of the base's
loss that is gone, (L_base - L_tuned) / L_base (compare Mindermann et al. 2022, arXiv 2206.07137).
On answers with foils: fine-tuning on preferences can widen the margin while the preferred answer
itself becomes less likely (likelihood displacement, Razin et al. 2024, arXiv 2410.08847).

It misleads on text that the base wrote: its tokens sometimes have low p by chance, so the share of
conflicts is given with the share expected if the base itself had drawn every token from its own
distribution. The thresholds are round numbers, not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import Interval, gaps, ratios
from workbench.tasks.batching import Encoded, encode
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import pieces, side_by_side

KEY = "behaviour.tokens"
LOW_PROBABILITY = 0.1
LOW_ENTROPY = 1.0  # nats
ROUNDING = 1e-6  # nats of a float32 log-probability
SHOWN = 60  # tokens of a text that are kept with their words
Floats = NDArray[np.float64]


def measured(base: Tensor, tuned: Tensor, targets: Tensor, low: float) -> dict[str, Tensor]:
    """What two distributions say of the tokens that came, each (tokens,).

    base, tuned: log-probabilities (tokens, vocabulary), float32. targets: (tokens,). log_p and
    tuned_log_p of the target, entropy of the base's distribution, kl = KL(tuned || base), all in
    nats; tail: the base's own mass on tokens of a probability below `low`.
    """
    p = base.exp()
    own, other = (side.gather(1, targets[:, None])[:, 0] for side in (base, tuned))
    return {
        "log_p": own,
        "tuned_log_p": other,
        "entropy": -torch.special.xlogy(p, p).sum(-1),
        # Where a side gives nothing at all to a token, 0 log 0 is 0.
        "kl": (tuned.exp() * (tuned - base).nan_to_num(0.0)).sum(-1),
        "tail": torch.where(p < low, p, 0.0).sum(-1),
    }


@analysis(
    "Which tokens became likelier, and was the base confident of other tokens there?",
    paper="arXiv 2601.02151, 2410.08847",
    example="--prompts task.jsonl",
    passes=8,
    takes={"prompts": "task"},
    texts=True,
)
def tokens(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[str],
    *,
    low_probability: float = LOW_PROBABILITY,
    low_entropy: float = LOW_ENTROPY,
    show: int = 2,
    by: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Measure what fine-tuning did to the probability of every token of some texts.

    prompts: prompts whose answer tokens are scored, or plain texts, of which every token but the
    first is scored. low_probability: a token is a confident conflict if the base gives it less than
    this probability, and its entropy is below low_entropy. low_entropy: the entropy (nats) of the
    base below which it counts as confident. show: the number of texts that are saved token by
    token, for the coloured text (their first 60 tokens; for a prompt these include the question).
    by: a tag of the prompts; the changes are also reported for each of its values.

    Returns a Result with rows delta_log_p and kl (nats per token; baseline 0), log_p (arm "base",
    "tuned"), entropy (of the base), learnability (0: nothing learned, 1: no loss left),
    conflict_share (of the tokens; baseline: the share expected if the base had written them) and
    conflict_delta_log_p (of those tokens; baseline: the mean of all others). For answers with
    foils also chosen_change, rejected_change (the foils' whole probability) and margin_change, in
    nats per answer, and displaced, the share of prompts whose margin grew while the answer became
    less likely. 95% bootstrap intervals over texts, weighted by their tokens; n: texts (of
    conflicts: those that have one). With `by` also group_delta_log_p and group_kl of each of its
    values (column group), and of the prompts' mean delta log p group_gap and group_gap_chance, see
    `stats.gaps`. Rows token (prompt, position, token; value: delta log p;
    probability: the base's) of the shown texts. tensors: log_p, delta, entropy, kl and text of
    every scored token. Raises WorkbenchError for no texts, or texts of fewer than two tokens.
    """
    given, groups = list(prompts), None
    if by is not None:
        if not isinstance(prompts, PromptSet):
            raise WorkbenchError(f"Plain texts have no tag {by!r}; give prompts that have it.")
        groups = prompts.tag(by)
    if not given:
        raise WorkbenchError(
            "Expected prompts or texts to read, but there are none; give at least one."
        )
    if len({isinstance(one, str) for one in given}) > 1:
        raise WorkbenchError("Expected prompts or texts to read, found both; give one kind.")
    words = pair.base.tokenizer()
    with pair.models(device, named_dtype(dtype)) as sides:
        models = (sides.base, sides.tuned)
        coded, owners = _coded(models[0], words, given)
        read = _read(pair.name, models, words, coded, owners, low_probability, batch_size)
        shown = _shown(models, words, given[:show], low_probability)
        pairs = _pairs(models, words, given, batch_size)
    rows = [*_means(read, low_probability, low_entropy, seed), *_displaced(pairs, seed), *shown]
    if groups is not None:
        rows += _grouped(read, groups, seed)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    table.insert(1, "task", getattr(prompts, "name", "texts"))
    parameters = {
        "prompts": describe(prompts), "low_probability": low_probability,
        "low_entropy": low_entropy, "show": show, **({"by": by} if by else {}),
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    kept = {n: read[n].astype(np.float32) for n in ("log_p", "delta", "entropy", "kl")}
    return finished(KEY, table, provenance, kept | {"text": read["text"].astype(np.int32)})


def _coded(model: Any, words: Any, given: Sequence[Prompt | str]) -> tuple[list[Encoded], Any]:
    """Token ids with the first scored token, and the text each belongs to."""
    if all(isinstance(one, str) for one in given):
        coded, owners = pieces(model, words, [str(one) for one in given])
        empty = sorted(set(range(len(given))) - set(owners))
        if empty:
            raise WorkbenchError(
                f"Text {empty[0]} has fewer than two tokens, so there is nothing to predict; "
                "leave it out."
            )
        return coded, owners
    return [encode(words, one) for one in given if isinstance(one, Prompt)], range(len(given))


def _read(
    name: str, models: Sequence[Any], words: Any, coded: Sequence[Encoded], owners: Any,
    low: float, batch_size: int,
) -> dict[str, Floats]:  # fmt: skip
    """Every measurement of every scored token, (tokens,), in the order of the texts."""
    found: list[dict[str, Tensor]] = [{} for _ in coded]
    run = side_by_side(models, words, coded, batch_size)
    for place, (base, tuned) in progress(run, total=len(coded), desc=f"{name}: tokens"):
        one = coded[place]
        targets = torch.tensor(one.ids[one.start :], device=base.device)
        made = measured(base, tuned.to(base.device), targets, low)
        found[place] = {key: value.double().cpu() for key, value in made.items()}
    read = {key: torch.cat([one[key] for one in found]).numpy() for key in found[0]}
    read["delta"] = read["tuned_log_p"] - read["log_p"]
    sizes = [len(one.ids) - one.start for one in coded]
    read["text"] = np.repeat(np.asarray(owners), sizes).astype(float)
    return read


def _means(
    read: Mapping[str, Floats], low_probability: float, low_entropy: float, seed: int
) -> Iterator[dict[str, Any]]:
    texts = read["text"].astype(int)

    def row(metric: str, top: Any, bottom: Any = None, baseline: float = np.nan, **about: Any):
        """A ratio of sums over tokens, resampled by text; None: per token."""
        size = int(texts.max()) + 1
        below = np.bincount(texts, bottom, size)
        known = np.where(below != 0, 1.0, np.nan)
        found = ratios(np.bincount(texts, top, size) * known, below * known, seed=seed).first
        return about | {"metric": metric} | found._asdict() | {"baseline": baseline}

    yield row("delta_log_p", read["delta"], baseline=0.0)
    yield row("kl", read["kl"], baseline=0.0)
    yield row("log_p", read["log_p"], arm="base")
    yield row("log_p", read["tuned_log_p"], baseline=float(read["log_p"].mean()), arm="tuned")
    yield row("entropy", read["entropy"], arm="base")
    loss = -read["log_p"]
    # A base that loses nothing has nothing to learn.
    loss = loss if loss.mean() > ROUNDING else np.zeros_like(loss)
    yield row("learnability", read["delta"], loss, baseline=0.0)
    sure = read["entropy"] < low_entropy
    conflict = sure & (read["log_p"] < np.log(low_probability))
    expected = float(np.where(sure, read["tail"], 0.0).mean())
    yield row("conflict_share", conflict.astype(float), baseline=expected)
    others = read["delta"][~conflict]
    yield row(
        "conflict_delta_log_p", np.where(conflict, read["delta"], 0.0), conflict.astype(float),
        baseline=float(others.mean()) if others.size else np.nan,
    )  # fmt: skip


def _grouped(
    read: Mapping[str, Floats], groups: NDArray[np.str_], seed: int
) -> Iterator[dict[str, Any]]:
    """What changed by the values of a tag."""
    texts, size = read["text"].astype(int), len(groups)
    tokens = np.bincount(texts, minlength=size)
    sums = {name: np.bincount(texts, read[name], size) for name in ("delta", "kl")}
    for group in dict.fromkeys(groups.tolist()):
        here = groups == group
        for metric, name in (("delta_log_p", "delta"), ("kl", "kl")):
            found = ratios(sums[name][here], tokens[here], seed=seed).first._asdict()
            yield {"metric": f"group_{metric}", "group": group, "baseline": 0.0} | found
    means = sums["delta"] / tokens
    for row in gaps(np.zeros(size), means, groups, seed):
        if row["metric"] != "gap_change":  # the base has no change, and so no gap of its own
            yield row | {"metric": f"group_{row['metric']}"}


def _pairs(
    models: Sequence[Any], words: Any, given: Sequence[Prompt | str], batch_size: int
) -> Floats | None:
    """(2, 2, prompts): log p of answer and of all foils together, base and tuned; None where no
    prompt has foils."""
    asked = [one for one in given if isinstance(one, Prompt) and one.foils]
    if not asked:
        return None
    coded, place = [], []
    for number, prompt in enumerate(asked):
        for kind, answer in [(0, prompt.target), *((1, foil) for foil in prompt.foils)]:
            coded.append(encode(words, Prompt(prompt.id, prompt.prompt, answer)))
            place.append((kind, number))
    found = np.full((2, 2, len(asked)), -np.inf)
    for index, sides in side_by_side(models, words, coded, batch_size):
        one = coded[index]
        targets = torch.tensor(one.ids[one.start :])
        for side, said in enumerate(sides):
            kind, number = place[index]
            own = float(said.cpu().gather(1, targets[:, None]).sum())
            found[kind, side, number] = np.logaddexp(found[kind, side, number], own)
    return found


def _displaced(pairs: Floats | None, seed: int) -> Iterator[dict[str, Any]]:
    if pairs is None:
        return
    chosen, rejected = pairs[:, 1] - pairs[:, 0]
    margin = chosen - rejected
    for metric, values in (
        ("chosen_change", chosen),
        ("rejected_change", rejected),
        ("margin_change", margin),
        ("displaced", ((margin > 0) & (chosen < 0)).astype(float)),
    ):
        found: Interval = ratios(values, seed=seed).first
        yield {"metric": metric} | found._asdict() | {"baseline": 0.0}


def _shown(
    models: Sequence[Any], words: Any, given: Sequence[Prompt | str], low: float
) -> Iterator[dict[str, Any]]:
    """Rows of the first tokens of some texts, whole prompts included."""
    texts = [one if isinstance(one, str) else one.text for one in given]
    coded = [Encoded(words(text)["input_ids"][: SHOWN + 1], 1) for text in texts]
    rows: list[list[dict[str, Any]]] = [[] for _ in coded]
    for place, (base, tuned) in side_by_side(models, words, coded):
        ids = coded[place].ids[1:]
        made = measured(base, tuned.to(base.device), torch.tensor(ids, device=base.device), low)
        delta = (made["tuned_log_p"] - made["log_p"]).tolist()
        chances = made["log_p"].exp().tolist()
        for i, (own, value, chance) in enumerate(zip(ids, delta, chances, strict=True)):
            told = {"prompt": str(place), "position": i + 1, "token": words.decode([own])}
            rows[place].append(
                told | {"metric": "token", "value": value, "probability": chance, "baseline": 0.0}
            )
    return (row for own in rows for row in own)
