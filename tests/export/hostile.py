"""Results whose names are meant to be more than names: to LaTeX, Markdown, CSV, paths, browsers."""

from __future__ import annotations

import pandas as pd

from workbench.results.result import Provenance, Result

NAMES = (
    "a_b & 50% #1 $x$ {y} ~^", r"\input{/etc/passwd}", "[2em]", "*star", "r1--r2", "two\nlines",
    "<script>alert(1)</script>", "[a](javascript:x)", "x | y", "`tick` ``", "https://a.example",
    "../../up", "..", "a/b", "=1+1", 'quo"te, comma', "cr\rhere", "1. one", "- item", "NA\u202e",
    "ünï 日本", "&lt;", "www.a.example", "**bold** _it_ ~~s~~",
)  # fmt: skip


def retained(
    names: tuple[str, ...] = NAMES, tasks: tuple[str, ...] = ("box_es", "fa&cts")
) -> Result:
    """Scores of members and tasks, each of another value, with intervals over 40 items."""
    rows = [
        {
            "member": name, "task": task, "metric": metric, "value": value, "low": value - 0.25,
            "high": value + 0.125, "n": 40, "baseline": -0.5,
        }
        for i, name in enumerate(names)
        for j, task in enumerate(tasks)
        for metric, value in (("score", i / 8 + j / 64), ("score_change", -(i / 4) - j / 32))
    ]  # fmt: skip
    provenance = Provenance(
        base={"reference": names[0], "fingerprint": "b" * 64},
        members={name: {"kind": "lora", "rank": 4, "reference": f"at {name}"} for name in names},
        parameters={"task": tasks[0], "prompts": {"name": names[0]}},
        seed=3,
        notes=tuple(f"{name}: a note" for name in names[:4]),
        command="workbench compare `x` ```` $(y)",
        versions={"python": "3.11", "workbench": "0.1.0"},
    )
    return Result("forgetting.retention", pd.DataFrame(rows), provenance)
