"""Units of work: one analysis of one pair, computed once and kept under its content.

A unit's key covers the code of the package, the versions of what it stands on, the checkpoints'
content with their tokenizers and settings, and every parameter. A second run of the same command
finds its units and computes nothing; an interrupted one goes on.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as once
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from workbench.analysis.boundary import require_family
from workbench.analysis.running import alone, given
from workbench.errors import WorkbenchError, unpanicked
from workbench.loaders import Checkpoint, CheckpointPair, Family
from workbench.results import cache
from workbench.results.result import Result, concatenate, describe, versions

# What draws, prints or hands out a number cannot change it.
PRESENTATION = (
    "figures/", "cli/", "reports/", "findings/", "export/", "demo/", "progress.py", "log.py",
    "analysis/cost.py", "files/writing.py", "study/catalogue.py", "study/cluster/",
    "study/compare.py", "study/phantoms.py", "study/plan.py", "study/runs.py", "study/study.py",
)  # fmt: skip


@once
def code_fingerprint() -> str:
    """sha256 over the source of everything that can change a number."""
    root = Path(__file__).parents[1]
    files = {f.relative_to(root).as_posix(): f for f in sorted(root.rglob("*.py"))}
    kept = {name: f for name, f in files.items() if not name.startswith(PRESENTATION)}
    told = (f"{name}:{cache.file_digest(f)}\n" for name, f in kept.items())
    return cache.digest(line.encode() for line in told)


@dataclass(frozen=True, eq=False)
class Unit:
    """One analysis of one pair, or of a family's members at once, with its parameters."""

    subject: CheckpointPair | Family
    analysis: Callable[..., Result]
    parameters: Mapping[str, Any]

    @property
    def members(self) -> Mapping[str, Checkpoint]:
        """The fine-tuned side or sides, by name."""
        one = self.subject
        return one.members if isinstance(one, Family) else {one.name: one.tuned}

    @property
    def name(self) -> str:
        """What a person calls it: the analysis and its members."""
        return f"{self.analysis.__name__} of {', '.join(self.members)}"

    @cached_property
    def key(self) -> str:
        """64 hexadecimal characters that follow everything that can change a number."""
        base, one = self.subject.base, self.subject
        about: dict[str, Any] = {"base": base.identity}
        if isinstance(one, Family):
            about["members"] = {name: member.identity for name, member in one.members.items()}
        else:
            about |= {
                "tuned": one.tuned.identity,
                "references": [base.name, one.tuned.name],
                "member": one.name,
            }
        about |= {
            "analysis": f"{self.analysis.__module__}.{self.analysis.__name__}",
            "code": code_fingerprint(),
            "versions": versions(),
            "parameters": {name: _content(v) for name, v in sorted(self.parameters.items())},
        }
        return cache.digest([json.dumps(about, sort_keys=True).encode()])

    def run(self) -> Result:
        with unpanicked(), alone():
            return self.analysis(self.subject, **self.parameters)

    def kept(self, store: str | Path) -> bool:
        """Whether `store` holds its Result."""
        return (Path(store) / self.key / "result.json").exists()


def _content(value: Any) -> Any:
    """A parameter by what it holds: of a checkpoint its identity too, however it is named."""
    if isinstance(value, CheckpointPair):
        return [_content(value.base), _content(value.tuned)]
    if isinstance(value, Mapping):
        return {str(name): _content(part) for name, part in value.items()}
    if isinstance(value, list | tuple) and not all(isinstance(part, str) for part in value):
        return [_content(part) for part in value]
    if isinstance(value, Checkpoint | nn.Module):
        return {"checkpoint": Checkpoint.parse(value).identity}
    if isinstance(value, str | Path) and _is_checkpoint(value):
        return {"checkpoint": Checkpoint.parse(value).identity, "name": str(value)}
    return describe(value)


def _is_checkpoint(path: str | Path) -> bool:
    names = ("config.json", "adapter_config.json")
    return any(os.path.isfile(os.path.join(path, name)) for name in names)


def joined(made: Sequence[Unit], store: str | Path) -> Result:
    """The kept Results of these units, of one analysis, as one."""
    return concatenate([Result.load(Path(store) / unit.key) for unit in made])


def named(key: str) -> Callable[..., Result]:
    """The function of an analysis by its key, e.g. "spectral.intruders"."""
    from workbench.study import catalogue

    known = {one.key: one.function for one in catalogue.ANALYSES}
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        raise WorkbenchError(
            f"There is no analysis {key!r}{f'; did you mean {near[0]}' if near else ''}? Known are "
            f"{', '.join(sorted(known))}."
        )
    return known[key]


def over(
    family: Family,
    analysis: Callable[..., Result] | str,
    *,
    store: str | Path | None = None,
    **parameters: Any,
) -> Result:
    """The analysis of every member, as one Result with a member column.

    analysis: a function, or its key in the catalogue ("spectral.intruders"). store: a folder that
    keeps each member's Result, so that an interrupted run resumes. Raises WorkbenchError for a key
    that is not known, or what is no family.
    """
    if isinstance(analysis, str):
        analysis = named(analysis)
    require_family(family, f"{analysis.__name__} of every model")
    whole = given(inspect.signature(analysis).parameters) | parameters
    made = [Unit(pair, analysis, whole) for pair in family]
    if store is None:
        return concatenate([unit.run() for unit in made])
    for unit in made:
        if not unit.kept(store):
            unit.run().save(Path(store) / unit.key)
    return joined(made, store)
