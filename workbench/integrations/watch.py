"""What does this training do to the model, step by step? Measured on the live model, in its loop.

    watch = Watch("BASE", "out/watched", prompts=task, texts=held_out)
    for step, batch in enumerate(batches, 1):
        ...                       # the loop as it is
        watch.step(model, step)   # measures when that is due
    watch.finish(model, step)

At a step that is due the public analyses run on the pair of the base on disk and the model as it
is, uncopied: a LoRA's base is the model with its adapters switched off. Their Results are those of
`workbench compare --steps`, under `out` as a run that `workbench report` reads. Afterwards the
model is in the mode it was in, the random state too, so that the training goes on as if unwatched.

Time is kept to a budget: after a measurement the next waits until the training has paid for it and
for the one at the end, so that a model that is slow to measure is measured less often, not trained
more slowly. The first due step and the last are always measured, which a short run can not pay for.

It misleads as every curve over steps does if it is read as a comparison of recipes: one run, one
seed. And a full fine-tune needs its base a second time in memory while it is measured; what that
takes is said at the first measurement.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.findings.measures import MEASURES
from workbench.loaders import Checkpoint, CheckpointPair
from workbench.loaders.adapters.reading import adapter_in
from workbench.log import log
from workbench.results import run_folder
from workbench.results.result import Result, concatenate
from workbench.study.study import STEPS
from workbench.study.units import named
from workbench.tasks.prompts import PromptSet

EVERY, BUDGET = 100, 0.05
ANALYSES = ("spectral.delta_spectrum", "spectral.intruders", "forgetting.retention")
ASKED = {"forgetting.retention", "tuco.contribution"}  # which prompts are asked of
RULE = re.compile(r"\s*(\w+)\s*(<|>)\s*([-+.\deE]+)\s*")
Values = dict[str, float]
Rule = Callable[[Mapping[str, float]], bool]


class Watch:
    """One training run under watch.

    base: what the training starts from, on disk. out: the folder of the results; of an interrupted
    run those of earlier steps are kept. prompts: of the learned task. others: prompt sets of what
    may be forgotten. texts: held-out text like the pre-training data; None takes samples of the
    base. analyses: keys of what is measured. every: steps between two measurements, where the
    budget allows. budget: of the training's time that measuring may take. stop: a rule on the
    values, as text, "retention < 0.95", or as a function of them, by which `stopped` becomes True.
    """

    def __init__(
        self,
        base: str | Path,
        out: str | Path,
        *,
        prompts: PromptSet | None = None,
        others: Sequence[PromptSet] = (),
        texts: Sequence[str] | None = None,
        analyses: Sequence[str] = ANALYSES,
        every: int = EVERY,
        budget: float = BUDGET,
        stop: str | Rule | None = None,
    ) -> None:
        self.base, self.out = Checkpoint.parse(base), Path(out)
        self.prompts, self.others = prompts, list(others)
        self.texts = None if texts is None else list(texts)
        self.every, self.budget = every, budget
        self.stop = rule(stop) if isinstance(stop, str) else stop
        self.stopped = False
        if every < 1 or not budget > 0:
            raise WorkbenchError(
                f"Expected every of at least 1 step and a budget above 0, found {every} and "
                f"{budget}."
            )
        self.analyses = {key: named(key) for key in analyses}
        if ASKED & self.analyses.keys() and prompts is None and not self.others:
            log.info("Watched without prompts: only text is read of what is retained.")
        run_folder.begin(self.out)
        self._spent, self._cost, self._measured = 0.0, 0.0, -1
        self._began = time.monotonic()

    def step(self, model: nn.Module, step: int) -> Values | None:
        """Measure the model if that is due after this step, 1 the first; what was found, by name,
        or None."""
        return self._measure(model, step) if step % self.every == 0 and self._affordable() else None

    def finish(self, model: nn.Module, step: int) -> Values | None:
        """Measure the model after the last step, unless that is done."""
        return None if step == self._measured else self._measure(model, step)

    @property
    def overhead(self) -> float:
        """Seconds of measuring over those of everything else since the watch began."""
        rest = time.monotonic() - self._began - self._spent
        return self._spent / rest if rest > 0 else math.inf

    def _affordable(self) -> bool:
        trained = time.monotonic() - self._began - self._spent
        # What the measurement at the end will take is set aside.
        planned = self._spent + 2 * self._cost
        return self._measured < 0 or planned <= self.budget * trained

    def _measure(self, model: nn.Module, step: int) -> Values:
        begun, live = time.monotonic(), _bare(model)
        pair = CheckpointPair(self.base, Checkpoint(live), f"step {step}")
        if self._measured < 0:
            pair.check(read=False).require()
            self._say_memory(live)
        found: Values = {}
        with _aside(live):
            for key, analysis in self.analyses.items():
                result = analysis(pair, **self._arguments(key))
                self._keep(result, step)
                found |= values_of(result)
        self._measured = step
        self._cost = time.monotonic() - begun
        self._spent += self._cost
        if self.stop is not None and self.stop(found):
            self.stopped = True
            log.warning("The rule for stopping holds at step %d: %s.", step, _told(found))
        return found

    def _arguments(self, key: str) -> dict[str, Any]:
        if key == "forgetting.retention":
            task = {"task": self.prompts} if self.prompts is not None else {}
            return {"prompts": self.others, "texts": self.texts} | task
        if key == "tuco.contribution":
            sets = [one for one in (self.prompts, *self.others) if one is not None]
            return {"groups": {one.name: one for one in sets}}
        return {}

    def _keep(self, result: Result, step: int) -> None:
        """Add a step's rows to those there are; of a step that is measured again, anew."""
        about = {n: {**own, "step": step} for n, own in result.provenance.members.items()}
        result = replace(result, provenance=replace(result.provenance, members=about))
        name = f"{result.analysis}{STEPS}"
        place = self.out / "results" / name
        kept = [result]
        if (place / "result.json").exists():
            kept = [*_before(Result.load(place), step), result]
        concatenate(kept).save(place)
        known = run_folder.about_run(self.out)
        listed = dict.fromkeys([*known["results"], name])
        run_folder.write_about(self.out, known | {"results": [*listed]})

    def _say_memory(self, live: nn.Module) -> None:
        if adapter_in(live) is not None:
            return
        held = sum(math.prod(info.shape) for info in self.base.weights().info.values())
        log.info(
            "Watching a full fine-tune loads its base beside it at every measurement: %.1f GiB in "
            "float32.", 4 * held / 2**30,
        )  # fmt: skip


