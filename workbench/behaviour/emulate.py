"""Emulated fine-tuning: what would a larger model be, had it been fine-tuned like this small one?

    log p = log p_large + beta (log p_tuned - log p_base) - log Z

of every next token (Mitchell et al. 2023, arXiv 2310.12962; the same sum is proxy tuning, Liu et
al. 2024, arXiv 2401.08565). The small pair provides the change by fine-tuning, the large model
everything else. With the small base itself as the large model, beta = 1 is the tuned model and beta
= 0 the base: the identities this is tested by. KL from the large model grows with |beta|.

The three models need one vocabulary. It misleads if the large model is already certain: a
difference of log-probabilities is as large for a token that is never written as for one that
matters.
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
from workbench.loaders import Checkpoint, CheckpointPair
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import ratios, shares
from workbench.tasks.batching import encode
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import side_by_side

KEY = "behaviour.emulate"
BETAS = (0.0, 0.5, 1.0, 1.5, 2.0)
EMULATED = "emulated"
BASE, TUNED, LARGE, LARGE_TUNED = "base", "tuned", "large", "large, tuned"
Floats = NDArray[np.float64]
Items = dict[str, Floats]  # score, loss and kl, (prompts,)


def emulated(large: Tensor, base: Tensor, tuned: Tensor, beta: float) -> Tensor:
    """log p of large + beta (tuned - base); all log-probabilities, (..., vocabulary)."""
    return (large + beta * (tuned - base)).log_softmax(-1)


@analysis(
    "What would a larger model answer if it were fine-tuned like this small one?",
    paper="arXiv 2310.12962",
    example="LARGE --prompts task.jsonl",
    texts=True,
)
def emulate(
    pair: CheckpointPair,
    prompts: PromptSet,
    large: str,
    *,
    large_tuned: str | None = None,
    betas: Sequence[float] = BETAS,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Score a larger model after the fine-tuning of a small pair is added to its log-probabilities.

    pair: the small base and its fine-tuned model. large: the larger base model: a folder, a .gguf
    file, or hub id@revision. large_tuned: the larger model after real fine-tuning, to compare with.
    betas: the weights of the change; 1 is the emulation of the paper.

    Returns a Result with rows score (greedy exact match), loss (-log p of the answer, nats) and kl
    (KL from the large model in nats per answer token) per arm: "emulated" at x = beta, and without
    x "base", "tuned", "large" and, if it is given, "large, tuned". Baseline: the large model's; n
    and 95% intervals over prompts; score_change against the large model, paired, for the
    emulated and the small tuned arm. Raises WorkbenchError if a vocabulary differs from the pair's,
    or if there is no prompt.
    """
    if not len(prompts) or not betas:
        raise WorkbenchError("Expected prompts to answer and values of beta; one of them is empty.")
    references = {LARGE: large} | ({LARGE_TUNED: large_tuned} if large_tuned else {})
    given = {arm: Checkpoint.parse(reference) for arm, reference in references.items()}
    words = pair.base.tokenizer()
    _one_vocabulary(words, given)
    precision = named_dtype(dtype)
    with pair.models(device, precision) as sides:
        extra = {arm: one.load(device, precision).eval() for arm, one in given.items()}
        models = {BASE: sides.base, TUNED: sides.tuned} | extra
        read = _read(pair.name, models, words, prompts, betas, batch_size)
    table = pd.DataFrame(list(_rows(read, seed)))
    table.insert(0, "member", pair.name)
    table.insert(1, "task", prompts.name)
    parameters = {
        "prompts": describe(prompts), "betas": list(betas),
        "large": {arm: one.fingerprint for arm, one in given.items()},
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _one_vocabulary(words: Any, given: Mapping[str, Checkpoint]) -> None:
    ours = words.get_vocab()
    for arm, one in given.items():
        theirs = one.tokenizer().get_vocab()
        if theirs != ours:
            shared = sum(theirs.get(word) == token for word, token in ours.items())
            raise WorkbenchError(
                f"Expected the {arm} model {one.name} to have the pair's vocabulary of "
                f"{len(ours)} tokens, but only {shared} of its {len(theirs)} agree; "
                "use models of one family."
            )


def _read(
    name: str, models: Mapping[str, Any], words: Any, prompts: PromptSet, betas: Sequence[float],
    batch_size: int,
) -> dict[tuple[str, float], Items]:  # fmt: skip
    """(arm, beta; NaN where it has none) -> what it says of every prompt's answer."""
    coded = [encode(words, prompt) for prompt in prompts]
    arms = [(arm, float("nan")) for arm in models] + [(EMULATED, float(beta)) for beta in betas]
    read = [{m: np.zeros(len(coded)) for m in ("score", "loss", "kl")} for _ in arms]
    run = side_by_side(list(models.values()), words, coded, batch_size)
    for place, said in progress(run, total=len(coded), desc=f"{name}: answers"):  # fmt: skip
        own = dict(zip(models, said, strict=True))
        targets = torch.tensor(coded[place].ids[coded[place].start :], device=said[0].device)
        for (arm, beta), found in zip(arms, read, strict=True):
            log_p = own[arm] if arm in own else emulated(own[LARGE], own[BASE], own[TUNED], beta)
            found["score"][place] = bool((log_p.argmax(-1) == targets).all())
            found["loss"][place] = -float(log_p.gather(1, targets[:, None]).sum())
            found["kl"][place] = float((log_p.exp() * (log_p - own[LARGE])).sum(-1).mean())
    return dict(zip(arms, read, strict=True))


def _rows(read: Mapping[tuple[str, float], Items], seed: int) -> Iterator[dict[str, Any]]:
    large = next(own for (arm, _), own in read.items() if arm == LARGE)
    for (arm, beta), own in read.items():
        told = {"arm": arm, "x": beta}
        for metric, values in own.items():
            found = (shares if metric == "score" else ratios)(values, seed=seed).first._asdict()
            yield told | {"metric": metric} | found | {"baseline": float(large[metric].mean())}
        if arm in (EMULATED, TUNED):
            found = ratios(own["score"] - large["score"], seed=seed).first._asdict()
            yield told | {"metric": "score_change"} | found | {"baseline": 0.0}
