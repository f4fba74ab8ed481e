"""LoRA against full fine-tuning: the catalogue over a family, and one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import WorkbenchError, unpanicked
from workbench.findings.equivalence import KEY as FIRST
from workbench.findings.equivalence import equivalence
from workbench.findings.measures import ARMS
from workbench.findings.pareto import KEY as CURVES
from workbench.findings.pareto import pareto
from workbench.findings.robustness import KEY as LINE
from workbench.findings.robustness import robustness
from workbench.forgetting import association, sequential
from workbench.loaders import CheckpointPair, Family
from workbench.log import quiet
from workbench.results import run_folder
from workbench.results.result import Result
from workbench.skills import alike, compose, localize, overlap, reported
from workbench.study import runs
from workbench.study.catalogue import ANALYSES
from workbench.study.cluster import HERE, LOCAL, Crew, place, workers
from workbench.study.phantoms import nothing_learned
from workbench.study.plan import plan
from workbench.study.study import LATER, STEPS, Part, Study
from workbench.study.units import Unit, joined

KEEPS = "forgetting.retention"  # chains are read where retention is
MEASURES = ("spectral.intruders", "spectral.delta_spectrum", "tuco.contribution")


def compare(
    study: Study,
    out: str | Path,
    *,
    title: str | None = None,
    on: str = HERE,
    formats: Sequence[str] = ("png", "pdf"),
    left_out: Mapping[str, Exception] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Run the catalogue on a family; write results/, figures/ and report.html under `out`.

    Every analysis of every model is a unit of work saved under out/units: a second run computes
    nothing, an interrupted one resumes. An analysis that fails is named in the report, and the
    others continue. on: where they are run, see `workbench.study.cluster`; with worker processes a
    script must call this under `if __name__ == "__main__":`. formats: of figures, PNG among them.
    left_out: models that are not in the family, and why, for the report; those that their preflight
    stops are left out here. options: saved as config.yaml, see `workbench.cli.config`. Returns the
    report's path; what lies beside it, see `workbench.results.run_folder`. Raises WorkbenchError
    where that stops all members, and what the first analysis raised where all of them failed.
    """
    out = Path(out)
    place(on)
    families = (study.family, *(other.family for other in study.also.values()))
    pairs = {(p.name, p.tuned): p for family in families for p in family}
    preflight, run = _run(study, out, on, pairs.values(), options)
    if not run.made:
        raise next(
            iter(run.failed.values()),
            WorkbenchError(
                "There is no analysis to run; give data that analyses need "
                "(--prompts), or other --only."
            ),
        )
    absent = {f"member {name}": error for name, error in (left_out or {}).items()}
    failed = absent | run.failed
    about: dict[str, Any] = {"title": title, "preflight": preflight, "failed": failed}
    about["phantoms"] = run.phantoms
    about["asked"] = _asked(study, failed)
    kind, where = place(on)
    drawers = int(where) if kind == LOCAL else 1
    return runs.keep(out, run.made, formats=formats, workers=drawers, **about)


def _asked(study: Study, failed: dict[str, Exception]) -> list[str]:
    """The first prompts as they were read; none where they cannot be, which is one more failure."""
    try:
        with unpanicked():
            return study.first_prompts()
    except WorkbenchError as error:
        failed["the first prompts"] = error
        return []


def results(study: Study, out: str | Path, *, on: str = HERE) -> list[Result]:
    """`compare` without preflight, figures and report: every Result, in the report's order.

    Raises what the first failed analysis raised, after the others were run and saved.
    """
    _, run = _run(study, Path(out), on)
    for reason in run.failed.values():
        raise reason
    return list(run.made.values())