def rule(text: str) -> Rule:
    """ "NAME < NUMBER" or "NAME > NUMBER" as a function of the values; false while the value is not
    known. Raises WorkbenchError for any other text."""
    found = RULE.fullmatch(text)
    try:
        name, sign, edge = found.groups() if found else ("", "", "")
        bound = float(edge)
    except ValueError as error:
        raise WorkbenchError(
            f'Expected a rule such as "retention < 0.95", found {text!r}.'
        ) from error

    def holds(values: Mapping[str, float]) -> bool:
        value = values.get(name, math.nan)
        return value < bound if sign == "<" else value > bound

    return holds


def values_of(result: Result) -> Values:
    """A Result in the few numbers that a training log has room for: the measures of the report's
    first page (`findings.measures`), KL of text and of the task's answers, and "retention", the
    other tasks' scores over the base's, their mean."""
    found: Values = {}
    for measure in MEASURES:
        if measure.analysis == result.analysis:
            for row in measure.read(result):
                found[re.sub(r"\W+", "_", measure.name).strip("_")] = float(row["value"])
    if result.analysis == "forgetting.retention":
        table = result.table
        for metric in ("kl", "answer_kl"):
            rows = table[table["metric"] == metric]
            if len(rows):
                found[metric] = float(rows["value"].iloc[0])
        scores = table[(table["metric"] == "score") & (table["task"] != _task(result))]
        if len(scores):
            found["retention"] = float((scores["value"] / scores["baseline"]).mean())
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _task(result: Result) -> Any:
    return result.provenance.parameters.get("task")


def _before(kept: Result, step: int) -> list[Result]:
    """What is kept of other steps."""
    members = {n: own for n, own in kept.provenance.members.items() if own.get("step") != step}
    if not members:
        return []
    table = kept.table[kept.table["member"].isin([*members])]
    own = kept.tensors if len(kept.members) == 1 else {}
    provenance = replace(kept.provenance, members=members)
    return [Result(kept.analysis, table.reset_index(drop=True), provenance, own)]


def _told(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def _bare(model: nn.Module) -> nn.Module:
    """The model inside what a trainer wraps around it. Raises WorkbenchError where its parameters
    are spread over processes."""
    while True:
        kind = type(model).__name__
        if "FullyShardedDataParallel" in kind or "DeepSpeed" in kind or kind.startswith("FSDP"):
            raise WorkbenchError(
                f"The model is spread over processes ({kind}), and a watch reads whole parameters; "
                "save checkpoints and compare them (workbench compare --steps)."
            )
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if inner is None and kind in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextlib.contextmanager
def _aside(model: nn.Module) -> Iterator[None]:
    """Mode of every module, gradients' switch and random state as they were, after the block."""
    modes = {name: module.training for name, module in model.named_modules()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
