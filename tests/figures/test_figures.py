"""Every figure: labelled, with a control, for one member and for eight, alone and in given axes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import workbench as wb
from tests.figures.skilled import blocks, skills
from tests.figures.synthetic import everything, family, intruders, result, retention
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.figures import grafted, style
from workbench.results.result import Result

ROOT = Path(__file__).parents[2]
# What says "control" in a figure: a legend entry, a panel title, or the colour bar's label.
CONTROL = re.compile(r"random|base\b|neighbour|shrunk|chance|null")


def drawn(results):
    """(name, Figure) of everything the catalogue draws of `results`."""
    for made in results:
        for drawing, group in figures.drawings(made, results):
            yield drawing.name, drawing.draw(*group)


@pytest.fixture(scope="session")
def laid_out(results) -> list[tuple[str, Figure]]:
    """Those of `results`, everything in its place."""
    found = list(drawn(results))
    for _, figure in found:
        figure.draw_without_rendering()
    return found


def inside(name: str, figure: Figure, *, below: bool = True) -> None:
    """Nothing of a figure that was laid out is cut off; below: nor at its lower edge."""
    tight = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert tight.x0 >= -1, name
    assert tight.y0 >= -1 or not below, name
    assert tight.x1 <= figure.bbox.x1 + 1, name
    assert tight.y1 <= figure.bbox.y1 + 1, name


def words(figure: Figure) -> str:
    """Everything written in a figure."""
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def check(name: str, figure: Figure) -> None:
    for ax in figure.axes:
        if not ax.axison or not ax.has_data():
            continue
        if ax.get_label() == "<colorbar>":
            assert ax.get_xlabel() or ax.get_ylabel(), name
            continue
        lowest = ax.get_subplotspec() is None or ax.get_subplotspec().is_last_row()
        first = ax.get_subplotspec() is None or ax.get_subplotspec().is_first_col()
        assert ax.get_xlabel() or not lowest, name
        assert ax.get_ylabel() or not first, name
    assert CONTROL.search(words(figure)), f"{name} has no control"


def test_one_and_eight_members(results, laid_out):
    names = []
    for name, figure in laid_out:
        check(name, figure)
        names.append(name)
    expected = {"count", "places", "matrix", "spectrum", "effective-rank", "sweep", "rank"}
    expected |= {"groups", "layers", "tokens", "output", "alpha"}
    expected |= {drawing.name for drawing in grafted.DRAWINGS}
    assert expected <= set(names)
    assert ("forgetting" in names) == (len(results[0].members) > 2)


def test_over_steps(over_steps):
    found = dict(drawn(over_steps))
    check("training", found["training"])
    alone = dict(drawn(over_steps[:1]))
    assert len(alone["training"].axes) == 2
    assert len(found["training"].axes) == 3


def test_in_given_axes(over_steps):
    """Nothing is drawn outside the figure that was handed in, and its other axes stay empty."""
    for made in (everything(family(3)), skills(family(3)), over_steps):
        for result_ in made:
            for drawing, group in figures.drawings(result_, made):
                figure = Figure(figsize=(9, 4), layout="constrained")
                mine, other = figure.subplots(1, 2)
                assert drawing.draw(*group, ax=mine) is figure
                assert not other.has_data()
                check(drawing.name, figure)
                assert figure.get_figwidth() == 9


def test_several_panels_need_axes_with_a_place(over_steps):
    hand = Figure().add_axes((0.1, 0.1, 0.8, 0.8))
    with pytest.raises(WorkbenchError, match=r"plt\.subplots"):
        figures.forgetting_by_rank(over_steps[1], ax=hand)


def test_legends_cover_no_data(laid_out):
    """The legend of a new figure ends above every panel."""
    for name, figure in laid_out:
        for legend in figure.legends:
            box = legend.get_window_extent()
            tops = [ax.get_window_extent().y1 for ax in figure.axes]
            assert box.y0 >= max(tops) - 1, name
            assert box.x0 >= 0, name
            assert box.x1 <= figure.bbox.x1, name


def test_nothing_is_cut_off(laid_out):
    for name, figure in laid_out:
        inside(name, figure)


def test_members_look_apart_and_alike_in_every_figure():
    members = family(8)
    looks = style.assign(members)
    assert len({look.colour for look in looks.values()}) == 8
    few = retention(dict(list(members.items())[:2]))
    assert style.looks(few)["lora-r2"] != looks["lora-r2"]
    with figures.family(members):
        assert style.looks(few)["lora-r2"] == looks["lora-r2"]
    assert style.looks(few)["lora-r2"] != looks["lora-r2"]


def test_low_ranks_are_lighter():
    shades = [
        np.dot(mpl.colors.to_rgb(look.colour), (0.2126, 0.7152, 0.0722))
        for name, look in style.assign(family(8)).items()
        if name != "full"
    ]
    assert shades == sorted(shades, reverse=True)


def test_odd_names_are_drawn_as_they_are():
    odd = {"$x_1$": {"kind": "full"}, "_hidden": {"kind": "full"}, "n" * 90: {"kind": "full"}}
    figure = figures.intruders_by_eps(intruders(odd))
    figure.draw_without_rendering()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert r"\$x_1\$" in labels
    assert " _hidden" in labels
    assert max(map(len, labels)) <= style.NAME


def test_the_callers_settings_stay_as_they_were(results):
    before = dict(mpl.rcParams)
    figures.draw(results[0])
    assert dict(mpl.rcParams) == before


def test_draw_is_the_first_figure_and_result_plot_calls_it():
    made = intruders(family(1))
    first, second = (drawing for drawing, _ in list(figures.drawings(made, [made]))[:2])
    wanted = words(first.draw(made))
    assert words(figures.draw(made)) == words(made.plot()) == wanted
    assert words(second.draw(made)) != wanted
    other = result("patching.path", [{"metric": "gap", "value": 1.0}], {"a": {}})
    with pytest.raises(WorkbenchError, match=r"No figure of 'patching\.path'"):
        figures.draw(other)


def test_every_caption_says_when_it_misleads():
    names = [(drawing.analysis, drawing.name) for drawing in figures.CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(drawing.caption and drawing.misleads for drawing in figures.CATALOGUE)


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


def kept() -> dict[str, Result]:
    """By name, one Result of every analysis that some figure is of: a real one that figures/ keeps,
    made up where it keeps none."""
    found: dict[str, Result] = {}
    for run in ("family", "boxes"):
        for folder in sorted((ROOT / "figures" / run / "results").iterdir()):
            method = ".".join(folder.name.split(".")[:2])  # of all its studies the first
            steps = ".steps" if folder.name.endswith(".steps") else ""
            if method + steps not in found:
                found[method + steps] = Result.load(folder)
    for name in ("patching.activation.boxes", "patching.cross_model.heads"):
        found[name] = Result.load(ROOT / "figures" / "smollm2-patching" / "results" / name)
    return found | {"skills.blocks": blocks(family(1))}


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
    assert {(d.analysis, d.name) for d in figures.CATALOGUE} - drawn == {
        ("behaviour.emulate", "beta")
    }
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


def test_a_plot_takes_a_size_and_a_title_and_names_its_options():
    made = intruders(family(2))
    drawn = made.plot(figsize=(5.0, 3.0), title="Mine")
    assert tuple(drawn.get_size_inches()) == (5, 3)
    assert drawn.get_suptitle() == "Mine"
    _, axes = mpl.pyplot.subplots()
    made.plot(axes, title="Here")
    assert axes.get_title() == "Here"
    with pytest.raises(WorkbenchError, match="has no option 'size'; it has k, percent, figsize"):
        made.plot(size=3)
    with pytest.raises(WorkbenchError, match="found both"):
        made.plot(axes, figsize=(5, 3))


@pytest.mark.parametrize(
    "name", ["figures", "spectral", "patching", "skills", "forgetting", "behaviour", "tasks"]
)
def test_what_one_can_name_is_what_one_is_shown(name: str):
    """Not the modules that it lies in."""
    part = getattr(wb, name)
    assert dir(part) == sorted(part.__all__)
    assert all(hasattr(part, one) for one in dir(part))
