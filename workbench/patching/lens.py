"""Logit lens: at which layer does each model of a pair reach its answer?

The stream behind every layer, at the prompt's last token, is read through the model's OWN final
norm and head as if the model ended there (nostalgebraist 2020, "interpreting GPT: the logit lens"):

    lens_l = head(norm(resid_post_l)),   and the embedding as layer -1

scored by the first token of the answer, for base and tuned, their difference paired over prompts,
and KL(tuned || base) in nats. If fine-tuning changed the head or the final norm, the tuned stream
is also read through the base's, so that a changed head is not mistaken for a changed stream.

It misleads in early layers, whose streams need not be written in the head's terms at all (a tuned
lens is trained for that: Belrose et al. 2023, arXiv 2303.08112): a low probability there does not
mean that the answer is not yet known. Two models whose bases drifted apart differ for that reason
alone. The sides part where a change is read out, which may be layers after the change: on the
compiled pair whose head finds another box, the layer that reads there stands out (AUROC .25;
`make truth`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Layout, Site
from workbench.models.rerun import Rerun
from workbench.models.sides import Sides, named_dtype
from workbench.patching.answered import answered
from workbench.patching.cross_model import with_answers
from workbench.patching.metrics import measured
from workbench.patching.reading import heads_differ, seen_through
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import ratios
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import Row, batch, in_batches, pad_id

KEY = "patching.lens"
METRICS = ("log_probability", "logit_difference", "rank", "score")
SHARED = "tuned, base's head"
EXAMPLES = 3


def depths(layout: Layout) -> list[Site]:
    """The streams that are read at the last token: the embedding's, then every layer's."""
    layers = [Site("resid_post", layer, position=-1) for layer in range(layout.layers)]
    return [Site("resid_pre", 0, position=-1), *layers]


def rank(logits: Tensor, answer: Tensor) -> Tensor:
    """1 + the number of tokens more likely than the answer, (batch,). logits: (batch, vocabulary);
    answer: (batch,)."""
    own = logits.gather(-1, answer[:, None])
    return 1.0 + (logits > own).sum(-1).float()


@analysis(
    "At which layer does each model reach its answer?",
    paper="logit lens, nostalgebraist 2020",
    example="--prompts task.jsonl",
    passes=3,
    takes={"prompts": "task"},
)
def lens(
    pair: CheckpointPair,
    prompts: PromptSet | Sequence[Prompt | str],
    *,
    top: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Read every layer's stream at the last prompt token through the model's final norm and head.

    prompts: prompts with answers, of which the first token is scored; in plain texts the answer is
    the token that the tuned model predicts next. top: the number of likeliest tokens of each layer
    and side that are saved, for the first prompts. dtype: "float32" or "bfloat16"; None means as
    stored.

    Returns a Result with columns side, layer (-1: the embedding), metric: `log_probability` (nats),
    `logit_difference` (to the best foil), `rank` (1: likeliest), `score` (fraction of prompts whose
    answer is the likeliest token), for the sides "base", "tuned" and, if the heads differ, "tuned,
    base's head"; the same for "SIDE - base", paired, with `kl` (nats), KL(SIDE || base). 95%
    bootstrap intervals over prompts, n; baseline: the base's value. `top_token`: the likeliest
    tokens (column token) by prompt, side, layer and place x (1: likeliest), log-probabilities.
    """
    if top < 0:
        raise WorkbenchError(f"Expected top to be 0 or more tokens, found {top}.")
    words = pair.base.tokenizer()
    given = [replace(row, answer=row.answer[:1]) for row in answered(words, prompts)]
    with pair.models(device, named_dtype(dtype)) as run:
        given, said = with_answers(run.tuned, "tuned", given, words, batch_size, device)
        job = _Lens(run, given, words, heads_differ(run), top, device)
        values, tokens = job.run(batch_size)
        notes = [f"{pair.name}: {note}" for note in (*said, run.described)]
    table = pd.concat([_table(values, seed), pd.DataFrame(tokens)], ignore_index=True)
    table.insert(0, "member", pair.name)
    table = table.astype({"layer": "Int64"})
    parameters = {"prompts": describe(prompts), "top": top}
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *notes)))


