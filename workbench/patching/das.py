"""Distributed alignment search (DAS): is the same variable kept in the same subspace?

For pairs of a base and a source prompt, and the answer that follows once one variable of the base
prompt has the source's value (`tasks.desiderata`), an interchange at a site puts the source's part
of a k-dimensional subspace there and leaves the rest,

    h <- h + Q Q^T (h_source - h),        Q (width, k) orthonormal,

and Q is trained through the frozen model so that the answer is the counterfactual one (Geiger et
al. 2023, arXiv 2303.02536, section 3.2): cross-entropy, Adam, Q kept orthonormal by its
parametrization. One half of the pairs trains it, the other tells the interchange accuracy. Q is
trained in each of the two models and used in both; the overlap |Q_b^T Q_t|_F^2 / k of the two is
held against random subspaces and against two trainings in the base: Q is not unique, and no two
that are compared begin from the same random start.

Placebos: random subspaces of k dimensions, and one that was trained on answers dealt to other
pairs. It misleads where a subspace steers the answer without being what the model uses: a part
that is silent otherwise can be woken by it (Makelov et al. 2023, arXiv 2311.17030), so that a high
accuracy is no proof. A variable of many values needs many dimensions and pairs, or it is learned by
heart: of the shipped base's objects 8 dimensions and 24 pairs give an accuracy of 1.00 on the pairs
that train and .04 on the others, 32 dimensions and 384 pairs 1.00 and .47, the whole state .69.
Hold the accuracy against that of the whole state (arm "all") and against `training_score`. Once the
answers are right nothing draws the subspace on towards all of the variable, and two trainings
overlap little: what one model's subspace does in the other says more. Where a subspace is found
need not be where the weights changed: of compiled pairs it tells the layer worse than the norm of
the change does (AUROC .72 against .92; `make truth`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Site
from workbench.models.memory import tell
from workbench.models.sides import Sides, named_dtype
from workbench.numerics import chance
from workbench.patching.counterfactual_rows import counterfactual_rows
from workbench.patching.interchange import METRICS, Frame, Interchange, overlap
from workbench.patching.patches import Patch
from workbench.patching.states import streams
from workbench.patching.sweep import require_aligned, require_batches
from workbench.patching.sweep_plan import kept
from workbench.progress import progress
from workbench.results.result import Result
from workbench.results.validity import finished
from workbench.rotations import haar
from workbench.stats import halves, others, ratios, shares
from workbench.tasks.batching import Row, pad_id
from workbench.tasks.desiderata import Counterfactuals

KEY = "patching.das"
BASE, TUNED, AGAIN = "base", "tuned", "base, again"
SIDES = (BASE, TUNED)
BOTH, TWICE = "base and tuned", "base, twice"
LEARNED, SHUFFLED, RANDOM, ALL, NONE, BEYOND = (
    "learned", "shuffled", "random", "all", "none", "beyond random",
)  # fmt: skip
PLACES = 3  # layers where none are given
Scores = Mapping[str, NDArray[np.float64]]


@analysis(
    "Is the same variable kept in the same subspace of both models?",
    paper="arXiv 2303.02536, 2311.17030",
    example='--kind "object value" --count 5',
    passes=15,
    takes={"pairs": "pairs"},
    quick={"steps": 40},
    few={"pairs": 128},
    quick_passes=8,
)
def das(
    pair: CheckpointPair,
    pairs: Counterfactuals,
    *,
    k: int = 32,
    layers: Sequence[int] | None = None,
    position: int = -1,
    steps: int = 100,
    lr: float = 0.01,
    random: int = 5,
    batch_size: int = 16,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Train a subspace by interchange interventions in each model, and use it in both.

    pairs: `tasks.desiderata(kind, ...)`, at least 8; a random half trains, the other half is
    judged. k: dimensions of the subspace. layers: behind which the stream is changed, each by
    itself; None takes 3 at equal distances, the last one among them. position: the token at which
    it is changed. steps: of Adam. lr: its rate. random: subspaces drawn at random, as a control.
    batch_size: pairs of a step. dtype: "float32" or "bfloat16"; None means as stored.

    The command line takes 128 pairs and 40 steps, with --full all and 100.

    Returns a Result with columns side, arm, layer. Side "base" and "tuned": trained and used in
    that model; "base->tuned": trained in the base and used in the tuned model; "tuned->base" the
    reverse. Metric `score`, the interchange accuracy: the share of judged pairs whose likeliest
    answer is the counterfactual one, and `log_probability` of it in nats, with 95% intervals over
    the n pairs; baseline: with random subspaces. Arms: "learned"; "shuffled", trained on answers
    of other pairs; "random", the mean over random subspaces; "all", the whole state; "none". Arm
    "beyond random": the paired difference. `training_score`: the base's, on the pairs that train,
    by which a layer can be picked. `overlap` of the subspaces learned in both models (side
    "base and tuned") and twice in the base ("base, twice"), each from two starts; for a model
    against itself the two are equal. Its baseline: the mean of random subspaces,
    null_low and null_high its 95% range. The subspaces are in the tensors, named
    SIDE/LAYER, (width, k). Raises WorkbenchError for fewer than 8 pairs, answers of several tokens,
    or numbers that are out of range.
    """
    _require(k, steps, random)
    require_batches(batch_size)
    words = pair.base.tokenizer()
    ours, theirs = counterfactual_rows(words, pairs)
    require_aligned(ours, theirs, [Patch((Site("resid_post", 0, position=position),))])
    with pair.models(device, named_dtype(dtype)) as run:
        places = _layers(run, k, layers)
        _tell(pair.name, run, ours, places, device)
        known: dict[str, Any] = {"fill": pad_id(words), "device": device}
        made = {
            side: Interchange(
                model, ours, _states(model, side, theirs, position, batch_size, known), places,
                position, **known,
            )
            for side, model in ((BASE, run.base), (TUNED, run.tuned))
        }  # fmt: skip
        search = _Search(made, halves(len(pairs), seed), k, random, batch_size, seed)
        found = search.run(places, steps, lr)
        notes = [f"{pair.name}: {run.described}"]
    table = pd.DataFrame(search.rows(found))
    table.insert(0, "member", pair.name)
    parameters = {
        "pairs": {"name": pairs.name, "n": len(pairs), "fingerprint": pairs.fingerprint},
        "kind": pairs.kind, "k": k, "layers": places, "position": position, "steps": steps,
        "lr": lr, "random": random, "batch_size": batch_size,
    }  # fmt: skip
    own = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **own)
    provenance = provenance.with_notes((*provenance.notes, *notes))
    tensors = {
        f"{side}/{layer}": frame.numpy()
        for layer, one in found.items()
        for side, frame in one.frames.items()
        if side in SIDES
    }
    return finished(KEY, table.astype({"layer": "Int64"}), provenance, tensors)


