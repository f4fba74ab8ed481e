"""Lens, pattern and attribution figures show the numbers of their Results, and a null."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.figures.synthetic import family, result
from tests.figures.test_figures import check, words
from workbench.errors import WorkbenchError
from workbench.figures import lenses, style
from workbench.results.result import Result

LAYERS, HEADS = 4, 3
TOKENS = ["<bos>", "Box", "$K", "holds", "the", "cup", ".", "Box", "$K", "contains", "the"]
FIGURES = {
    lenses.lens_by_layer: "lens",
    lenses.pattern_differences: "patterns",
    lenses.pattern_example: "patterns",
    lenses.attribution_against_exact: "attribution",
    lenses.attribution_by_head: "attribution",
}


def mean(value: float, width: float = 0.1) -> dict:
    return {"value": value, "low": value - width, "high": value + width, "n": 32, "baseline": 0.0}


def lens(members: dict) -> Result:
    """The answer rises with the layer; tuned is ahead by a nat behind layer 1."""
    rows = []
    for member in members:
        for layer in range(-1, LAYERS):
            about = {"member": member, "layer": layer}
            ahead = float(layer > 1)
            for side, value in (("base", layer - 5.0), ("tuned", layer - 5.0 + ahead)):
                rows.append(about | {"side": side, "metric": "log_probability"} | mean(value))
            rows.append(about | {"side": lenses.CHANGE, "metric": "kl"} | mean(ahead))
    return result(lenses.LENS, rows, members)


def patterns(members: dict) -> Result:
    """Head 1 of layer 2 has moved, most of all in the second prompt."""
    rows, tensors = [], {}
    for member in members:
        for layer in range(LAYERS):
            for head in range(HEADS):
                value = 0.5 if (layer, head) == (2, 1) else 0.01 * layer
                about = {"member": member, "layer": layer, "head": head, "side": lenses.CHANGE}
                rows.append(about | {"position": "last token", "metric": "tvd"} | mean(value))
        for number, change in enumerate((0.1, 0.9)):
            for x, token in enumerate(TOKENS):
                about = {"member": member, "layer": 2, "head": 1, "side": lenses.CHANGE}
                said = {"prompt": f"p{number}", "x": float(x), "token": token}
                rows.append(about | said | {"metric": "example_tvd", "value": change})
            for side, place in (("base", 2), ("tuned", 5)):
                last = np.zeros((LAYERS, HEADS, len(TOKENS)))
                last[..., place] = 1
                name = f"{number}/{side}/last"
                tensors[f"{member}/{name}" if len(members) > 1 else name] = last
    return result(lenses.PATTERNS, rows, members, tensors)


def attribution(members: dict) -> Result:
    """Every exact effect is twice the first-order one; two positions a head."""
    rows = []
    for member in members:
        for side in ("base", "tuned", "tuned->base"):
            about = {"member": member, "side": side, "component": "z", "arm": "patch"}
            for layer in range(LAYERS):
                for head in range(HEADS):
                    for position in ("query box", "-1"):
                        place = about | {"layer": layer, "head": head, "position": position}
                        value = 0.1 * layer - 0.05 * head
                        rows.append(place | {"metric": "attribution"} | mean(value))
                        if position == "-1":
                            group = "top" if layer > 1 else "random"
                            about_exact = place | {"metric": "exact", "group": group}
                            rows.append(about_exact | mean(2 * value))
            for group, value in (("top", 0.91), ("random", 0.42)):
                rows.append(about | {"metric": "rank_correlation", "group": group} | mean(value))
            shuffled = {"layer": 3, "head": 0, "position": "-1", "group": "top", "arm": "shuffled"}
            rows.append(about | shuffled | {"metric": "attribution"} | mean(9.0))
    made = result(lenses.ATTRIBUTION, rows, members)
    whole = dict.fromkeys(("layer", "head"), "Int64")
    table = made.table.assign(neuron=np.nan).astype(whole | {"neuron": "Int64"})
    return Result(made.analysis, table, made.provenance)


MADE = {"lens": lens, "patterns": patterns, "attribution": attribution}


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("count", [1, 8])
def test_one_and_eight_members(draw, count):
    figure = draw(MADE[FIGURES[draw]](family(count)))
    check(draw.__name__, figure)
    assert figure.get_figwidth() in (style.COLUMN, style.WIDE)
    figure.canvas.draw()
    assert "lora-r1" in words(figure)


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_in_given_axes(draw):
    figure = Figure(figsize=(9, 4), layout="constrained")
    mine, other = figure.subplots(1, 2)
    assert draw(MADE[FIGURES[draw]](family(2)), ax=mine) is figure
    assert not other.has_data()
    assert figure.get_figwidth() == 9


def test_the_lens_lines_are_the_table():
    figure = lenses.lens_by_layer(lens(family(1)))
    answer, divergence = figure.axes[:2]
    lines = {line.get_label(): line.get_ydata() for line in answer.lines}
    np.testing.assert_allclose(lines["base"], np.arange(-1, LAYERS) - 5)
    np.testing.assert_allclose(lines["lora-r1"] - lines["base"], [0, 0, 0, 1, 1])
    np.testing.assert_allclose(divergence.lines[0].get_ydata(), [0, 0, 0, 1, 1])


def test_maps_are_the_table():
    (image,) = lenses.pattern_differences(patterns(family(1))).axes[0].images
    assert image.origin == "lower"
    assert np.unravel_index(image.get_array().argmax(), (LAYERS, HEADS)) == (2, 1)
    assert image.get_clim() == (0.0, 0.5)
    figure = lenses.attribution_by_head(attribution(family(1)))
    (image,) = figure.axes[0].images
    expected = 2 * (0.1 * np.arange(LAYERS)[:, None] - 0.05 * np.arange(HEADS))
    np.testing.assert_allclose(image.get_array(), expected)  # both positions, shuffled left out
    low, high = image.get_clim()
    assert low == -high
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == [
        "base", "lora-r1", "lora-r1 into base",
    ]  # fmt: skip


def test_the_example_is_the_one_that_changes_and_legible():
    figure = lenses.pattern_example(patterns(family(2)))
    lowest = figure.axes[1]
    labels = [tick.get_text() for tick in lowest.get_xticklabels()]
    assert labels == [token.replace("$", r"\$") for token in TOKENS]
    assert all(tick.get_fontsize() >= 6 for tick in lowest.get_xticklabels())
    heights = [bar.get_height() for bar in lowest.patches]
    assert heights.index(1) == 2
    assert heights[len(TOKENS) :].index(1) == 5
    assert "layer 2, head 1" in words(figure)
    with pytest.raises(WorkbenchError, match="from 0 to 1"):
        lenses.pattern_example(patterns(family(2)), example=2)


def test_the_scatter_joins_every_exact_entry_with_its_attribution():
    made = attribution(family(2))
    entries = lenses.checked(made, "full")
    assert len(entries) == 3 * LAYERS * HEADS
    np.testing.assert_allclose(entries["exact"], 2 * entries["attribution"])
    figure = lenses.attribution_against_exact(made)
    points = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert sum(len(line.get_xdata()) for line in points) == len(entries)
    hollow = [line for line in points if line.get_markerfacecolor() == "none"]
    assert sum(len(line.get_xdata()) for line in hollow) == 3 * 2 * HEADS
    assert "0.91, 0.42" in words(figure)


def test_no_rc_leaks():
    before = dict(mpl.rcParams)
    lenses.lens_by_layer(lens(family(1)))
    assert dict(mpl.rcParams) == before
