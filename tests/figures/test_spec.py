"""Panels from a small file: what it asks for is drawn, what it does not know is told."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.figures.synthetic import family, intruders, retention
from workbench.errors import WorkbenchError
from workbench.figures import STYLES, Spec
from workbench.files.reading import read_yaml

WHOLE = """
results: results
style: notebook
size: [6, 4]
columns: 2
panels:
  - analysis: spectral.intruders
    figure: count
    members: [full, lora-r2]
    title: Few $ and many
    legend: false
  - analysis: forgetting.retention
  - analysis: spectral.intruders
    figure: forgetting
    span: 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("spec")
    for result in (intruders(family(4)), retention(family(4))):
        result.save(made / "results" / result.analysis)
    return made


def written(folder: Path, text: str) -> Path:
    path = folder / "panels.yaml"
    path.write_text(text)
    return path


def test_what_the_file_asks_for(folder):
    spec = Spec.load(written(folder, WHOLE))
    figure = spec.draw()
    assert tuple(figure.get_size_inches()) == (6, 4)
    first, second, third = figure.subfigs
    assert first.get_suptitle() == r"a  Few \$ and many"
    labels = {line.get_label() for line in first.axes[0].lines}
    assert {"full", "lora-r2"} <= labels
    assert "lora-r1" not in labels
    assert all(ax.get_legend() is None for ax in first.axes)
    assert any(ax.get_legend() for ax in second.axes)
    assert len(third.axes) >= 1  # a figure of two Results finds the second one beside the first
    (path,) = spec.save(folder / "out" / "panels")
    with Image.open(path) as image:
        assert image.size == (6 * STYLES["notebook"].dpi, 4 * STYLES["notebook"].dpi)


def test_a_member_looks_the_same_in_every_panel(folder):
    figure = Spec.load(written(folder, WHOLE)).draw()
    first, second, _ = figure.subfigs
    colours = [
        {line.get_color() for ax in part.axes for line in ax.lines if line.get_label() == "full"}
        for part in (first, second)
    ]
    assert colours[0]
    assert colours[0] <= colours[1] or not colours[1]


def test_paper_is_png_and_pdf_of_one_column(folder):
    spec = Spec.load(written(folder, "results: results\npanels: [{analysis: spectral.intruders}]"))
    assert spec.size[0] == pytest.approx(3.4)
    paths = spec.save(folder / "out" / "paper")
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in spec.save(folder / "out" / "paper")] == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "Expected names with values"),
        ("panels: []", "list of 1 to 26 panels"),
        ("panels: [{analysis: a}]", "Expected results of every panel"),
        ("results: r\npanels: [{figure: a}]", "Expected analysis of every panel"),
        ("results: r\npanels: [{analysis: a}]\nstyle: baroque", "style paper or notebook"),
        ("results: r\npanels: [{analysis: a}]\nsize: huge", "size column, wide or"),
        ("results: r\npanels: [{analysis: a}]\nsize: [1e9, 2]", "size column, wide or"),
        ("results: r\npanels: [{analysis: a}]\ncolour: red", "Unknown 'colour'"),
        ("results: r\npanels: [{analysis: a, members: []}]", "members cannot be []"),
        ("results: r\npanels: [{analysis: a, span: 3}]", "spans 3 columns"),
        ("results: r\npanels: [{analysis: a, legend: 1}]", "legend cannot be 1"),
        ("results: r\npanels: &a [*a]", "anchor or a tag"),
        ("results: !!python/name:os.system x\npanels: [1]", "anchor or a tag"),
        ("results: r\nresults: s\npanels: [1]", "twice in one mapping"),
        ("panels: [" + "[" * 5000, "not plain YAML"),
        ("a: {", "not plain YAML"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text: str, says: str):
    with pytest.raises(WorkbenchError, match=says.replace("[", r"\[")):
        Spec.load(written(tmp_path, text))


def test_what_is_not_there(folder):
    panel = "results: results\npanels: [{{analysis: {}, {}}}]"
    for text, says in (
        (panel.format("nothing", "title: a"), "Expected a saved Result"),
        (panel.format("spectral.intruders", "figure: pie"), "has no figure 'pie'; it has count"),
        (panel.format("spectral.intruders", "members: [who]"), "has no model 'who'; it has"),
        (panel.format("spectral.intruders", "options: {k: 3, z: 1}"), "does not take the options"),
    ):
        with pytest.raises(WorkbenchError, match=says):
            Spec.load(written(folder, text)).draw()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab: -[]{}#&*!\n'\"", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner),
    max_leaves=8,
)


@given(text=st.text("ab:- []{},#&*!|>'\"\n\t%@`", max_size=60))
def test_any_text_is_read_or_told(tmp_path_factory, text: str):
    path = tmp_path_factory.mktemp("any") / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(WorkbenchError):  # whatever else is raised fails
        assert Spec.load(path).panels


@given(found=PLAIN)
def test_plain_values_come_back(tmp_path_factory, found):
    import yaml

    path = tmp_path_factory.mktemp("plain") / "spec.yaml"
    path.write_text(yaml.safe_dump(found), encoding="utf-8")
    assert read_yaml(path, remedy="mend it") == found