@dataclass
class Run:
    """What came of a study. made: Results by folder name; failed: what was raised, by the name of
    the analysis and its members; phantoms: the same Results of models that learned nothing, or the
    sentence by which an analysis refused them."""

    store: Path
    crew: Crew
    made: dict[str, Result] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    phantoms: dict[str, Result | str] = field(default_factory=dict)

    def fill(self, wanted: Mapping[str, Sequence[Unit]]) -> None:
        """Run these units, and join those of each name; a Result says whom it lacks."""
        units: dict[str, Unit] = {}
        lost: dict[Unit, Exception] = {}
        for unit in (unit for own in wanted.values() for unit in own):
            try:
                units[unit.key] = unit
            except (WorkbenchError, OSError) as error:  # its files cannot be read to be told apart
                lost[unit] = error
        raised = self.crew.fill(self.store, list(units.values()))
        for name, every in wanted.items():
            own = {unit: lost.get(unit) or raised.get(unit.key) for unit in every}
            gone = {unit: reason for unit, reason in own.items() if reason is not None}
            for unit, reason in gone.items():
                self.failed[f"{name} of {', '.join(unit.members)}"] = reason
            kept = [unit for unit in own if unit not in gone]
            if kept:
                self.attempt(name, self._joined, kept, gone)

    def _joined(self, kept: Sequence[Unit], lost: Iterable[Unit]) -> Result:
        return _lacking(joined(kept, self.store), lost)

    def attempt(self, name: str, make: Callable[..., Result | None], *given: Any) -> None:
        """A Result made of other Results, where there is one."""
        try:
            made = make(*given)
        except Exception as error:
            self.failed[name] = error
        else:
            if made is not None:
                self.made[name] = made


def _lacking(made: Result, lost: Iterable[Unit]) -> Result:
    missing = [
        f"It failed for {', '.join(unit.members)}, so these are missing here." for unit in lost
    ]
    about = made.provenance
    return replace(made, provenance=about.with_notes((*about.notes, *missing))) if missing else made


def _run(
    study: Study,
    out: Path,
    on: str,
    pairs: Iterable[CheckpointPair] = (),
    options: Mapping[str, Any] | None = None,
) -> tuple[pd.DataFrame | None, Run]:
    """What came of a study, behind the preflight of these pairs."""
    run_folder.begin(out, options)
    with quiet(), workers(on, device=study.device, peak=_peak(study, on)) as crew:
        if pairs and not (out / "units").exists():
            crew.prepare()  # workers start while this process reads
        preflight, stopped = preflights(pairs) if pairs else (None, {})
        run = Run(out / "units", crew)
        run.failed |= {f"member {name}": error for name, error in stopped.items()}
        kept = study.without(stopped)
        _fill(kept, run)
        if study.phantoms:
            _fill_phantoms(kept, run)
    run.made = _ordered(run.made)
    for name, result in run.made.items():
        result.save(out / "results" / name)
    for name, result in run.phantoms.items():
        if isinstance(result, Result):
            result.save(out / run_folder.PHANTOMS / name)
    return preflight, run


def _fill_phantoms(study: Study, run: Run) -> None:
    """The same of models that learned nothing. What an analysis refuses of all of them is told
    beside its answer; what fails otherwise is a failure of the run."""
    own, missing = nothing_learned(study)
    run.failed |= missing
    if own is None:
        return
    beside = Run(run.store, run.crew)
    _fill(own, beside)
    run.phantoms |= beside.made
    for what, error in beside.failed.items():
        name = what.partition(" of ")[0]
        if not isinstance(error, WorkbenchError):
            run.failed[what] = error
        else:
            run.phantoms.setdefault(name, str(error))


def _fill(study: Study, run: Run) -> None:
    """Everything of a study."""
    parts, followed, chained = study.parts(), study.followed(), _chained(study)
    first = {p.name: p.units() for p in (*parts, *followed) if not _waits(p)}
    run.fill(chained | first)  # a chain takes longest
    later = {
        part.name: part.units(results=_before(part, parts, run.made))
        for part in parts
        if part.name not in first
    }
    localized = [p for p in parts if p.analysis.function is localize and p.name in run.made]
    pairs = [(part.study, run.made[part.name]) for part in localized]
    run.attempt("skills.overlap", _overlap, pairs)
    run.fill(later)
    if "skills.overlap" in run.made:
        run.fill(_composed(pairs))
    main = [run.made[part.name] for part in parts if part.name in run.made and part.study is study]
    run.attempt("forgetting.association", _associated, main)
    whole = [run.made[part.name] for part in parts if part.name in run.made]
    run.attempt(FIRST, equivalence, whole)
    run.attempt(CURVES, pareto, whole)
    run.attempt(LINE, robustness, whole)


