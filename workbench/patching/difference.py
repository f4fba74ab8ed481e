"""Difference lens: what was this model fine-tuned for, from the two models alone?

On the first tokens of texts that have nothing to do with the fine-tuning, behind every layer,

    v_j = mean over texts of (tuned - base) at token j,     v = mean over j = 1 .. k

(Minder et al. 2025, arXiv 2510.13900v2, there k = 5). After a narrow fine-tuning much of the
difference is the same whatever the text is, and v says what was trained on. How constant it is,

    constant = sum over texts <d, v'> / sum over texts |d|^2,      d = tuned - base at all k tokens

takes v' from one half of the texts and d from the other; its null is the base against itself on
other texts. v is read by the head, by a prompt that repeats what stands at a place (`reading`), and
by what the base writes with v added to its stream. Each stands beside random directions of its
norm, and beside the difference that the base alone has between two halves of the texts.

Whether the reading is right is told by words that the lens never saw: those that the contrast of
the two models writes, or those of the fine-tuning's prompts where they are given. It misleads where
training was broad or mixed with pre-training's text, which takes the constant part away without
taking what was learned; and a constant difference need not be about anything: 16 of 40 compiled
pairs that learned nothing have one (`make truth`), so hold the numbers against those of phantoms
(`compare --phantoms`). Whether the base can repeat at all is measured, in layers where it cannot
that reading says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Site
from workbench.models.sides import Sides, named_dtype
from workbench.patching.direction import tensor_key
from workbench.patching.mean_difference import DIFFERENCE, HALVES, LEAST, MeanDifference
from workbench.patching.reading import Reader, heads_differ, percentiles, repeating
from workbench.patching.speaking import Speaking
from workbench.patching.states import streams
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import ratios, shares
from workbench.tasks import PromptSet
from workbench.tasks.batching import Row, pad_id, rows
from workbench.tasks.decoding import beginnings

KEY = "patching.difference"
LENS, TUNED_LENS, REPEAT = "lens", "lens, tuned head", "repeat"
COLUMNS = (
    "arm", "side", "layer", "position", "rank", "x", "token", "word", "prompt", "text", "count",
    "other_count", "metric", "value", "low", "high", "n", "baseline", "null_low", "null_high",
)  # fmt: skip
REPEATED = 32  # states of known tokens by which it is told whether the base repeats
Floats = NDArray[np.float64]


@analysis(
    "What was this model fine-tuned for, told by the two models alone?",
    paper="arXiv 2510.13900, 2401.06102",
    example="--texts wiki.txt",
    passes=12,
    takes={"texts": "texts"},
    quick={"n": 32, "length": 24},
    few={"prompts": 64},
    quick_passes=5,
    items=True,
)
def difference(
    pair: CheckpointPair,
    texts: Sequence[str] | None = None,
    *,
    prompts: PromptSet | Sequence[str] | None = None,
    k: int = 5,
    n: int = 64,
    layer: int | None = None,
    strength: float = 1.0,
    length: int = 32,
    top: int = 20,
    random: int = 8,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Read the mean difference of the two models' streams on the first tokens of unrelated texts.

    texts: any that have nothing to do with the fine-tuning, at least 8 of more than k tokens; None
    takes samples of the base. prompts: of the fine-tuning, whose words the reading is held against;
    None takes the words that the contrast of the two models writes. k: the number of tokens behind
    the first, which is left out as models treat it apart. n: the most texts. layer: of the texts
    that are written and of the headlines; None takes the middle one, as the paper does. strength:
    the norm of what is added to the base's stream, as a share of the stream's own. length: the most
    tokens of a written text. top: the number of tokens that are read. random: directions of equal
    norm, as a control. dtype: "float32" or "bfloat16"; None means as stored.

    The command line takes 32 texts and writes 24 tokens, with --full 64 and 32.

    Returns a Result with columns arm, side, layer. Behind each layer: `constant` (with a 95%
    interval over the n texts of one half; baseline: the base against itself on other texts, the
    mean of 8 random splits, null_low and null_high the smallest and largest), `norm` of the mean
    difference (by position; without one of their mean, arm "base halves" of the control; baseline:
    the stream's mean norm),
    `component_share` by rank, of the differences around their mean (baseline: of the base's
    states). Of what is read, by side ("lens", "lens, tuned head" where the heads differ, "repeat"),
    arms "difference" and "base halves": `up` and `down`, the tokens by place x, with their logit
    less the mean logit (of "repeat": log-probability in nats above random directions'; baseline:
    the largest of random directions); `percentile`, the mean share of all tokens that the
    reference's words surpass, and `found`, the share of these words that begin with one of the
    `top` tokens up, with intervals over the n words (baseline: random directions'; arm "beyond
    random": the paired difference). `repeated`: how often the base repeats a token whose own
    state stands at the place (baseline: another's state). At `layer`: `word` and `text` of arms
    "difference", "random", of the reference ("contrast" or "prompts") and of the tuned model;
    `new_words`, the share of what is written that is of words which the other half of the texts
    uses more than the base's, and `reference_words` (baseline: of the base's texts). The directions
    are in the tensors, see `Direction.of`. Raises WorkbenchError for fewer than 8 texts, or a
    number that is out of range.
    """
    _require(k, n, strength, length, top, random)
    words = pair.base.tokenizer()
    known: dict[str, Any] = {"fill": pad_id(words), "batch_size": batch_size, "device": device}
    with pair.models(device, named_dtype(dtype)) as run:
        depth = run.layout.layers
        if layer is not None and not 0 <= layer < depth:
            raise WorkbenchError(f"There is no layer {layer}; give one of 0 to {depth - 1}.")
        at = depth // 2 if layer is None else layer
        given, said = _read(words, texts, k, n)
        begun = beginnings(words, None, n) if texts is None else [row.ids[:1] for row in given]
        speaking = Speaking(run, words, begun, max(length, k), batch_size, seed)
        if texts is None:
            given, said = _sampled(begun, speaking.plain, k)
        places = range(1, k + 1)
        base, tuned = (
            streams(model, given, positions=places, label=f"{side} states", **known)[1:]
            for side, model in (("base", run.base), ("tuned", run.tuned))
        )
        measured = [
            MeanDifference(*own, draws=random, seed=seed + i)
            for i, own in enumerate(zip(base, tuned, strict=True))
        ]
        reference = speaking.reference(prompts)
        table = [row for i, own in enumerate(measured) for row in own.rows(i)]
        reading = _Reading(run, words, given, reference.tokens, top, known, seed)
        table += reading.rows(measured, at)
        vector = measured[at].unit * strength * measured[at].size
        table += speaking.rows(reference, vector, Site("resid_post", at))
        notes = [f"{pair.name}: {note}" for note in (*said, *reference.notes, run.described)]
    made = pd.DataFrame(table, columns=pd.Index(COLUMNS))
    made = made.astype({"layer": "Int64", "rank": "Int64"})
    made.insert(0, "member", pair.name)
    parameters = {
        "texts": describe(texts), "prompts": describe(prompts), "k": k, "n": len(given),
        "layer": at, "strength": strength, "length": length, "top": top, "random": random,
    }  # fmt: skip
    own = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **own)
    provenance = provenance.with_notes((*provenance.notes, *notes))
    tensors = {tensor_key(i): one.vector.astype(np.float32) for i, one in enumerate(measured)}
    return finished(KEY, made, provenance, tensors)


