"""The preflight: do these two checkpoints belong together, and what limits a comparison?"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from workbench.conveniences import provides
from workbench.errors import WorkbenchError, some
from workbench.loaders import check_adapter
from workbench.loaders.changes import measured
from workbench.loaders.config_differences import computing, unheeded, writing
from workbench.loaders.pair_report import NOTE, OK, STOP, WARN, Line, PairReport
from workbench.loaders.quantised import quantisation
from workbench.loaders.tokenizer_files import chat_template, token_ids
from workbench.results.result import PLACE

if TYPE_CHECKING:
    from workbench.loaders.checkpoint import Checkpoint
    from workbench.loaders.pair import CheckpointPair

SMALL = 10**9  # bytes of both sides, which are run without being asked to
FEW, MOST = 0.1, 0.9  # of the base's entries matched: below, nothing can be said; above, all
SIZES = ("hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads")


@provides("CheckpointPair.check")
def check(
    pair: CheckpointPair,
    *,
    read: bool = True,
    run: bool | None = None,
    fingerprints: bool = False,
) -> PairReport:
    """Ask every preflight question of a pair.

    read: also read every tensor once, for NaN and inf and for which parameters changed and by how
    much. run: also hold the logits of both sides, one after the other, against a plain loading by
    transformers and peft; None does so where they are small, see `SMALL`, and once only of a
    checkpoint (remembered by its fingerprint); False does not.
    fingerprints: take both sides' in the same reading, for what is run next.
    Nothing is raised for a bad pair; `PairReport.require` does that.
    """
    lines, changes = _answers(pair, factors=read), None
    good = not any(status == STOP for _, status, _, _ in lines)
    if good and (run or (run is None and read and _bytes(pair) < SMALL)):
        lines.extend(_runs(pair, anew=bool(run)))
    if read and good and not check_adapter.unformed(pair):
        changes, found = _changes(pair, fingerprints)
        lines.extend(found)
    return _report(lines, changes)


def _bytes(pair: CheckpointPair) -> int:
    infos = [info for side in (pair.base, pair.tuned) for info in side.weights().info.values()]
    return sum(math.prod(info.shape) * info.dtype.itemsize for info in infos if info.dtype)


def _runs(pair: CheckpointPair, *, anew: bool) -> Iterator[Line]:
    from workbench.loaders.run_check import require_runs

    for side, one in (("base", pair.base), ("tuned", pair.tuned)):
        try:
            require_runs(one, anew=anew)
        except WorkbenchError as error:
            remedy = "Analyses of the weights can run; analyses that run the model are refused."
            yield "runs", WARN, f"the {side} model cannot be run: {str(error).rstrip('.')}", remedy
            return
    found = "both models load completely, and every parameter is as it was read"
    yield "runs", OK, f"{found}; their logits agree with those of transformers and peft", ""


@provides("CheckpointPair.limits")
def limits(pair: CheckpointPair) -> PairReport:
    """What stands beside every number of a pair: all that headers and an adapter's factors say."""
    return _report(_answers(pair, factors=True), None)


def _answers(pair: CheckpointPair, *, factors: bool) -> list[Line]:
    """The answers of all questions but those that take every parameter. factors: read those of an
    adapter too, not headers alone."""
    questions: tuple[Callable[[CheckpointPair], Iterator[Line]], ...] = (
        _base, _order, _architecture, _config, _settings, _names, _shapes, _tied, _quantised,
        _dtype, check_adapter.which, check_adapter.keys, check_adapter.shapes,
        *([check_adapter.effect] if factors else []), check_adapter.start, _vocabulary,
    )  # fmt: skip
    return [line for question in questions for line in question(pair)]


def _report(lines: list[Line], changes: pd.DataFrame | None) -> PairReport:
    return PairReport(pd.DataFrame(lines, columns=["item", "status", "found", "remedy"]), changes)


def _base(pair: CheckpointPair) -> Iterator[Line]:
    if pair.base.adapter is not None:
        remedy = (
            "Merge the adapter into whole weights first (peft's merge_and_unload), or "
            "give its own base."
        )
        yield "base", STOP, f"the base is a model with an adapter, {pair.base.name}", remedy


