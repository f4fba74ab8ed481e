"""Which part of the change does the fine-tuned model not need, and which part harms it?

theta = theta_1 but for the first q of the N entries inside the blocks, which are set back to
theta_0: the largest |theta_1 - theta_0| first, the largest relative to |theta_0|, the smallest, or
at random. Sources: Ye et al. 2025 (arXiv 2509.16596), where up to 90% of the updates of supervised
fine-tuning do not add to knowledge and undoing them can raise the score; Hong et al. 2024 (arXiv
2410.06606), who restore parameters to find where knowledge was unlearned. It misleads if most of N
never changed (as for an adapter on few matrices: see "moved"), since restoring those costs nothing,
and if the best q is read from the prompts that chose it: here one half chooses, the other reports.
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
from workbench.models import Edit, edit
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.skills import rankings
from workbench.skills.graft import count, graft_of, inside, top
from workbench.skills.scoring import Reading, Readout, split
from workbench.stats import ratios
from workbench.tasks import PromptSet

KEY = "skills.restore"
SHARES = (0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)
ARMS = ("movement", "relative", "smallest", "random")
BEST = "best"
LOST = 0.02  # of the score: a restored model that loses no more is as good as the tuned one
Floats = NDArray[np.float64]


def restored(pair: CheckpointPair, scores: rankings.Scores, q: float) -> Edit:
    """The tuned model with the first q of N, by score, set back to the base."""
    masks = top(scores, inside(pair), round(q * count(pair)))
    # Everything else is the tuned side's, outside the blocks too.
    return graft_of("restored", masks).edit(pair, outside=True)


def free(shares: Floats, scores: Floats, lost: float = LOST) -> Floats:
    """The largest share whose mean score is no more than `lost` below the first's.

    shares: (k,), the first 0, the tuned model itself. scores: (k, items) or (k, draws, items).
    """
    means = scores.mean(-1)
    enough = means >= means[0] - lost - 1e-9
    return np.where(enough, shares.reshape(-1, *[1] * (means.ndim - 1)), 0.0).max(0)


@analysis(
    "How much of the change can be set back to the base without losing the skill?",
    paper="arXiv 2509.16596",
    example="--prompts task.jsonl --shares 0.01,0.1,0.5",
    passes=50,
    takes={"prompts": "task", "others": "others"},
    quick={"shares": (0.1, 0.4, 0.8), "arms": ("movement", "random"), "random": 1},
    few={"prompts": 32, "others": 32},
    quick_passes=12,
)
def restore(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    shares: Sequence[float] = SHARES,
    arms: Sequence[str] = ARMS,
    random: int = 3,
    others: Sequence[PromptSet] = (),
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Set growing shares of the change back to the base and score what is left.

    shares: the shares q of N that are set back. arms: the order in which entries are set back:
    movement, relative, smallest or random. random: the number of random orders, which are averaged.
    others: further prompt sets that are scored, such as tasks of pre-training. dtype: "float32" or
    "bfloat16", the precision in which the model runs; None means as stored. An adapter is merged in
    float32.

    The command line takes 32 prompts, three shares (0.1, 0.4, 0.8), the arms movement and random
    and 1 random draw; with --full all prompts, eight shares, four arms and 3 draws.

    Returns a Result with columns arm, x (q), task, own (whether that set is `prompts`), metric:
    those of `Readout.rows` over all prompts, each with a 95% interval. Ends: "tuned" (x = 0),
    "outside" (x = 1: the base inside the blocks) and "base". From halves of each set:
    "free": the largest q that costs no more than 0.02 of the score on the choosing half, with the
    range of that choice over resampled prompts, and "cost": the paired change of the score there,
    on the other half. "harmful": the paired gain, on the other half, at the q that scored best on
    the choosing half (x; 0 where nothing beat the tuned model; column choosing: the gain there).
    Arm "best" is the row "harmful" of the order that gained most on the choosing half (column
    chosen), once of `prompts` and once of all others together: harmful updates were found where
    its interval lies above 0. Also "N" and "moved", the share of N that fine-tuning changed at all.
    Raises WorkbenchError for an unknown arm, shares outside (0, 1), or too few prompts.
    """
    grid = sorted({*shares})
    if not grid or not all(0 < q < 1 for q in grid):
        raise WorkbenchError(f"Expected shares in (0, 1) of N to restore; found {shares}.")
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms:
        given = repr(unknown[0]) if unknown else "none"
        raise WorkbenchError(f"Expected arms among {', '.join(ARMS)}; found {given}.")
    if random < 1:
        raise WorkbenchError(f"Expected at least 1 seed of the random arm, found {random}.")
    sets = (prompts, *others)
    choosing = [{p.id for p in split(one, (1, 1), seed)[0]} for one in sets]
    held = pair.held(device)
    readout = Readout.of(held, sets, batch_size=batch_size, seed=seed, device=device, dtype=dtype)
    outside = readout.read(edit(held, mask=lambda site: site.layer is None))
    rows = readout.rows(readout.tuned, arm="tuned", x=0.0)
    rows += readout.rows(outside, arm="outside", x=1.0)
    rows += readout.rows(readout.base, arm="base", x=1.0)
    bar = progress(total=len(arms) * len(grid), desc=f"restore {pair.name}")
    with bar:
        for arm in arms:
            curve: dict[float, list[Reading]] = {0.0: [readout.tuned]}
            for q in grid:
                curve[q] = [readout.read(restored(held, scores, q))
                            for scores in _orders(held, arm, random, seed)]  # fmt: skip
                rows += readout.rows(*curve[q], arm=arm, x=q)
                bar.update()
            curve[1.0] = [outside]
            rows += _chosen(readout, arm, curve, choosing)
    rows += [*most_harmful(rows), *_sizes(held)]
    table = pd.DataFrame(rows)
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "others": describe(list(others)), "shares": list(grid),
        "arms": list(arms), "random": random, "batch_size": batch_size, "lost": LOST,
        "weights": "merged",
    }  # fmt: skip
    about = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **about)
    return finished(KEY, table, provenance.with_notes((*provenance.notes, *_notes(pair, table))))


