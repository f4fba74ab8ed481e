"""A saved figure says what it was drawn from, and is the same file each time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.figures.patched import (
    contributions,
    das,
    dictionary,
    difference,
    drift,
    edge_circuits,
    knockout,
    path,
    patterns,
    prefix,
    steer,
)
from tests.figures.skilled import blocks, skills
from tests.figures.synthetic import everything, family, intruders, kept_items, scoreboard
from workbench import figures
from workbench.results.result import Result

ROOT = Path(__file__).parents[2]


def test_saved_files_say_where_they_come_from(tmp_path, over_steps):
    made = [intruders(family(3)), *over_steps]
    paths = figures.save_all(made, tmp_path)
    assert {path.suffix for path in paths} == {".png", ".pdf"}
    assert len(set(paths)) == len(paths) == len(list(tmp_path.iterdir()))
    assert tmp_path / "spectral.intruders-2.training.png" in paths
    with Image.open(tmp_path / "spectral.intruders.count.png") as image:
        about = image.info
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert set(about) - {"dpi"} == {"Title", "Keywords"}  # no version, path or date
    keywords = json.loads(about["Keywords"])
    assert keywords["base"] == "b" * 16
    assert keywords["members"] == {n: a["fingerprint"] for n, a in family(3).items()}
    raw = (tmp_path / "spectral.intruders.count.pdf").read_bytes()
    parts = [zlib.decompress(s) for s in re.findall(rb"stream\r?\n(x.*?)\nendstream", raw, re.S)]
    written = b"".join([raw, *parts])
    assert made[0].fingerprint.encode() in written
    assert not re.search(rb"CreationDate|Producer|Creator|Matplotlib v", written)


# Whose kept results are from before some of their figures.
NEW_ROWS = {"patching.patterns", "skills.compression"}
# Figures of results that their own tests compute, and that no kept run has yet.
RUN = {
    ("behaviour.advantage", "steps"), ("behaviour.coverage", "pass-at-k"),
    ("behaviour.critical", "flips"), ("behaviour.emulate", "beta"), ("behaviour.gain", "gains"),
    ("behaviour.reliance", "reliance"), ("behaviour.reliance", "attribution"),
    ("behaviour.tokens", "prior"),
    ("compare.robustness", "line"),
    ("edits.siblings", "parts"), ("forgetting.gains", "chain"),
    ("forgetting.kinds", "transitions"),
    ("forgetting.probe", "vocabulary"), ("forgetting.sharpness", "steps"),
}  # fmt: skip


def kept() -> dict[str, Result]:
    """By name, one Result of every analysis that some figure is of: a real one that figures/ keeps,
    made up where it keeps none."""
    found: dict[str, Result] = {}
    for run in ("family", "boxes", "seeds"):
        for folder in sorted((ROOT / "figures" / run / "results").iterdir()):
            method = ".".join(folder.name.split(".")[:2])  # of all its studies the first
            steps = ".steps" if folder.name.endswith(".steps") else ""
            if method + steps not in found:
                found[method + steps] = Result.load(folder)
    for name in ("patching.activation.boxes", "patching.cross_model.heads"):
        found[name] = Result.load(ROOT / "figures" / "smollm2-patching" / "results" / name)
    # The first one of localize has a single sparsity, of which there is no curve.
    name = "skills.localize.grafts-ledger"
    found["skills.localize"] = Result.load(ROOT / "figures" / "family" / "results" / name)
    items = kept_items(family(3))
    made = {"skills.blocks": blocks(family(1)), "forgetting.retention.items": items}
    made["forgetting.samples"] = replace(items, analysis="forgetting.samples")
    makers = (
        dictionary, drift, das, difference, steer, contributions, knockout, edge_circuits, path,
        patterns, prefix,
    )  # fmt: skip
    patched = [make(family(3)) for make in makers]
    for one in (*everything(family(3)), *skills(family(3)), *patched, scoreboard()):
        if one.analysis not in found or one.analysis in NEW_ROWS:
            made[f"{one.analysis}.made-up"] = one
    return found | made


def test_the_same_results_give_the_same_bytes(tmp_path):
    """Every figure, drawn again by other processes, in another folder, time zone and order of
    sets: the same file."""
    made = kept()
    ours = figures.save_all(made, tmp_path / "ours", formats=("png",))
    ours += figures.save_all(dict([*made.items()][:1]), tmp_path / "ours", formats=("pdf",))
    drawn = {
        (d.analysis, d.name)
        for own in made.values()
        for d, _ in figures.drawings(own, [*made.values()])
    }
    assert {(d.analysis, d.name) for d in figures.CATALOGUE} - drawn == RUN
    for name, own in made.items():
        own.save(tmp_path / "results" / name)
    program = f"""
from workbench import figures
from workbench.results.result import Result
made = {{name: Result.load(f"{tmp_path}/results/{{name}}") for name in {list(made)}}}
figures.save_all(made, "theirs", formats=("png",), workers=2)
figures.save_all(dict([*made.items()][:1]), "theirs", formats=("pdf",))
"""
    elsewhere = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    (tmp_path / "there").mkdir()
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "there", env=elsewhere, check=True
    )
    differ = [
        path.name
        for path in ours
        if path.read_bytes() != (tmp_path / "there" / "theirs" / path.name).read_bytes()
    ]
    assert not differ