class _Lens(NamedTuple):
    """Both sides and the prompts they are run on. shared: whether the tuned stream is also read
    through the base's head."""

    sides: Sides
    given: Sequence[Row]
    words: Any
    shared: bool
    top: int
    device: str

    def run(
        self, batch_size: int
    ) -> tuple[dict[tuple[str, str], np.ndarray], list[dict[str, Any]]]:
        """(side, metric) -> (depths, prompts), and the rows of the likeliest tokens."""
        values: dict[tuple[str, str], np.ndarray] = {}
        tokens: list[dict[str, Any]] = []
        shape = (len(depths(self.sides.layout)), len(self.given))
        lengths = [len(row.fed) for row in self.given]
        bar = progress(total=len(self.given), desc="logit lens")
        with bar:
            for at, (scored, said) in in_batches(lengths, batch_size, self._batch):
                for (side, metric, depth), value in scored.items():
                    kept = values.setdefault((side, metric), np.full(shape, np.nan))
                    kept[depth, at] = value.cpu().numpy()
                tokens += said
                bar.update(len(at))
        # Batches come shortest first; the rows stand in the prompts' own order.
        order = {row.name: number for number, row in enumerate(self.given)}
        tokens.sort(key=lambda row: order[row["prompt"]])
        return values, tokens

    def _batch(
        self, at: list[int]
    ) -> tuple[dict[tuple[str, str, int], Tensor], list[dict[str, Any]]]:
        """(side, metric, depth) -> (batch,), and the rows of the likeliest tokens."""
        inputs = batch(self.given, at, self.device, pad_id(self.words))
        places = depths(self.sides.layout)
        read = {place.whole for place in places}
        base, tuned = (Rerun(side, inputs, read) for side in (self.sides.base, self.sides.tuned))
        found: dict[tuple[str, str, int], Tensor] = {}
        said: list[dict[str, Any]] = []
        answer = inputs.ids.new_tensor([row.answer[0] for row in inputs.rows])
        for depth, place in enumerate(places):
            # One depth at a time: logits of all depths at once would be many times the model's own.
            logits = {
                "base": seen_through(base.read(place), base),
                "tuned": seen_through(tuned.read(place), tuned),
            }
            if self.shared:
                logits[SHARED] = seen_through(tuned.read(place), base)
            for side, own in logits.items():
                scores = measured(logits["base"], inputs, own[0])
                found[side, "kl", depth] = scores["kl"][0]
                scores = measured(own, inputs)
                found |= {(side, m, depth): v[0] for m, v in scores.items() if m in METRICS}
                found[side, "rank", depth] = rank(own[0, :, 0].float(), answer)
                said += self._likeliest(own[0, :, 0], at, side, depth - 1)
        return found, said

    def _likeliest(self, logits: Tensor, at: list[int], side: str, layer: int) -> list[dict]:
        """Rows of the likeliest tokens of the first prompts. logits: (batch, vocabulary)."""
        made = []
        for row, number in enumerate(at):
            if number >= EXAMPLES or not self.top:
                continue
            best = logits[row].float().log_softmax(-1).topk(self.top)
            for place, (value, token) in enumerate(zip(*(t.tolist() for t in best), strict=True)):
                about = {"prompt": self.given[number].name, "side": side, "layer": layer}
                said = {"x": float(place + 1), "token": self.words.decode([token])}
                made.append(about | said | {"metric": "top_token", "value": value})
        return made


def _table(values: dict[tuple[str, str], np.ndarray], seed: int) -> pd.DataFrame:
    """Means over prompts of every side, and of its paired difference from the base."""
    tables = []

    def add(side: str, metric: str, own: np.ndarray, baseline: Any) -> None:
        about = pd.DataFrame({"side": side, "layer": range(-1, len(own) - 1), "metric": metric})
        tables.append(about.assign(**ratios(own, seed=seed)._asdict(), baseline=baseline))

    for (side, metric), own in values.items():
        if np.isnan(own).all():
            continue
        if metric == "kl":
            if side != "base":
                add(f"{side} - base", metric, own, 0.0)
            continue
        base = values["base", metric]
        add(side, metric, own, np.nanmean(base, 1))
        if side != "base":
            add(f"{side} - base", metric, own - base, 0.0)
    return pd.concat(tables, ignore_index=True)
