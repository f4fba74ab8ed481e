"""How few bits hold what fine-tuning taught?

theta_0 + P(delta), scored against the bits that P(delta) takes to store beside a base one has:
  rank       the top k singular triplets of every matrix: 16 k (out + in)
  1-bit      sign(delta) . mean|delta|: a bit for each of the m entries of n that changed, log2
             C(n, m) to say which (0 where all did), 16 for the scale (BitDelta, arXiv 2402.10193)
  tiered     singular vectors at 8, 3 and 2 bits (Delta-CoMe, arXiv 2406.08903), of each as many as
             there for a matrix of 4096: b (out + in) a triplet, 16 for each vector's scale
  movement   the n largest |delta| of all: 16 n, and log2 C(N, n) to say which, the entropy bound
  principal  n entries where the base's best low-rank part is largest (LIFT, arXiv 2506.00772)
  random     n entries at random, averaged over seeds; counted alike, as the control
  tuned      16 an entry of every parameter that changed; adapter: 16 a number in a LoRA's own file
  whole      no change but the fine-tuned matrices themselves, truncated: the largest share of the
             singular values of each, at 16 r (out + in); asked for by `whole`
N counts every entry of the base, and a parameter that did not change stores nothing. Vectors
(norms, biases) are kept whole, 16 bits an entry, in every arm but the masks. A number counted as 16
bits is used as it is, unrounded: a curve shows the method's own loss. It misleads as a comparison
of published methods, which calibrate on data (BitDelta distils its scales, Delta-CoMe quantises
with GPTQ) or train under their mask (LIFT); here all are applied afterwards, to the same change.

Truncating W is said to tell prompts unlike the task's apart (SeTAR, Li et al. 2024, arXiv
2406.12629, which chooses a share for each matrix by a greedy search, as `greedy_matrices` does):
"auroc" is the chance that the model is more confident of the first token on one of the prompts than
on one of another set, 1/2 if it cannot tell them apart; "energy_auroc" that its energy, -log sum
exp of the logits there, is lower (Liu et al. 2020, arXiv 2010.03759).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair, Delta
from workbench.loaders.names import ParameterSite
from workbench.models import Edit, edit, one_bit, tiered, truncated
from workbench.models.edits import once, tiers_of
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.skills import rankings
from workbench.skills.graft import graft_of, top
from workbench.skills.scoring import Readout
from workbench.skills.truncation import Truncation, greedily, told_apart
from workbench.tasks import PromptSet

KEY = "skills.compression"
NUMBER = 16  # bits
RANKS = (1, 2, 4, 8, 16, 32, 64)
SPARSITIES = (1e-3, 1e-2, 0.05, 0.1, 0.2)
MASKS = ("movement", "principal", "random")


def rank_bits(shape: Sequence[int], rank: int) -> int:
    """Bits of `rank` singular triplets of an (out, in) matrix, the values inside one side."""
    return NUMBER * rank * sum(shape)


def one_bit_bits(entries: int, moved: int) -> float:
    """Bits of the signs of the entries that moved, of which these are, and of the one scale."""
    return moved + places(moved, entries) + NUMBER


def tier_bits(
    shape: Sequence[int], width: int, tiers: Sequence[tuple[int, int]] | None = None
) -> int:
    """Bits of the first `width` singular triplets at (how many, bits), the rest dropped; tiers None
    takes `tiers_of` the shape."""
    total = 0
    for many, bits in tiers or tiers_of(shape):
        taken = min(many, width)
        total += taken * (bits * sum(shape) + 2 * NUMBER)
        width -= taken
    return total


def mask_bits(chosen: int, total: int) -> float:
    """Bits of `chosen` of `total` entries, and of which they are."""
    return NUMBER * chosen + places(chosen, total)


def places(chosen: int, total: int) -> float:
    """log2 C(total, chosen), the bits that say which they are."""
    logs = [math.lgamma(n + 1) for n in (total, chosen, total - chosen)]
    return max(0.0, logs[0] - logs[1] - logs[2]) / math.log(2)


def width(delta: Delta) -> int:
    """How many singular triplets a matrix's change has at most."""
    return delta.factors.up.shape[1] if delta.factors is not None else min(delta.base.shape)