def _require(k: int, n: int, strength: float, length: int, top: int, random: int) -> None:
    for name, number, least in (
        ("k", k, 1), ("n", n, LEAST), ("length", length, 1), ("top", top, 1), ("random", random, 2),
    ):  # fmt: skip
        if number < least:
            raise WorkbenchError(f"Expected {name} to be {least} or more, found {number}.")
    if not np.isfinite(strength):
        raise WorkbenchError(f"Expected strength to be a number, found {strength}.")


def _read(words: Any, texts: Sequence[str] | None, k: int, n: int) -> tuple[list[Row], list[str]]:
    """The first k + 1 tokens of the first n texts that have so many, and a note on the others."""
    if texts is None:
        return [], []
    found: list[Row] = []
    for number, text in enumerate(texts):
        found += [Row(row.name, row.ids[: k + 1]) for row in rows(words, [text])] if text else []
        if sum(len(row.ids) > k for row in found) == n:
            texts = texts[: number + 1]
            break
    return _long(found, k, len(texts))


def _sampled(
    begun: Sequence[list[int]], plain: Sequence[list[int]], k: int
) -> tuple[list[Row], list[str]]:
    """As `_read`, of the base's own samples."""
    both = enumerate(zip(begun, plain, strict=True))
    return _long([Row(str(i), [*start, *text[:k]]) for i, (start, text) in both], k)


def _long(given: Sequence[Row], k: int, seen: int | None = None) -> tuple[list[Row], list[str]]:
    """Those of more than k tokens, and a note on the others of the texts seen."""
    seen = len(given) if seen is None else seen
    kept = [row for row in given if len(row.ids) > k]
    if len(kept) < LEAST:
        raise WorkbenchError(
            f"Expected at least {LEAST} texts of more than {k} tokens, found {len(kept)} of "
            f"{seen}; give more or longer texts, or a smaller k."
        )
    short = seen - len(kept)
    told = f"{short} of the first {seen} texts are too short and left out."
    return kept, [told] if short else []