def _order(pair: CheckpointPair) -> Iterator[Line]:
    """Which side was trained from which, where lab.train left word of it."""
    ours, theirs = pair.base.training, pair.tuned.training
    if ours is not None and theirs is None and pair.base.adapter is None:
        found = f"{pair.base.name} records a training run, and {pair.tuned.name} does not"
        yield (
            "order",
            WARN,
            found,
            "Check whether the two models are swapped; the base comes first.",
        )


def _architecture(pair: CheckpointPair) -> Iterator[Line]:
    ours, theirs = pair.base.config, pair.tuned.config
    kinds = [c.get("model_type", "unknown") for c in (ours, theirs)]
    # A language model alone, or in its multimodal one.
    kinds = [str(kind).removesuffix("_text") for kind in kinds]
    different = [k for k in SIZES if k in ours and k in theirs and ours[k] != theirs[k]]
    if kinds[0] != kinds[1] and "unknown" not in kinds:
        found = f"base is {kinds[0]}, tuned is {kinds[1]}"
        yield "architecture", STOP, found, "Give the checkpoint that was fine-tuned from this base."
    elif different:
        found = ", ".join(f"{k} {ours[k]} against {theirs[k]}" for k in different)
        yield "architecture", STOP, found, "Give the base this checkpoint was fine-tuned from."
    else:
        yield "architecture", OK, kinds[0], ""


def _config(pair: CheckpointPair) -> Iterator[Line]:
    if pair.base.folder is not None and pair.base.folder == pair.tuned.folder:
        return
    ours, theirs = pair.base.config, pair.tuned.config
    if not ours or not theirs:
        return
    differ = computing(ours, theirs, (pair.base.folder, pair.tuned.folder))
    if differ:
        remedy = (
            "With this, the same weights compute something else, so a run also shows that "
            "difference."
        )
        yield "config", WARN, some(differ), remedy
    else:
        yield "config", OK, "both compute the same function of their weights", ""
    if written := writing(ours, theirs):
        yield "generation", NOTE, some(written), "Texts begin or end differently."


def _settings(pair: CheckpointPair) -> Iterator[Line]:
    for side, one in (("base", pair.base), ("tuned", pair.tuned)):
        asked = unheeded(one.folder) if one.folder is not None else []
        if asked and (side == "base" or one.folder != pair.base.folder):
            found = f"generation_config.json of {side} asks for {some(asked)}"
            remedy = "It is left out: texts are written with the settings that an analysis states."
            yield "generation", NOTE, found, remedy


def _names(pair: CheckpointPair) -> Iterator[Line]:
    base, tuned = pair.base.weights(), pair.tuned.weights()
    if not pair.matched:
        found = (
            f"none of the {len(base)} parameter names of the base is among the "
            f"{len(tuned)} of the tuned model"
        )
        remedy = (
            f"The base has for example {next(iter(base))}, the tuned model "
            f"{next(iter(tuned))}; check both."
        )
        yield "names", STOP, found, remedy
        return
    share = _matched_share(pair)
    remedy = "Give the base this checkpoint was fine-tuned from."
    if share < FEW:
        found = f"only {share:.0%} of the base's weights are matched, {some(list(pair.matched))}"
        yield "names", STOP, found, remedy
    elif share < MOST:
        found = f"{len(pair.matched)} parameters matched, {share:.0%} of the base's weights"
        yield "names", WARN, found, "The rest is left out, so no result holds for the whole model."
    else:
        yield "names", OK, f"{len(pair.matched)} parameters matched", ""
    for side, missing in (
        ("base", [n for n in base if n not in pair.matched]),
        ("tuned", [n for n in tuned if n not in set(pair.matched.values())]),
    ):
        if missing:
            many = len(missing) > len(pair.matched)
            found = f"{len(missing)} only in {side}: {some(missing)}"
            yield "unmatched names", WARN if many else NOTE, found, "They are left out."


