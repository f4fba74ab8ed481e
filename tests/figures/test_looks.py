"""A model has one colour and marker: apart from the others for any eye, alike in every figure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from tests.figures.synthetic import family, intruders, retention, stepped
from workbench import figures
from workbench.figures import looks, style
from workbench.results.result import Result
from workbench.results.run_folder import about_run
from workbench.study import runs

# What linear sRGB becomes for an eye without M or L cones: Machado, Oliveira & Fernandes,
# "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009), severity 1.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
PROTANOPIA = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)
EYES = {"normal": np.eye(3), "deuteranopia": DEUTERANOPIA, "protanopia": PROTANOPIA}
XYZ = np.array(  # IEC 61966-2-1, white D65
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175],
     [0.0193339, 0.119192, 0.9503041]]
)  # fmt: skip


def lab(colours: list[str], eye: np.ndarray) -> np.ndarray:
    """(colours, 3) CIELAB of what an eye sees of them."""
    rgb = np.array([mpl.colors.to_rgb(one) for one in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    t = np.clip(linear @ eye.T, 0, 1) @ XYZ.T / XYZ.sum(1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def distances(colours: list[str], eye: np.ndarray) -> Iterator[float]:
    for first, second in combinations(lab(colours, eye), 2):
        yield float(np.linalg.norm(first - second))


def test_cielab_of_known_colours():
    """White, black and pure red, from the CIE's definition."""
    found = lab(["#ffffff", "#000000", "#ff0000"], np.eye(3))
    np.testing.assert_allclose(found, [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.2]], atol=0.02)


@pytest.mark.parametrize("eye", EYES)
def test_eight_ranks_and_four_full_fine_tunes_look_apart(eye: str):
    ranks = {f"r{rank}": {"kind": "lora", "rank": rank} for rank in (1, 2, 4, 8, 16, 32, 64, 128)}
    full = {f"full {i}": {"kind": "full"} for i in range(4)}
    found = style.assign(ranks | full)
    colours = [look.colour for look in found.values()]
    assert len(set(colours)) == 12
    assert min(distances(colours, EYES[eye])) >= looks.APART
    assert looks.APART >= 15
    # Black is the base's, grey the controls'.
    for fixed in (style.BLACK, style.GREY):
        assert min(distances([fixed, colours[0]], EYES[eye])) >= looks.APART
        assert all(next(distances([fixed, one], EYES[eye])) >= 12 for one in colours)
    assert len({look.marker for name, look in found.items() if name in ranks}) == 8
    assert len({look.marker for name, look in found.items() if name in full}) == 4


def test_a_rank_looks_the_same_in_any_family():
    few = style.assign({n: a for n, a in family(8).items() if n in ("lora-r2", "lora-r64")})
    many = style.assign(family(8))
    assert all(look == many[name] for name, look in few.items())


def several() -> list[Result]:
    """Two families with the same ranks and the steps of one run, as a run has them."""
    others = {f"other {name}": about for name, about in family(4).items()}
    return [intruders(family(4)), retention(family(4) | others), intruders(stepped())]


def test_models_shown_together_have_different_colours_and_no_two_models_look_the_same():
    results = several()
    found = style.assign(figures.everyone(results))
    for result in results:
        assert len({found[name].colour for name in result.members}) == len(result.members)
    assert len({(look.colour, look.marker) for look in found.values()}) == len(found)


def test_a_family_inside_another_keeps_its_looks():
    results = several()
    whole = style.assign(figures.everyone(results))
    with figures.family(figures.everyone(results)):
        assert style.assign(figures.everyone(results[1:2])) == {
            name: whole[name] for name in results[1].members
        }
        with figures.family(figures.everyone(results[2:])):
            assert style.looks(results[2]) == {name: whole[name] for name in stepped()}


def test_a_run_saves_its_looks_and_a_part_of_it_is_drawn_with_them(tmp_path: Path):
    """Seen in the pixels: the same model's name has the same colour when it is drawn alone."""
    made = {f"{i}.{one.analysis}": one for i, one in enumerate(several())}
    for name, result in made.items():
        result.save(tmp_path / "results" / name)
    runs.keep(tmp_path, made, formats=("png",))
    saved = about_run(tmp_path)["looks"]
    assert saved == {
        name: [look.colour, look.marker]
        for name, look in style.assign(figures.everyone([*made.values()])).items()
    }
    before = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    about = json.loads((tmp_path / "run.json").read_text())
    part = next(name for name in made if "retention" in name)
    (tmp_path / "run.json").write_text(json.dumps(about | {"results": [part]}))
    runs.redraw(tmp_path, pictures=tmp_path / "part", formats=("png",))
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "part").iterdir()}
    assert drawn
    assert all(before[name] == content for name, content in drawn.items())


@pytest.mark.parametrize("other", [None, [], ["#64BDFC"], ["red", "o"], ["#D55E00", "s"], ["", ""]])
def test_what_cannot_be_a_look_is_assigned_again(other):
    members = family(3)
    fresh = style.saved(members, {})
    assert style.saved(members, fresh | {"lora-r1": other}) == fresh
    swapped = fresh | {"lora-r1": fresh["lora-r2"], "lora-r2": fresh["lora-r1"]}
    assert style.saved(members, swapped) == swapped
