"""The shipped recipes over seeds and learning rates: what differs between recipes, and what between
runs of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.demo.family import FAMILY
from workbench.lab import shipped
from workbench.lab.seeds import NAMES, SWEPT, seeds
from workbench.loaders import load_family
from workbench.loaders.pair import Reference
from workbench.results import cache
from workbench.study.study import Study

READ = ("forgetting.retention", "spectral.intruders", "spectral.delta_spectrum")
ITEMS = 400


def seeds_study(
    home: str | Path | None = None,
    *,
    family: Path = FAMILY,
    device: str = "cpu",
    dtype: str = "float32",
) -> Study:
    """Five runs of each of four recipes of the shipped family, and beside them LoRA and full
    fine-tuning at five learning rates, twice each.

    home: where the runs are, or are trained where they are missing, about four minutes each; None
    is the cache folder. family: where the base and the runs of seed 0 are.
    """
    base = family / "base"
    trained = seeds(base, cache.folder("seeds") if home is None else home)
    first: dict[str, Reference] = {name: family / name for name in NAMES}
    again = {name: path for name, path in trained.items() if "-x" not in name}
    every = {
        run: path
        for name in NAMES  # runs of one recipe side by side
        for run, path in (first | again).items()
        if run == name or run.startswith(f"{name}-s")
    }
    rates = {name: path for name, path in trained.items() if "-x" in name}
    own = {f"{name}-s1": trained[f"{name}-s1"] for name in SWEPT}  # two runs, as of other rates
    own = {name: family / name for name in SWEPT} | own
    run: dict[str, Any] = {"device": device, "dtype": dtype}
    task = shipped.held_out(shipped.TASK, ITEMS)
    texts = shipped.mixture(ITEMS, seed=1, split="test").texts
    return Study(
        load_family(base, every),
        task=task,
        texts=texts,
        only=READ,
        also={
            "rates": Study(
                load_family(base, own | rates), task=task, texts=texts, only=READ[:1], **run
            )
        },
        **run,
    )