def _matched_share(pair: CheckpointPair) -> float:
    """The part of the base's entries that has a counterpart, of whatever shape."""
    info = pair.base.weights().info
    sizes = {name: math.prod(known.shape) for name, known in info.items()}
    whole = sum(sizes.values())
    return sum(sizes[name] for name in pair.matched) / whole if whole else 1.0


def _shapes(pair: CheckpointPair) -> Iterator[Line]:
    if not pair.matched:
        return
    ours, theirs = pair.base.weights().info, pair.tuned.weights().info
    differ = [b for b in pair.matched if b not in pair.comparable]
    for before, after in dict.fromkeys(pair.resized.values()):
        names = [name for name, rows in pair.resized.items() if rows == (before, after)]
        found = f"{before} tokens in base, {after} in tuned, by {some(names)}"
        side = "tuned" if after > before else "base"
        remedy = (
            f"The first {min(before, after)} are compared; the {abs(after - before)} that only "
            f"{side} has are in no comparison of weights."
        )
        yield "resized vocabulary", NOTE, found, remedy
    if differ:
        found = some([f"{b} {ours[b].shape} to {theirs[pair.matched[b]].shape}" for b in differ])
        if 2 * len(differ) > len(pair.matched):
            remedy = "Most shapes differ: give the base this checkpoint was fine-tuned from."
            yield "shapes", STOP, found, remedy
        else:
            remedy = "They are left out."
            yield "shapes", WARN, found, remedy
    else:
        yield "shapes", OK, "all matched shapes agree", ""


def _tied(pair: CheckpointPair) -> Iterator[Line]:
    ties = [bool(c.config.get("tie_word_embeddings")) for c in (pair.base, pair.tuned)]
    if ties[0] != ties[1]:
        found = f"embeddings tied in base: {ties[0]}, in tuned: {ties[1]}"
        yield (
            "tied weights",
            NOTE,
            found,
            "In the model with tied embeddings the head is the embedding, and is compared as that.",
        )
    else:
        yield "tied weights", OK, "tied, counted once" if ties[0] else "not tied", ""


def _quantised(pair: CheckpointPair) -> Iterator[Line]:
    for side, one in (("base", pair.base), ("tuned", pair.tuned)):
        how = quantisation(one.config)
        if how and (side == "base" or not pair.shared_base):
            found = f"{side} is quantised ({how})"
            remedy = (
                "Its matrices are unpacked; compared with unquantised ones, rounding is "
                "part of every change."
            )
            yield "quantised", NOTE, found, remedy
    sealed = {n: known.sealed for n, known in pair.base.weights().info.items() if known.sealed}
    sealed |= {n: known.sealed for n, known in pair.tuned.weights().info.items() if known.sealed}
    if not sealed:
        return
    if pair.shared_base:
        found = f"{len(sealed)} matrices of the base are packed in a form that cannot be read"
        remedy = "Analyses of what the adapter adds can run; those that need the base are refused."
        yield "packed matrices", NOTE, found, remedy
    else:
        found, _, remedy = next(iter(sealed.values())).partition("; ")
        yield "packed matrices", STOP, found, remedy[:1].upper() + remedy[1:]


def _dtype(pair: CheckpointPair) -> Iterator[Line]:
    kinds = []
    for checkpoint in (pair.base, pair.tuned):
        found = {str(i.dtype).removeprefix("torch.") for i in checkpoint.weights().info.values()}
        kinds.append("+".join(sorted(found)))
    if kinds[0] != kinds[1]:
        found = f"base is stored as {kinds[0]}, tuned as {kinds[1]}"
        remedy = (
            "Rounding is part of every difference and fills its spectrum; use the same "
            "precision for both."
        )
        yield "dtype", WARN, found, remedy
    elif "16" in kinds[0] and not pair.shared_base:
        found = f"both stored as {kinds[0]}"
        yield "dtype", NOTE, found, "Changes below half a unit in the last place cannot be seen."
    else:
        yield "dtype", OK, kinds[0], ""


