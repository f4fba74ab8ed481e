"""Generation: what does the tuned model write that the base does not?

Contrastive generation (Isonuma & Titov 2024, arXiv 2410.14765) writes a text from the two models
alone, without any of the data: the next token is drawn by log p_tuned - log p_base among those that
the tuned model finds plausible, p_tuned >= alpha max p_tuned (Li et al. 2023, arXiv 2210.15097).
What comes out shows what the fine-tuning data had that pre-training had not. Texts soon repeat, so
the iterative version trains the base on what was found and contrasts with that. Plain samples of
both models are given too: words that the tuned model's own samples also show need no contrast.

As a picture of the data it misleads: the contrast exaggerates, and what is new in a text need not
have been in the data. Novelty is measured by the two models that wrote it, so it is 0 for a model
against itself and above 0 for any text chosen this way; read the words, with their chance level.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.lab.data import Example, batches
from workbench.lab.recipe import Recipe
from workbench.lab.train import trainable, updates
from workbench.loaders import CheckpointPair
from workbench.loaders.devices import home
from workbench.models.sides import named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe, versions
from workbench.results.validity import finished
from workbench.stats import ratios
from workbench.stats.novelty import fresh_bigrams, overused
from workbench.tasks.batching import Encoded
from workbench.tasks.decoding import Choose, beginnings, contrasted, written
from workbench.tasks.kept import Kept
from workbench.tasks.prompts import PromptSet
from workbench.tasks.score import side_by_side

KEY = "behaviour.generate"
BASE, TUNED, CONTRAST, ITERATIVE = "base", "tuned", "contrast", "iterative"
ARMS = (BASE, TUNED, CONTRAST, ITERATIVE)
CONTRASTS = (CONTRAST, ITERATIVE)
FLAT = "contrast of the base with itself"
WORDS = 30  # told of each arm
Texts = list[list[int]]


@analysis(
    "What does the fine-tuned model write that the base does not?",
    paper="arXiv 2410.14765",
    example="--n 32",
    passes=12,
    takes={},
    quick={"n": 24, "length": 32, "rounds": 2},
    few={"prompts": 24},
    quick_passes=6,
    texts=True,
    items=True,
)
def generate(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[str] | None = None,
    *,
    arms: Sequence[str] = ARMS,
    n: int = 32,
    length: int = 48,
    alpha: float = 0.1,
    rounds: int = 4,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Result:
    """Write texts with the base, the tuned model and their contrast, and compare them.

    prompts: texts that are continued greedily, once each; None samples n texts from the start
    token. Only tokens that both models have are written. arms: which texts are written: base,
    tuned, contrast, iterative. n: the number of texts of each arm. length: the most tokens of a
    text. alpha: the least probability of a token, as a share of the tuned model's largest. rounds:
    the number of parts of the iterative texts; before each part a copy of the base is trained on
    the parts so far.

    The command line writes 24 texts of 32 tokens in 2 rounds, with --full 32 of 48 in 4.

    Returns a Result with rows text (arm, x: its number, prompt, text; value: novelty, log p_tuned -
    log p_base in nats per token), novelty per arm (0 for a model against itself; baseline: the base
    arm's), fresh, the share of a text's bigrams that no other text of its arm has (baseline: the
    tuned arm's), both with a 95% bootstrap interval over texts; and for each arm but the base the
    30 words it uses most beyond the base's texts (of a contrast: beyond the contrast of the base
    with itself, which draws alike from what the base finds plausible), rows word (word, count,
    other_count; value: z, see `novelty.overused`; baseline: the 95% quantile of the largest z where
    texts are dealt to the two arms at random). The texts of an arm are saved when it is done, so
    that the same call resumes after an interruption. Raises WorkbenchError for unknown arms, or a
    number that is out of range.
    """
    _require(arms, n, length, alpha, rounds)
    words = pair.base.tokenizer()
    begun = beginnings(words, prompts, n)
    stop = words.eos_token_id
    run: dict[str, Any] = {
        "stop": stop,
        "batch_size": batch_size,
        "seed": seed,
        "sample": prompts is None,
    }
    made: dict[str, Texts] = {}
    flat: Texts = []
    with pair.models(device, named_dtype(dtype)) as sides:
        models = (sides.base, sides.tuned)
        # What one side writes the other reads.
        run["known"] = min(len(model.get_input_embeddings().weight) for model in models)
        choose = contrasted(alpha)
        writers: dict[str, Callable[[], Texts]] = {
            BASE: lambda: written([models[0]], begun, length, **run),
            TUNED: lambda: written([models[1]], begun, length, **run),
            CONTRAST: lambda: written(models, begun, length, choose, **run),
            ITERATIVE: lambda: _iterative(pair, sides.tuned, begun, length, choose, rounds, run),
            FLAT: lambda: written([models[0]], begun, length, choose, **run),
        }
        how = (device, dtype, length, alpha, rounds, sorted(run.items(), key=str), begun)
        kept = _kept(pair, how)
        for arm in progress(arms, desc=f"{pair.name}: texts"):
            made[arm] = _once(kept, arm, len(begun), writers[arm])
        if set(arms) & set(CONTRASTS):  # what the same choice writes where nothing is new
            flat = _once(kept, FLAT, len(begun), writers[FLAT])
        novelty = {
            arm: _novelty(models, words, begun, texts, batch_size) for arm, texts in made.items()
        }
    spoken = {arm: [words.decode(ids) for ids in texts] for arm, texts in made.items()}
    plain = {arm: [words.decode(ids) for ids in flat] for arm in CONTRASTS}
    plain |= {TUNED: spoken[BASE]} if BASE in spoken else {}
    table = pd.DataFrame([
        *_texts(spoken, novelty, prompts), *_means(made, novelty, seed),
        *_words(spoken, plain, seed),
    ])  # fmt: skip
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "arms": list(arms), "n": len(begun), "length": length,
        "alpha": alpha, "rounds": rounds,
    }  # fmt: skip
    provenance = pair.provenance(parameters=parameters, seed=seed, device=str(device), dtype=dtype)
    return finished(KEY, table, provenance)


def _require(arms: Sequence[str], n: int, length: int, alpha: float, rounds: int) -> None:
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms:
        raise WorkbenchError(f"Expected arms of {', '.join(ARMS)}, found {list(arms)}.")
    if not 0 < alpha <= 1:
        raise WorkbenchError(f"alpha is a share in (0, 1], not {alpha}.")
    for name, value in (("n", n), ("length", length), ("rounds", rounds)):
        if value < 1:
            raise WorkbenchError(f"{name} must be at least 1, not {value}.")


def _kept(pair: CheckpointPair, how: Any) -> Kept | None:
    """Where this pair's texts are kept; a model in memory may change, so nothing of it is."""
    sides = (pair.base, pair.tuned)
    if any(isinstance(side.reference, nn.Module) for side in sides):
        return None
    return Kept(KEY, *(side.identity for side in sides), how, sorted(versions().items()))


def _once(kept: Kept | None, arm: str, count: int, make: Callable[[], Texts]) -> Texts:
    """The texts of an arm, written unless they are kept."""
    told = "" if kept is None else kept.known().get(arm, "")
    if told:
        texts = json.loads(told)
        if isinstance(texts, list) and len(texts) == count:
            return texts
    texts = make()
    if kept is not None:
        kept.put({arm: json.dumps(texts)})
    return texts


def _iterative(
    pair: CheckpointPair, tuned: Any, begun: Texts, length: int, choose: Choose, rounds: int,
    run: Mapping[str, Any],
) -> Texts:  # fmt: skip
    """Texts in rounds; a base of its own learns those of every round before the next."""
    recipe = Recipe(
        task="found", method="full", lr=1e-4, steps=16, batch_size=8, seed=run["seed"],
        max_length=10**6,
    )  # fmt: skip
    words = pair.base.tokenizer()
    base = trainable(copy.deepcopy(pair.base.load(home(tuned), torch.float32)), recipe).eval()
    found: Texts = []
    for part, places in enumerate(np.array_split(np.arange(len(begun)), min(rounds, len(begun)))):
        if part:
            known = [Example(b + f, len(b)) for b, f in zip(begun, found, strict=False) if f]
            if known:
                source = batches(known, recipe.batch_size, recipe.seed, words)
                steps = updates(base, recipe, source)
                for _ in progress(steps, total=recipe.steps, desc="the base learns"):
                    pass
        own: dict[str, Any] = dict(run) | {"seed": [run["seed"], part]}
        found += written([base, tuned], [begun[i] for i in places], length, choose, **own)
    return found


def _novelty(
    models: Sequence[Any], words: Any, begun: Texts, texts: Texts, batch_size: int
) -> list[float]:
    """log p_tuned - log p_base of each text in nats per token, NaN of an empty one."""
    found = [float("nan")] * len(texts)
    full = [i for i, ids in enumerate(texts) if ids]
    coded = [Encoded(begun[i] + texts[i], len(begun[i])) for i in full]
    for place, (base, tuned) in side_by_side(models, words, coded, batch_size):
        one = coded[place]
        targets = torch.tensor(one.ids[one.start :], device=base.device)[:, None]
        apart = tuned.to(base.device).gather(1, targets) - base.gather(1, targets)
        found[full[place]] = float(apart.mean())
    return found


def _texts(
    spoken: Mapping[str, Sequence[str]], novelty: Mapping[str, Sequence[float]],
    prompts: PromptSet | Sequence[str] | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    asked = [one if isinstance(one, str) else one.prompt for one in prompts or ()]
    for arm, texts in spoken.items():
        for i, text in enumerate(texts):
            told = {"arm": arm, "metric": "text", "x": float(i), "text": text}
            yield told | {"value": novelty[arm][i], "prompt": asked[i] if asked else ""}


def _means(
    made: Mapping[str, Texts], novelty: Mapping[str, Sequence[float]], seed: int
) -> Iterator[dict[str, Any]]:
    unseen = {arm: fresh_bigrams(texts) for arm, texts in made.items()}
    for metric, values, beside in (("novelty", novelty, BASE), ("fresh", unseen, TUNED)):
        found = {arm: ratios(np.asarray(own), seed=seed).first for arm, own in values.items()}
        baseline = found[beside].value if beside in found else np.nan
        for arm, interval in found.items():
            yield {"arm": arm, "metric": metric} | interval._asdict() | {"baseline": baseline}


def _words(
    spoken: Mapping[str, Sequence[str]], plain: Mapping[str, Sequence[str]], seed: int
) -> Iterator[dict[str, Any]]:
    for arm in [arm for arm in spoken if arm in plain]:
        table, chance = overused(spoken[arm], plain[arm], seed=seed)
        for rank, row in enumerate(table.head(WORDS).to_dict("records")):
            told = {"arm": arm, "metric": "word", "x": float(rank), "word": row["word"]}
            yield told | {
                "value": row["z"], "count": row["count"], "other_count": row["other_count"],
                "n": len(spoken[arm]) + len(plain[arm]), "baseline": chance,
            }  # fmt: skip