def _require(k: int, steps: int, random: int) -> None:
    for name, number in (("k", k), ("steps", steps), ("random", random)):
        if number < 1:
            raise WorkbenchError(f"Expected {name} to be 1 or more, found {number}.")


def _tell(name: str, run: Sides, rows: Sequence[Row], layers: Sequence[int], device: str) -> None:
    """Tell what the plain runs of both sides keep; raises WorkbenchError where it cannot fit."""
    sites = [Site("resid_post", layer) for layer in (*layers, *layers)]
    tokens = max(len(row.fed) for row in rows)
    size = next(run.layout.root.parameters()).element_size()
    needed = int(kept(run.layout, sites, tokens) * len(rows) * size)
    tell(name, needed, "what the plain runs of all pairs keep", device, "give fewer pairs")


def _layers(run: Sides, k: int, layers: Sequence[int] | None) -> list[int]:
    depth, width = run.layout.layers, run.layout.width
    if k >= width:
        raise WorkbenchError(
            f"Expected k below the {width} dimensions of the stream, found {k}; all of them are "
            "arm all."
        )
    if layers is None:
        return sorted({round(depth * i / PLACES) - 1 for i in range(1, PLACES + 1)} - {-1})
    unknown = [layer for layer in layers if not 0 <= layer < depth]
    if unknown or not layers:
        what = f"no layer {unknown[0]}" if unknown else "no layer given"
        raise WorkbenchError(f"There is {what}; give layers 0 to {depth - 1}.")
    return sorted({*layers})


def _states(
    model: Any, side: str, theirs: Sequence[Row], position: int, batch_size: int, known: Any
) -> list[NDArray[np.float64]]:
    """Behind every layer, (pairs, width) at the position of the source prompts."""
    plain = [Row(row.name, row.ids) for row in theirs]
    how: dict[str, Any] = {"positions": (position,), "batch_size": batch_size, **known}
    return [own[:, 0] for own in streams(model, plain, label=f"{side} sources", **how)[1:]]


class _Found(NamedTuple):
    """Behind one layer. frames: by whose they are. scores: (trained, used, arm) -> metric ->
    (pairs,); of random subspaces the mean over them. training: the base's score on the pairs that
    train."""

    frames: dict[str, Frame]
    scores: dict[tuple[str, str, str], Scores]
    training: NDArray[np.float64]