@analysis(
    "In how few bits can the change of the weights be stored without losing the skill?",
    paper="arXiv 2402.10193, 2406.08903",
    example="--prompts task.jsonl",
    passes=20,
    takes={"prompts": "task", "others": "others"},
    quick={"ranks": (1, 4, 16), "sparsities": (0.01, 0.1), "random": 1},
    few={"prompts": 32, "others": 32},
    quick_passes=16,
)
def compression(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    ranks: Sequence[int] = RANKS,
    sparsities: Sequence[float] = SPARSITIES,
    random: int = 3,
    others: Sequence[PromptSet] = (),
    whole: Sequence[float] = (),
    greedy_matrices: int = 0,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Score the base plus the change at fewer and fewer bits.

    ranks: the ranks of arm "rank", at most the change's own. sparsities: the shares of N that a
    mask takes, at most all entries of the parameters that changed. random: the number of random
    masks of each size. others: further prompt sets that are scored. whole: the shares of singular
    values that are left of the fine-tuned matrices themselves; none by default. greedy_matrices:
    how many of the last matrices also get a share of their own among `whole`, or stay whole, chosen
    on one half of the prompts and reported on the other; 0 leaves this out. dtype: "float32" or
    "bfloat16", the precision in which the model runs; None means as stored. An adapter is merged in
    float32. Each matrix's change is decomposed once; the factors of all, about as large as the
    model in float32 (for an adapter: as large as the adapter), stay in memory.

    The command line takes 32 prompts, ranks 1, 4 and 16, sparsities 0.01 and 0.1 and 1 random draw;
    with --full all prompts, seven ranks, five sparsities and 3 draws.

    Returns a Result with columns arm, rank or sparsity (as asked), x (stored bits over N), task,
    own (whether that set is `prompts`), metric: those of `Readout.rows`, each with a 95% interval
    over prompts; "bits", in total; "ratio", the bits of arm "tuned" over them; and "N", here every
    parameter of both sides, outside the blocks too. "auroc" and "energy_auroc" of base, tuned and
    whole for each of `others`, with 95% intervals, baseline the base's. Ends: "base" (0 bits),
    "tuned", and of a LoRA "adapter", the same model at the bits of its file. Of greedy_matrices the
    arms "greedy" (with share by layer and component), "dealt at random", the same shares among the
    same matrices as control, and "tuned, reported half", all of the half that did not choose.
    Raises WorkbenchError for a rank below 1, a sparsity outside (0, 1], or a pair without change.
    """
    if any(rank < 1 for rank in ranks):
        raise WorkbenchError(f"Expected ranks of at least 1, found {list(ranks)}.")
    if not all(0 < s <= 1 for s in sparsities):
        raise WorkbenchError(f"Expected sparsities in (0, 1], shares of N; found {sparsities}.")
    if not all(0 < share <= 1 for share in whole):
        raise WorkbenchError(f"Expected whole in (0, 1], shares of singular values; found {whole}.")
    if random < 1:
        raise WorkbenchError(f"Expected at least 1 random mask, found {random}.")
    if greedy_matrices < 0 or greedy_matrices == 1:
        raise WorkbenchError(
            "Expected greedy_matrices of 0, or of 2 or more, whose shares can be dealt anew as a "
            f"control; found {greedy_matrices}."
        )
    if greedy_matrices and not any(share < 1 for share in whole):
        raise WorkbenchError(
            f"Expected shares below 1 to choose from for {greedy_matrices} matrices, found "
            f"{list(whole)}; give whole, for example 0.5,0.9."
        )
    held, sets = pair.held(device), (prompts, *others)
    changed = [s for s in held.sites("all") if held.delta(s).changed]
    if not changed:
        raise WorkbenchError(
            f"{pair.name} equals its base, so there is no change to compress; give "
            "another fine-tuned model."
        )
    readout = Readout.of(held, sets, batch_size=batch_size, seed=seed, device=device, dtype=dtype)
    total = sum(held.delta(s).base.numel() for s in held.sites("all"))
    dense = NUMBER * sum(held.delta(s).base.numel() for s in changed)
    rows = readout.rows(readout.base, arm="base", x=0.0)
    rows += [{"arm": "base", "metric": "bits", "value": 0.0, "x": 0.0, "own": True}]
    rows += [{"metric": "N", "value": total, "own": True}]
    ends = [("tuned", dense)]
    if pair.tuned.lora is not None:
        stored = pair.tuned.lora.weights.info.values()
        ends.append(("adapter", NUMBER * sum(math.prod(one.shape) for one in stored)))
    for arm, bits in ends:
        rows += readout.rows(readout.tuned, arm=arm, x=bits / total)
        rows += _sizes({"arm": arm, "x": bits / total}, bits, dense)
    for arm, reading in (("base", readout.base), ("tuned", readout.tuned)):
        rows += told_apart(readout, reading, {"arm": arm})
    # Made one after the other, so that a decomposition is let go when its arms are done.
    ways = chain(
        _projected(held, changed, ranks), _masked(held, changed, total, sparsities, random, seed)
    )
    for one in progress(ways, desc=f"compression {pair.name}"):
        about = one.about | {"x": one.bits / total}
        rows += readout.rows(*(readout.read(make()) for make in one.edits), **about)
        rows += _sizes(about, one.bits, dense)
    for one in progress(list(_whole(held, whole)), desc="whole matrices"):
        about = one.about | {"x": one.bits / total}
        reading = readout.read(one.edits[0]())
        rows += readout.rows(reading, **about) + _sizes(about, one.bits, dense)
        rows += told_apart(readout, reading, about)
    if greedy_matrices:
        rows += greedily(readout, prompts, whole, greedy_matrices)
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "others": describe(list(others)), "ranks": list(ranks),
        "sparsities": list(sparsities), "random": random, "whole": list(whole),
        **({"greedy_matrices": greedy_matrices} if greedy_matrices else {}),
        "batch_size": batch_size, "weights": "merged",
    }  # fmt: skip
    about = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    return finished(KEY, table, pair.provenance(parameters=parameters, **about))


class _Stored(NamedTuple):
    """One way to store the change: its bits, and the edits (several for random masks), each made
    only when it is read."""

    about: dict[str, Any]
    bits: float
    edits: list[Callable[[], Edit]]


def _projected(
    pair: CheckpointPair, changed: Sequence[ParameterSite], ranks: Sequence[int]
) -> Iterator[_Stored]:
    """The arms that store every matrix by itself, and vectors whole."""
    deltas = [pair.delta(s) for s in changed]
    matrices = [d for d in deltas if d.base.ndim > 1]
    vectors = NUMBER * sum(d.base.numel() for d in deltas if d.base.ndim < 2)
    widest, decompose = max((width(d) for d in matrices), default=0), once()
    for rank in sorted({min(rank, widest) for rank in ranks if matrices}):
        bits = vectors + sum(rank_bits(d.base.shape, min(rank, width(d))) for d in matrices)
        change = edit(pair, projection=truncated(rank, decompose))
        yield _Stored({"arm": "rank", "rank": rank}, bits, [lambda change=change: change])
    bits = vectors + sum(tier_bits(d.base.shape, width(d)) for d in matrices)
    yield _Stored({"arm": "tiered"}, bits, [lambda: edit(pair, projection=tiered(None, decompose))])
    bits = vectors + sum(
        one_bit_bits(d.change.numel(), int(d.change.count_nonzero())) for d in matrices
    )
    yield _Stored({"arm": "1-bit"}, bits, [lambda: edit(pair, projection=_signs)])


def _signs(delta: Delta) -> Tensor | None:
    return one_bit()(delta) if delta.base.ndim > 1 else delta.change


def _masked(
    pair: CheckpointPair, changed: list[ParameterSite], total: int,
    sparsities: Sequence[float], random: int, seed: int,
) -> Iterator[_Stored]:  # fmt: skip
    """The arms that store single entries, of the parameters that changed."""
    entries = sum(pair.delta(s).base.numel() for s in changed)
    for arm in MASKS:
        if arm == "random":
            orders = [rankings.random(pair, f"{seed}/{i}") for i in range(random)]
        else:
            orders = [getattr(rankings, arm)(pair)]
        for sparsity in sorted({*sparsities}):
            size = min(max(1, round(sparsity * total)), entries)

            def cut(order: rankings.Scores, size: int = size, arm: str = arm) -> Edit:
                return graft_of(arm, top(order, changed, size)).edit(pair)

            edits = [lambda order=order, cut=cut: cut(order) for order in orders]
            yield _Stored({"arm": arm, "sparsity": sparsity}, mask_bits(size, entries), edits)


def _whole(pair: CheckpointPair, shares: Sequence[float]) -> Iterator[_Stored]:
    """The fine-tuned model with its matrices truncated, whether they changed or not."""
    truncation, sites = Truncation(pair), pair.sites()
    shapes = [pair.delta(site).base.shape for site in sites]
    for share in sorted({*shares}):
        bits = sum(rank_bits(shape, math.ceil(share * min(shape))) for shape in shapes)
        about = {"arm": "whole", "sparsity": share}
        cut = dict.fromkeys(sites, share)
        yield _Stored(about, bits, [lambda cut=cut: truncation.edit(cut)])


def _sizes(about: dict[str, Any], bits: float, dense: float) -> list[dict[str, Any]]:
    sizes = {"bits": float(bits), "ratio": dense / bits}
    return [about | {"metric": k, "value": value, "own": True} for k, value in sizes.items()]


__all__ = ["compression"]