def _ordered(made: Mapping[str, Result]) -> dict[str, Result]:
    """A chapter per method: as in the catalogue, what is followed along a run at the end."""
    order = [FIRST, CURVES, LINE, *(analysis.key for analysis in ANALYSES)]

    def place_of(name: str) -> tuple[bool, int, str]:
        key = made[name].analysis
        return name.endswith(STEPS), order.index(key) if key in order else len(order), name

    return {name: made[name] for name in sorted(made, key=place_of)}


def _waits(part: Part) -> bool:
    """For what the analyses before it give."""
    return LATER in (part.analysis.takes or {}).values()


def _before(part: Part, parts: Sequence[Part], made: Mapping[str, Result]) -> list[Result]:
    """What the analyses before this one gave in its own study."""
    earlier = parts[: parts.index(part)]
    return [made[p.name] for p in earlier if p.study is part.study and p.name in made]


def _peak(study: Study, on: str) -> float:
    """Bytes that a unit takes on a GPU at most; 0 where nothing asks."""
    if on == HERE or study.device == "cpu":
        return 0
    return float(plan(study)["peak_MiB"].max()) * 2**20


def preflights(
    pairs: Iterable[CheckpointPair],
) -> tuple[pd.DataFrame, dict[str, WorkbenchError]]:
    """Every pair's preflight, each parameter read once, and the members that it stops, with why.
    Raises that of the first where it stops all of them."""
    pairs, tables, stopped = [*pairs], [], {}
    for pair in pairs:
        # What runs is held against the files when it is loaded; units are named by fingerprints.
        try:
            found = pair.check(run=False, fingerprints=True)
            tables.append(found.table.assign(member=pair.name))
            found.require()
        except WorkbenchError as error:
            stopped[pair.name] = error
    if len(stopped) == len(pairs):
        raise next(iter(stopped.values()))
    return pd.concat(tables, ignore_index=True), stopped


def _chained(study: Study) -> dict[str, list[Unit]]:
    """The matrices of all chains."""
    if not study.chains or KEEPS not in (study.only or (KEEPS,)):
        return {}
    run: dict[str, Any] = {"seed": study.seed, "device": study.device, "dtype": study.dtype}
    units = [
        Unit(
            *(chain.stages, sequential),
            {"name": name, "tasks": chain.tasks, "others": list(chain.others)} | run,
        )
        for name, chain in study.chains.items()
    ]
    return {"forgetting.sequential": units}


def _associated(results: Sequence[Result]) -> Result | None:
    """What goes with forgetting, where three members have it and a measure of their change."""
    kinds = {result.analysis for result in results}
    task = any(r.analysis == KEEPS and r.provenance.parameters.get("task") for r in results)
    measured = kinds & set(MEASURES) or task  # of which the divergence is known
    if KEEPS not in kinds or not measured or len(results[0].members) < 3:
        return None
    return association(results)


def _overlap(localized: Sequence[tuple[Study, Result]]) -> Result | None:
    """What the grafts of several members and tasks have in common."""
    arms = [set(result.provenance.parameters["arms"]) for _, result in localized]
    arm = next((one for one in ARMS if all(one in own for own in arms)), "")
    results = [result for _, result in localized]
    bases = {result.provenance.base["fingerprint"] for result in results}
    if not arm or len(bases) > 1 or sum(len(result.members) for result in results) < 2:
        return None
    return overlap(results, arm=arm)


def _composed(localized: Sequence[tuple[Study, Result]]) -> dict[str, list[Unit]]:
    """What is to be run to see whether grafts add up, by the folder of its Result."""
    found = [
        (reported(one.task, one.seed), result) for one, result in localized if one.task is not None
    ]
    members = {name: m for one, _ in localized for name, m in one.family.members.items()}
    study = localized[0][0]
    run: dict[str, Any] = {"seed": study.seed, "device": study.device, "dtype": study.dtype}
    composed = {}
    for label, skills in alike(found).items():
        own = Family(study.family.base, {s.member: members[s.member] for s in skills})
        # A label may be a member's name, which is anyone's text.
        name = f"skills.compose.{label}".replace("/", "-")
        composed[name] = [Unit(own, compose, {"skills": skills} | run)]
    return composed
