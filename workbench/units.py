"""Units of work: one analysis of one pair, computed once and kept under its content.

A unit's key covers the code of the package, the checkpoints' content, and every parameter. A second
run of the same command finds its units and computes nothing; an interrupted one goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache as once
from pathlib import Path
from typing import Any

from workbench import cache
from workbench.loaders import CheckpointPair, Family
from workbench.results import Result, concatenate, describe

# What draws or prints a number cannot change it.
PRESENTATION = ("figures", "cli", "reports.py", "compare.py", "demo")


@once
def code_fingerprint() -> str:
    """sha256 over the source of everything that can change a number."""
    root = Path(__file__).parent
    files = sorted(root.rglob("*.py"))
    kept = [f for f in files if f.relative_to(root).parts[0] not in PRESENTATION]
    return cache.digest(part for f in kept for part in (str(f.name).encode(), f.read_bytes()))


def key(pair: CheckpointPair, analysis: Callable[..., Result], parameters: dict[str, Any]) -> str:
    """64 hexadecimal characters that name this unit."""
    about = {
        "base": pair.base.fingerprint,
        "tuned": pair.tuned.fingerprint,
        "references": [pair.base.name, pair.tuned.name],
        "member": pair.name,
    }
    return _key(about, analysis, parameters)


def _key(about: dict[str, Any], analysis: Callable[..., Result], parameters: dict[str, Any]) -> str:
    about = about | {
        "analysis": f"{analysis.__module__}.{analysis.__name__}",
        "code": code_fingerprint(),
        "parameters": {name: describe(value) for name, value in sorted(parameters.items())},
    }
    return cache.digest([json.dumps(about, sort_keys=True).encode()])


def _kept(store: str | Path | None, key: str, make: Callable[[], Result]) -> Result:
    """What `store` holds under this key, made first where it holds nothing."""
    if store is None:
        return make()
    folder = Path(store) / key
    if not (folder / "result.json").exists():
        make().save(folder)
    return Result.load(folder)


def run(
    pair: CheckpointPair,
    analysis: Callable[..., Result],
    *,
    store: str | Path | None = None,
    **parameters: Any,
) -> Result:
    """analysis(pair, **parameters), or the same from `store` where it was computed before."""
    return _kept(store, key(pair, analysis, parameters), lambda: analysis(pair, **parameters))


def across(
    family: Family,
    analysis: Callable[..., Result],
    *,
    store: str | Path | None = None,
    **parameters: Any,
) -> Result:
    """analysis(family, **parameters), of several members at once, or the same from `store`."""
    members = {name: one.fingerprint for name, one in family.members.items()}
    about = {"base": family.base.fingerprint, "members": members}
    return _kept(store, _key(about, analysis, parameters), lambda: analysis(family, **parameters))


def over(
    family: Family,
    analysis: Callable[..., Result],
    *,
    store: str | Path | None = None,
    **parameters: Any,
) -> Result:
    """The analysis of every member, as one Result with a member column.

    store: a folder that keeps each member's Result, so that an interrupted run resumes.
    """
    return concatenate([run(pair, analysis, store=store, **parameters) for pair in family])
