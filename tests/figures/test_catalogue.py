"""Every analysis has a sentence, its figures and their captions, found by its key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot
import pytest

from tests.figures.looking import words
from tests.figures.skilled import localize, skills
from tests.figures.synthetic import everything, family, intruders, result, stepped
from workbench import figures
from workbench.errors import WorkbenchError
from workbench.figures import catalogue
from workbench.results.result import Result
from workbench.study.catalogue import METHODS

ROOT = Path(figures.__file__).parent


def test_the_files_of_a_method_are_found_by_its_key():
    for method in catalogue.METHODS:
        assert Path(method.__file__) == ROOT / f"{method.KEY.replace('.', '/')}.py"
        assert {drawing.analysis for drawing in getattr(method, "DRAWINGS", ())} <= {method.KEY}


def test_every_file_of_the_folders_is_a_method_or_shared_by_some():
    """A file without a KEY is drawn by nobody unless another one imports from it."""
    found = {Path(method.__file__) for method in catalogue.METHODS}
    for path in set(ROOT.glob("*/[!_]*.py")) - found:
        name = f"workbench.figures.{path.parent.name}.{path.stem}"
        assert any(f"from {name} import" in method.read_text() for method in found), path
        assert "DRAWINGS" not in path.read_text()


def test_every_analysis_has_figures_and_a_sentence():
    methods = {method.key for method in METHODS} - {"patching.groups"}  # patches of cross_model
    assert methods <= set(catalogue.SENTENCES)
    assert methods <= set(catalogue.HEADINGS)
    drawn = {drawing.analysis for drawing in figures.CATALOGUE}
    assert drawn <= set(catalogue.SENTENCES)
    # Restored parameters are a curve of cross_model.
    assert set(catalogue.SENTENCES) - drawn == {"patching.restore"}


def test_draw_is_the_first_figure_and_result_plot_calls_it():
    made = intruders(family(1))
    first, second = (drawing for drawing, _ in list(figures.drawings(made, [made]))[:2])
    wanted = words(first.draw(made))
    assert words(figures.draw(made)) == words(made.plot()) == wanted
    assert words(second.draw(made)) != wanted
    other = result("patching.restore", [{"metric": "gap", "value": 1.0}], {"a": {}})
    with pytest.raises(WorkbenchError, match=r"No figure of 'patching\.restore'"):
        figures.draw(other)


def test_every_caption_says_when_it_misleads():
    names = [(drawing.analysis, drawing.name) for drawing in figures.CATALOGUE]
    assert len(set(names)) == len(names)
    assert all(drawing.caption and drawing.misleads for drawing in figures.CATALOGUE)


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


def test_every_analysis_has_one_sentence_and_an_unknown_one_a_general_one():
    for made in [*everything(family(3)), *skills(family(3))]:
        assert figures.headline(made).endswith(".")
        # Of grafts put together the tasks are named, and of many overlaps the first.
        if made.analysis not in ("skills.compose", "skills.overlap", "spectral.subspaces"):
            assert all(name in figures.headline(made) for name in made.members)
    other = result("another.analysis", [{"metric": "gap", "value": 1.0}], stepped())
    assert "1 values of gap" in figures.headline(other)


def test_what_is_only_words_is_no_figure_and_its_words_are_in_the_table():
    """The texts that models write are rows of their Result; `side_by_side` shows them on demand."""
    folder = ROOT.parents[1] / "figures" / "family" / "results" / "behaviour.generate.said"
    made = Result.load(folder)
    assert [drawing.name for drawing, _ in figures.drawings(made, [made])] == ["words"]
    texts = made.metric("text")
    assert set(texts["member"]) == set(made.members)
    assert {"base", "tuned"} <= set(texts["arm"])
    assert texts["text"].str.strip().ne("").any()


def test_a_curve_of_one_point_is_no_figure_and_the_headline_has_its_number():
    """Grafts of a single size: a score each."""
    made = localize(family(2))
    few = replace(made, table=made.table[~made.table["sparsity"].isin([0.001, 0.01])])
    names = [drawing.name for drawing, _ in figures.drawings(few, [few])]
    assert names == ["places"]
    assert "sparsity" in [drawing.name for drawing, _ in figures.drawings(made, [made])]
    assert "largest change |Δ|: 1.00 [0.92, 1.08] at 10.000%" in figures.headline(few)


def test_measures_of_one_model_and_models_without_a_measure_are_not_drawn():
    """Three measures: of all models, of two, and of one, which the table alone shows."""
    members = family(4)
    rows = [
        {"member": member, "measure": measure, "metric": "measure", "value": value,
         "low": value - 0.1, "high": value + 0.1, "n": 20, "baseline": 0.0}
        for measure, names in (
            ("score", list(members)), ("TuCo", ["lora-r1", "full"]), ("forgetting", ["lora-r8"]),
        )
        for value, member in enumerate(names)
    ]  # fmt: skip
    differences = {"versus": "full", "says": "alike", "arm": "difference", "margin": 0.1}
    rows += [
        {"member": member, "measure": "score", "metric": "difference", "value": 0.0, "low": -0.05,
         "high": 0.05, "n": 20, "baseline": 0.0} | differences
        for member in members if member != "full"
    ]  # fmt: skip
    figure = figures.members_against_full(result("compare.equivalence", rows, members))
    first, second = (ax for ax in figure.axes if ax.axison)
    assert [t.get_text() for t in first.get_yticklabels()] == list(members)
    assert [t.get_text() for t in second.get_yticklabels()] == ["lora-r1", "full"]
    assert [ax.get_xlabel() for ax in (first, second)] == ["score on the task", "TuCo on the task"]
    alone = [row for row in rows if row["measure"] == "forgetting"]
    made = result("compare.equivalence", alone, members)
    assert not list(figures.drawings(made, [made]))