def _orders(pair: CheckpointPair, arm: str, random: int, seed: int) -> list[rankings.Scores]:
    if arm == "random":
        return [rankings.random(pair, f"{seed}/{i}") for i in range(random)]
    return [getattr(rankings, arm)(pair)]


def _chosen(
    readout: Readout, arm: str, curve: Mapping[float, list[Reading]], choosing: list[set[str]]
) -> Iterator[dict[str, Any]]:
    """The q that costs nothing and the q that helps most, chosen on one half of each set and
    reported on the other."""
    shares = np.array(list(curve))
    for place, (prompts, half) in enumerate(zip(readout.sets, choosing, strict=True)):
        about = {"arm": arm, "task": prompts.name, "own": place == 0}
        scores = np.stack([
            np.mean([one[place]["correct"].to_numpy(float) for one in readings], axis=0)
            for readings in curve.values()
        ])  # fmt: skip
        first = np.array([p.id in half for p in prompts])
        chooses, reports = scores[:, first], scores[:, ~first]
        n = chooses.shape[1]
        picks = np.random.default_rng(readout.seed).integers(0, n, (1000, n))
        low, high = np.quantile(free(shares, chooses[:, picks]), [0.025, 0.975])
        most = float(free(shares, chooses))
        yield about | {"metric": "free", "value": most, "low": low, "high": high, "n": n}
        best = int(chooses.mean(1).argmax())
        for metric, here in (("cost", int(np.flatnonzero(shares == most)[0])), ("harmful", best)):
            found = ratios(reports[here] - reports[0], seed=readout.seed)
            named = found.first._asdict()
            row = about | {"metric": metric, "x": shares[here]} | named | {"baseline": 0.0}
            gain = float((chooses[here] - chooses[0]).mean())
            yield row | ({"choosing": gain} if metric == "harmful" else {})


def most_harmful(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of all orders, and of `prompts` and of the other sets by themselves, the row "harmful" that
    gained most on the half that chooses, as arm BEST: one reading, where the best of several
    readings would be too good. rows: those of `_chosen`."""
    harmful = [row for row in rows if row["metric"] == "harmful"]
    for own in (True, False):
        some = [row for row in harmful if row["own"] is own]
        if some:
            first = max(some, key=lambda row: row["choosing"])
            yield {**first, "arm": BEST, "chosen": first["arm"]}


def _sizes(pair: CheckpointPair) -> list[dict[str, Any]]:
    total = count(pair)
    moved = sum(int((pair.delta(s).change != 0).sum()) for s in inside(pair))
    sizes = {"N": total, "moved": moved / total}
    return [{"metric": name, "value": value, "own": True} for name, value in sizes.items()]


def _notes(pair: CheckpointPair, table: pd.DataFrame) -> Iterator[str]:
    found = table[(table["metric"] == "harmful") & (table["arm"] == BEST) & (table["low"] > 0)]
    for row in found.to_dict("records"):
        yield (
            f"{pair.name}: harmful updates found. Setting {row['x']:.0%} of N back "
            f"({row['chosen']}) "
            f"raises the score on {row['task']} by {row['value']:.3f} [{row['low']:.3f}, "
            f"{row['high']:.3f}]."
        )
    moved = table.loc[table["metric"] == "moved", "value"].iloc[0]
    if moved < 0.99:
        yield (
            f"{pair.name}: fine-tuning changed {moved:.1%} of N; shares that are "
            "restored smallest first, or at random, also count unchanged entries."
        )


__all__ = ["restore"]
