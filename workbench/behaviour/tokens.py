"""Token by token: which tokens did fine-tuning make likelier, and was the base confident of others
there?

For every scored token of the base's probability p, with H the entropy of the base's distribution
there, delta log p = log p_tuned - log p, and KL(tuned || base) of the two distributions. The plane
of p and H is that of Diao et al. 2026, arXiv 2601.02151: a token of low p at low H is a confident
conflict, in which the base was certain of another token. Learnability is the share of the base's
loss that is gone, (L_base - L_tuned) / L_base (compare Mindermann et al. 2022, arXiv 2206.07137);
of each text also the difference itself (Zhou et al. 2023, arXiv 2310.13008). The histogram of p
tells whether the base was strong or weak on these texts (Li et al. 2025, arXiv 2510.00526v2), and
where on it the change lies.
On answers with foils: fine-tuning on preferences can widen the margin while the preferred answer
itself becomes less likely (likelihood displacement, Razin et al. 2024, arXiv 2410.08847), and a
tuned model can score a wrong answer above the right one, by the mean log p of its tokens (Wang et
al. 2023, arXiv 2309.02144).

It misleads on text that the base wrote: its tokens sometimes have low p by chance, so the share of
conflicts is given with the share expected if the base itself had drawn every token from its own
distribution. The thresholds are round numbers, not the paper's. Answers whose probability changed
need not have been learned or unlearned: of 40 compiled pairs that learned nothing 27 change them,
since random changes of weights disturb the answers, too (`make truth`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.behaviour import token_rows
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.tasks.batching import Encoded, encode
from workbench.tasks.prompts import Prompt, PromptSet
from workbench.tasks.score import pieces, side_by_side

KEY = "behaviour.tokens"
LOW_PROBABILITY = 0.1
LOW_ENTROPY = 1.0  # nats
SHOWN = 60  # tokens of a text that are kept with their words
Floats = NDArray[np.float64]


def measured(base: Tensor, tuned: Tensor, targets: Tensor, low: float) -> dict[str, Tensor]:
    """What two distributions say of the tokens that came, each (tokens,).

    base, tuned: log-probabilities (tokens, vocabulary), float32. targets: (tokens,). log_p and
    tuned_log_p of the target, entropy of the base's distribution, kl = KL(tuned || base), all in
    nats; tuned_entropy: of the tuned one; tail: the base's own mass on tokens of a probability
    below `low`.
    """
    p, q = base.exp(), tuned.exp()
    own, other = (side.gather(1, targets[:, None])[:, 0] for side in (base, tuned))
    return {
        "log_p": own,
        "tuned_log_p": other,
        "entropy": -torch.special.xlogy(p, p).sum(-1),
        "tuned_entropy": -torch.special.xlogy(q, q).sum(-1),
        # Where a side gives nothing at all to a token, 0 log 0 is 0.
        "kl": (q * (tuned - base).nan_to_num(0.0)).sum(-1),
        "tail": torch.where(p < low, p, 0.0).sum(-1),
    }


@analysis(
    "Which tokens became likelier, and was the base confident of other tokens there?",
    paper="arXiv 2601.02151, 2410.08847, 2309.02144, 2310.13008, 2506.01939v2, 2510.00526",
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

    Returns a Result with rows delta_log_p and kl (nats per token; baseline 0), log_p and entropy
    (arm "base", "tuned"), entropy_change (nats; arm "all", "forks", the fifth of the tokens at
    which both models together are least decided, and "elsewhere"), rose_share and fell_share, of
    the tokens, rose_mass and fell_mass, nats a token of the text, prior_share and prior_delta_log_p
    (x: the base's probability of a token, in ten bins; baseline of the first: as many in each),
    learnability (0: nothing learned, 1: no loss left), item_learnability of each text (column
    prompt; nats per token, baseline: the base's loss),
    conflict_share (of the tokens; baseline: the share expected if the base had written them) and
    conflict_delta_log_p (of those tokens; baseline: the mean of all others). For answers with
    foils also chosen_change, rejected_change (the foils' whole probability) and margin_change, in
    nats per answer, and displaced, the share of prompts whose margin grew while the answer became
    less likely; and right_above_wrong (arm "base", "tuned", baseline 1/2), the chance that the
    answer has a larger mean log p per token than a foil, with its change. 95% bootstrap intervals
    over texts, weighted by their tokens; n: texts (of conflicts: those that have one). With `by`
    also group_delta_log_p and group_kl of each of its values (column group), and of the prompts'
    mean delta log p group_gap and group_gap_chance, of their KL group_kl_gap and
    group_kl_gap_chance, see `stats.gaps`. Rows token (prompt, position, token; value: delta log p;
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
        answered = _answered(models, words, given, batch_size)
    names = [str(i) if isinstance(one, str) else one.id for i, one in enumerate(given)]
    rows = [
        *token_rows.means(read, low_probability, low_entropy, seed),
        *token_rows.directions(read, seed),
        *token_rows.entropies(read, seed),
        *token_rows.priors(read, seed),
        *token_rows.displaced(_together(answered), seed),
        *token_rows.preferred([own / sizes for own, sizes in answered], pair.same, seed),
        *token_rows.learned(read, names),
        *shown,
    ]
    if groups is not None:
        rows += token_rows.grouped(read, groups, seed)
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


def _answered(
    models: Sequence[Any], words: Any, given: Sequence[Prompt | str], batch_size: int
) -> list[tuple[Floats, NDArray[np.int64]]]:
    """Of every prompt with foils log p of its answer and of each foil, base and tuned, (2, 1 +
    foils), in nats, and the tokens of each, (1 + foils,)."""
    asked = [one for one in given if isinstance(one, Prompt) and one.foils]
    coded, place = [], []
    for number, prompt in enumerate(asked):
        for choice, answer in enumerate((prompt.target, *prompt.foils)):
            coded.append(encode(words, Prompt(prompt.id, prompt.prompt, answer)))
            place.append((number, choice))
    found = [
        (np.zeros((2, 1 + len(prompt.foils))), np.zeros(1 + len(prompt.foils), dtype=np.int64))
        for prompt in asked
    ]
    for index, sides in side_by_side(models, words, coded, batch_size) if coded else ():
        one, (number, choice) = coded[index], place[index]
        targets = torch.tensor(one.ids[one.start :])
        log_p, sizes = found[number]
        sizes[choice] = len(targets)
        for side, said in enumerate(sides):
            log_p[side, choice] = float(said.cpu().gather(1, targets[:, None]).sum())
    return found


def _together(answered: Sequence[tuple[Floats, Any]]) -> Floats | None:
    """(2, 2, prompts): log p of answer and of all foils together, base and tuned; None where no
    prompt has foils."""
    if not answered:
        return None
    both = [(own[:, 0], np.logaddexp.reduce(own[:, 1:], axis=1)) for own, _ in answered]
    return np.array(both).transpose(1, 2, 0)


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