def _words_folder(side: Checkpoint) -> Path | None:
    """Where its tokenizer lies: an adapter may bring its own."""
    if side.adapter is not None and os.path.exists(Path(side.adapter) / "tokenizer.json"):
        return Path(side.adapter)
    return side.folder


def _vocabulary(pair: CheckpointPair) -> Iterator[Line]:
    before, after = pair.base.folder, _words_folder(pair.tuned)
    if before is None or after is None or before == after:
        return
    ours, theirs = token_ids(before), token_ids(after)
    if ours is None or theirs is None:
        sides = [side for side, ids in (("base", ours), ("tuned", theirs)) if ids is None]
        found = f"there is no tokenizer.json in {' and '.join(sides)}"
        yield "tokenizer", NOTE, found, "It is assumed that token ids mean the same in both models."
    elif moved := [t for t, i in ours.items() if theirs.get(t, i) != i]:
        found = f"{len(moved)} tokens have another id in the tuned model: {some(moved)}"
        yield (
            "tokenizer",
            WARN,
            found,
            "The two models read prompts differently; the embeddings are permuted.",
        )
    elif ours.keys() != theirs.keys():
        found = f"vocabulary of {len(ours)} against {len(theirs)} tokens"
        yield "tokenizer", NOTE, found, "Shared tokens keep their ids."
    else:
        yield "tokenizer", OK, f"{len(ours)} tokens, same ids", ""
    if chat_template(before) != chat_template(after):
        yield "chat template", NOTE, "differs", "State which one formats your prompts."


def _changes(pair: CheckpointPair, fingerprints: bool) -> tuple[pd.DataFrame, list[Line]]:
    found = measured(pair, fingerprints=fingerprints)
    lines: list[Line] = [
        ("finite", STOP, one.problem.rstrip("."), "") for one in found if one.problem
    ]
    rows = [
        (one.site.name, *one.site.at, one.norm,
         one.norm / one.base if one.base else float("nan"))
        for one in found
        if not one.problem
    ]  # fmt: skip
    columns = ["name", *PLACE, "norm", "relative_norm"]
    table = pd.DataFrame(rows, columns=pd.Index(columns)).astype({"expert": "Int64"})
    if not lines:
        lines.append(("finite", OK, "no NaN or inf", ""))
    moved = table[table["norm"] > 0]
    said = f"{len(moved)} of {len(table)} parameters changed"
    # Of a parameter that was zero nothing is relative.
    relative = moved["relative_norm"].replace(float("inf"), float("nan")).dropna()
    if len(relative):
        most = table.loc[relative.idxmax()]
        said += f", {most['name']} most (relative norm {most['relative_norm']:.3g})"
    elif len(moved):
        most = table.loc[moved["norm"].idxmax()]
        said += f", {most['name']} most (norm {most['norm']:.3g}, where the base has zeros)"
    remedy = ""
    if not len(moved) and _equal(pair):
        remedy = "The tuned model equals the base, so every analysis gives its exact null."
    elif not len(moved):
        remedy = "The compared weights are equal, but the differences reported above remain."
    info = pair.base.weights().info
    matrices = [
        (one.norm, one.base) for one in found
        if not one.problem and len(info[one.site.name].shape) > 1
    ]  # fmt: skip
    change = math.sqrt(sum(norm**2 for norm, _ in matrices))
    size = math.sqrt(sum(base**2 for _, base in matrices))
    if change > size > 0:
        lines.append(
            ("size", WARN, f"the change is {change / size:.2g} times as large as the base",
             "Fine-tuning does not change a model so much; give the base this "
             "checkpoint was fine-tuned from.")
        )  # fmt: skip
    lines.append(("changes", OK if len(moved) else WARN, said, remedy))
    return table, lines


def _equal(pair: CheckpointPair) -> bool:
    """Whether equal weights make equal models: all are compared, and the configs agree."""
    complete = len(pair.comparable) == len(pair.matched) and _matched_share(pair) >= MOST
    complete = complete and not check_adapter.fresh_biases(pair)
    return complete and not any(status == WARN for _, status, _, _ in _config(pair))