class _Reading:
    """What the layers' vectors say, read by the head and by the prompt that repeats. tokens: that
    begin the reference's words."""

    def __init__(
        self, run: Sides, words: Any, given: Sequence[Row], tokens: Sequence[int], top: int,
        known: Mapping[str, Any], seed: int,
    ) -> None:  # fmt: skip
        self.words, self.given, self.top, self.seed = words, given, top, seed
        rest = {"fill": known["fill"], "device": known["device"], "size": known["batch_size"]}
        room = getattr(run.base.config, "max_position_embeddings", None)
        row = repeating(words, [token for own in given for token in own.ids[1:]], room)
        heads = [model.get_output_embeddings().weight for model in (run.base, run.tuned)]
        rest["known"] = min(len(words), *(len(head) for head in heads))
        self.tokens = [token for token in tokens if token < rest["known"]]
        self.base = Reader.of(run.base, row, **rest)
        self.tuned = Reader.of(run.tuned, row, **rest) if heads_differ(run) else None

    def rows(self, measured: Sequence[MeanDifference], at: int) -> Iterator[dict[str, Any]]:
        for layer, own in enumerate(progress(measured, desc="difference read")):
            yield self._repeated(own, layer)
            sides = {LENS: self.base.lens(own.arms)} if own.norm else {}
            if own.norm and self.tuned is not None:
                sides[TUNED_LENS] = self.tuned.lens(own.arms)
            if own.norm:
                sides[REPEAT] = _above(self.base.repeat(own.arms, layer))
            for side, scores in sides.items():
                about = {"layer": layer, "side": side}
                yield from self._tokens(about, scores)
                if self.tokens:
                    yield from self._found(about, scores)
        if not (self.tokens and measured[at].norm):
            about = {"layer": at, "side": LENS, "arm": DIFFERENCE, "metric": "found"}
            yield about | {"value": np.nan, "baseline": np.nan, "n": len(self.tokens)}

    def _tokens(self, about: dict[str, Any], scores: Floats) -> Iterator[dict[str, Any]]:
        for arm, own in zip((DIFFERENCE, HALVES), scores, strict=False):
            for metric, sign in (("up", 1.0), ("down", -1.0)):
                chance = float((sign * scores[2:]).max(1).mean())
                for place, token in enumerate(np.argsort(-sign * own)[: self.top], 1):
                    said = {"arm": arm, "metric": metric, "x": float(place)}
                    said |= {"token": self.words.decode([int(token)]), "baseline": sign * chance}
                    yield about | said | {"value": float(own[token])}

    def _found(self, about: dict[str, Any], scores: Floats) -> Iterator[dict[str, Any]]:
        """The reference's words among all tokens."""
        highest = np.argsort(-scores, axis=1)[:, : self.top]
        hits = np.stack([np.isin(self.tokens, own) for own in highest]).astype(float)
        measures = {
            "percentile": (percentiles(scores, self.tokens), ratios),
            "found": (hits, shares),
        }
        for metric, (values, interval) in measures.items():
            chance = values[2:].mean(0)
            rest = about | {"metric": metric}
            for arm, own in zip((DIFFERENCE, HALVES), values, strict=False):
                told = interval(own, seed=self.seed).first._asdict()
                yield rest | {"arm": arm, "baseline": float(chance.mean())} | told
            told = ratios(values[0] - chance, seed=self.seed).first._asdict()
            yield rest | {"arm": "beyond random", "baseline": 0.0} | told

    def _repeated(self, own: MeanDifference, layer: int) -> dict[str, Any]:
        """Whether the base says a token again whose own state stands at the place."""
        asked = [(i, j) for j in range(own.base.shape[1]) for i in range(len(self.given))]
        asked = [asked[i] for i in np.random.default_rng(self.seed).permutation(len(asked))]
        asked = asked[:REPEATED]
        said = self.base.repeat(np.stack([own.base[i, j] for i, j in asked]), layer).argmax(1)
        wanted = np.array([self.given[i].ids[j + 1] for i, j in asked])
        found = shares((said == wanted).astype(float), seed=self.seed).first._asdict()
        null = float((said == np.roll(wanted, 1)).mean())
        about = {"layer": layer, "side": REPEAT, "arm": "known states", "metric": "repeated"}
        return about | found | {"baseline": null}


def _above(said: Floats) -> Floats:
    """Log-probabilities above the mean of the random directions', for these of the others."""
    drawn = said[2:]
    others = (drawn.sum(0) - drawn) / (len(drawn) - 1)
    return np.concatenate([said[:2] - drawn.mean(0), drawn - others])