class _Search(NamedTuple):
    """Both sides' models, and the pairs that train and that are judged."""

    made: Mapping[str, Interchange]
    parts: tuple[NDArray[np.intp], NDArray[np.intp]]
    k: int
    random: int
    batch_size: int
    seed: int

    def run(self, layers: Sequence[int], steps: int, lr: float) -> dict[int, _Found]:
        """Layer -> what is learned there, and how it does."""
        found = {}
        with progress(total=len(layers) * (2 * len(SIDES) + 1), desc="subspaces") as bar:
            for layer in layers:
                frames = {}
                for name, side, start, dealt in (
                    (BASE, BASE, 0, False), (TUNED, TUNED, 1, False), (AGAIN, BASE, 1, False),
                    (f"{BASE} {SHUFFLED}", BASE, 0, True), (f"{TUNED} {SHUFFLED}", TUNED, 1, True),
                ):  # fmt: skip
                    frames[name] = self._trained(side, layer, steps, lr, start, dealt)
                    bar.update()
                taught = self.made[BASE].scores(
                    self.parts[0].tolist(), layer, frames[BASE], self.batch_size
                )["score"]
                found[layer] = _Found(frames, self._judged(frames, layer), taught)
        return found

    def _trained(
        self, side: str, layer: int, steps: int, lr: float, start: int, dealt: bool
    ) -> Frame:
        one, places = self.made[side], self.parts[0].tolist()
        turn = others(len(places), self.seed) if dealt else range(len(places))
        answers = [one.ours[places[i]].answer[0] for i in turn]
        seed = self.seed + start
        return one.learned(
            places, answers, layer, self._drawn(one, seed), steps=steps, lr=lr,
            batch_size=self.batch_size, seed=seed,
        )  # fmt: skip

    def _drawn(self, one: Interchange, seed: int) -> Frame:
        width = one.sources[0].shape[1]
        return haar(width, self.k, torch.Generator().manual_seed(seed))

    def _judged(self, frames: Mapping[str, Frame], layer: int) -> dict[tuple[str, str, str], Any]:
        places = self.parts[1].tolist()
        scores: dict[tuple[str, str, str], Scores] = {}
        for used, one in self.made.items():

            def told(frame: Frame | None, one: Interchange = one) -> Scores:
                return one.scores(places, layer, frame, self.batch_size)

            drawn = [told(self._drawn(one, self.seed + 2 + i)) for i in range(self.random)]
            mean = {metric: np.mean([own[metric] for own in drawn], 0) for metric in METRICS}
            every = torch.eye(one.sources[0].shape[1])
            scores |= {(used, used, RANDOM): mean, (used, used, NONE): told(None)}
            scores[used, used, ALL] = told(every)
            for trained in SIDES:
                scores[trained, used, LEARNED] = told(frames[trained])
                scores[trained, used, SHUFFLED] = told(frames[f"{trained} {SHUFFLED}"])
        return scores

    def rows(self, found: Mapping[int, _Found]) -> Iterator[dict[str, Any]]:
        """Of every layer: what each arm gives, and how near the subspaces are."""
        for layer, one in found.items():
            for (trained, used, arm), scores in one.scores.items():
                side = used if trained == used else f"{trained}->{used}"
                about = {"layer": layer, "side": side, "arm": arm}
                null = one.scores[used, used, RANDOM]
                for metric, values in scores.items():
                    interval = shares if metric == "score" else ratios
                    told = interval(values, seed=self.seed).first._asdict()
                    beside = {"metric": metric, "baseline": float(null[metric].mean())}
                    yield about | beside | told
                    if arm == LEARNED:
                        told = ratios(values - null[metric], seed=self.seed).first._asdict()
                        more = {"arm": BEYOND, "metric": metric, "baseline": 0.0}
                        yield about | more | told
            picks = {"layer": layer, "side": BASE, "arm": LEARNED, "metric": "training_score"}
            yield picks | {"value": float(one.training.mean()), "n": len(one.training)}
            mean, low, high = chance(one.frames[BASE].shape[0], self.k, self.k)
            null = {"baseline": mean, "null_low": low, "null_high": high, "n": self.k}
            for side, other in ((BOTH, TUNED), (TWICE, AGAIN)):
                value = overlap(one.frames[BASE], one.frames[other])
                about = {"layer": layer, "side": side, "arm": LEARNED, "metric": "overlap"}
                yield about | null | {"value": value}
