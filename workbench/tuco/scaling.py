"""FTC scaling: how do the answers change if the contribution of fine-tuning is made larger or
smaller?

x_{l+1} = x_l + PTC_l + alpha FTC_l, base and tuned blocks in lockstep (arXiv 2506.23423). alpha = 1
is the tuned model, alpha = 0 the base's blocks between the tuned embedding and head (the base
itself, if those are shared). The best alpha is chosen on one half of the prompts and its gain
reported on the other: the best of several noisy values always looks better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from torch import Tensor, nn

from workbench.analysis.record import analysis
from workbench.errors import WorkbenchError
from workbench.loaders import CheckpointPair
from workbench.models import Sides
from workbench.models.sides import load, named_dtype
from workbench.progress import progress
from workbench.results.result import Result, describe
from workbench.results.validity import finished
from workbench.stats import Interval, bootstrap, change, share
from workbench.tasks import PromptSet, answers
from workbench.tasks.measurements import losses
from workbench.tasks.prompts import require_halves
from workbench.tuco.lockstep import Step, Twins, lockstep

ALPHAS = (0.0, 0.75, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25)
MEASURES = {"score": "correct", "log_probability": "log_probability"}


class Scaled(nn.Module):
    """The tuned model with every block's fine-tuning contribution times alpha. Call it and let it
    generate like a transformers model; both sides keep keys and values of their own."""

    def __init__(self, sides: Sides, alpha: float) -> None:
        super().__init__()
        self.tuned: Any = sides.tuned
        self.alpha = alpha
        self._sides = sides
        self._twins: Twins = WeakKeyDictionary()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with lockstep(self._sides, self._mixed, self._twins):
            return self.tuned(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        asked = kwargs.get("generation_config") or self.tuned.generation_config
        if (kwargs.get("num_beams") or getattr(asked, "num_beams", None) or 1) > 1:
            raise WorkbenchError(
                "A scaled model generates greedily or by sampling, not with beams; "
                "leave num_beams out."
            )
        with lockstep(self._sides, self._mixed, self._twins):
            return self.tuned.generate(*args, **kwargs)

    @property
    def config(self) -> Any:
        return self.tuned.config

    @property
    def device(self) -> Any:
        return self.tuned.device

    def _mixed(self, step: Step) -> Tensor | None:
        if self.alpha == 1 or not step.changed:
            return None
        if self.alpha == 0:
            return step.base.out
        more = step.tuned.added - step.base.added
        return step.base.out.float() + self.alpha * more


def scaled(
    pair: CheckpointPair,
    alpha: float,
    *,
    device: str = "cpu",
    dtype: str | None = None,
) -> Scaled:
    """The tuned model with its fine-tuning contribution times alpha, to call or generate with."""
    return Scaled(load(pair, device, named_dtype(dtype)), alpha)


@analysis(
    "What happens if the contribution of fine-tuning is made larger or smaller?",
    paper="arXiv 2506.23423",
    example="--prompts task.jsonl --alphas 0,0.9,1,1.1",
    passes=16,
    takes={"prompts": "task", "texts": "texts"},
    quick={"alphas": (0.0, 0.9, 1.0, 1.1)},
    few={"prompts": 32},
    quick_passes=8,
)
def scaling(
    pair: CheckpointPair,
    prompts: PromptSet,
    *,
    alphas: Sequence[float] = ALPHAS,
    texts: Sequence[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | None = None,
) -> Result:
    """Score the model over alpha, and test whether the best alpha is better than 1.

    prompts: prompts with answers. alphas: factors on the tuned contribution; 1 is always included
    (default: the paper's, and 0). texts: text like the pre-training data, whose loss is measured
    too. dtype: "float32" or "bfloat16"; None means as stored.

    The command line takes 32 prompts and four alphas (0, 0.9, 1, 1.1), with --full all prompts and
    all eight.

    Returns a Result with column x (alpha) and metrics score (greedy exact match), log_probability
    (nats per answer) and, with texts, loss (nats per token), and each with `_change`: against
    alpha = 1, paired over items; 95% intervals, n; baseline is the value at alpha = 1.
    `best` (x: the alpha whose log-probability is best on a random half of the prompts) and
    `gain_score`, `gain_log_probability`: what it gains over alpha = 1 on the other half.
    Raises WorkbenchError without prompts to split in two.
    """
    if not np.isfinite(list(alphas)).all():
        raise WorkbenchError(f"Expected finite alphas, found {list(alphas)}.")
    require_halves(len(prompts))
    words = pair.base.tokenizer()
    grid = sorted({*alphas, 1.0})
    items: dict[float, dict[str, tuple[Any, ...]]] = {}
    sides = load(pair, device, named_dtype(dtype))
    for alpha in progress(grid, desc=f"alpha {pair.name}"):
        model: Any = Scaled(sides, alpha)
        found = answers(model, words, prompts, batch_size=batch_size)
        items[alpha] = {m: (found[c].to_numpy(float), None) for m, c in MEASURES.items()}
        if texts is not None:
            items[alpha]["loss"] = tuple(losses(model, words, texts, batch_size))
    made = [
        row
        for alpha in grid
        for row in _rows(alpha, items[alpha], items[1.0], pair.same or alpha == 1, seed)
    ]
    values = {a: {m: items[a][m][0] for m in MEASURES} for a in grid}
    table = pd.DataFrame([*made, *best(values, seed, same=pair.same)])
    table.insert(0, "member", pair.name)
    parameters = {
        "prompts": describe(prompts), "alphas": list(grid),
        "texts": None if texts is None else describe(list(texts)),
    }  # fmt: skip
    known = {"seed": seed, "device": str(device), "dtype": dtype or "as stored"}
    provenance = pair.provenance(parameters=parameters, **known)
    notes = (*provenance.notes, f"{pair.name}: {sides.described}")
    return finished("tuco.scaling", table, provenance.with_notes(notes))


def best(
    values: dict[float, dict[str, np.ndarray]], seed: int, *, same: bool = False
) -> list[dict[str, Any]]:
    """The alpha of the best mean log-probability on one random half, and its gain on the other.

    values: alpha -> measure -> (prompts,), the same prompts for every alpha. same: every alpha is
    one model.
    """
    size = len(values[1.0]["score"])
    order = np.random.default_rng(seed).permutation(size)
    choose, report = order[: size // 2], order[size // 2 :]
    chosen = max(values, key=lambda alpha: values[alpha]["log_probability"][choose].mean())
    made: list[dict[str, Any]] = [
        {"x": chosen, "metric": "best", "value": chosen, "n": len(choose), "baseline": 1.0}
    ]
    for measure in MEASURES:
        first, last = (values[alpha][measure][report] for alpha in (1.0, chosen))
        if measure == "score":
            interval = change(first, last, same=same or chosen == 1, seed=seed)
        else:
            interval = bootstrap(last - first, seed=seed)
        made.append(
            {"x": chosen, "metric": f"gain_{measure}", "baseline": 0.0} | interval._asdict()
        )
    return made


def _rows(alpha: float, now: dict, at_one: dict, same: bool, seed: int) -> list[dict[str, Any]]:
    """same: the model is the tuned one itself."""
    made = []
    for measure, (values, weights) in now.items():
        first, _ = at_one[measure]
        about = {"x": alpha, "baseline": bootstrap(first, weights, seed=seed).value}
        if measure == "score":
            whole: Interval = share(values, seed=seed)
            moved = change(first, values, same=same, seed=seed)
        else:
            whole = bootstrap(values, weights, seed=seed)
            moved = bootstrap(values - first, weights, seed=seed)
        made.append(about | {"metric": measure} | whole._asdict())
        made.append(about | {"metric": f"{measure}_change"} | moved._asdict())
    return made
