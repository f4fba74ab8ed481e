"""The figures of grafts show the numbers of their Results, and a control."""

from __future__ import annotations

import numpy as np

from tests.figures import skilled
from tests.figures.looking import heights, legend, lines, panels, words
from tests.figures.skilled import BASE, TUNED, level
from tests.figures.synthetic import COMPONENTS, LAYERS, TASK, family
from workbench import figures

LORA, FULL = "lora-r1", "full"


def test_graft_scores():
    figure = figures.graft_scores(skilled.localize(family(2)))
    assert [ax.get_title(loc="left") for ax in panels(figure)] == [LORA, FULL]
    for ax in panels(figure):
        shown = lines(ax)
        for arm, label in (("learned", "learned mask"), ("movement", "largest change |Δ|"),
                           ("random", "random entries")):  # fmt: skip
            x, y = shown[label]
            np.testing.assert_allclose(x, skilled.SPARSITIES)
            np.testing.assert_allclose(y, level(np.minimum(1, x / skilled.NEEDED[arm])))
        assert len(shown["one layer"][0]) == LAYERS
        assert heights(ax) >= {BASE, TUNED}
        assert ax.get_xscale() == "log"
    # A band for the learned mask and for random entries, and no further one.
    assert len(panels(figure)[0].collections) == 2
    assert "largest weights |θ₀|" not in legend(figure)  # it was not asked for
    calibrated = figures.graft_scores(skilled.localize(family(1)), metric="ece")
    assert panels(calibrated)[0].get_ylabel() == f"calibration error on {TASK}"


def test_graft_places_takes_the_smallest_graft_that_does():
    made = skilled.localize(family(1))
    (image,) = panels(figures.graft_places(made))[0].images
    assert image.get_array().shape == (LAYERS, len(COMPONENTS))
    np.testing.assert_allclose(image.get_array()[2], np.log2(LAYERS))
    np.testing.assert_allclose(image.get_array()[0], -4)  # none of it, cut off at a 16th
    assert "1.00%" in words(figures.graft_places(made))
    assert "10.00%" in words(figures.graft_places(made, arm="movement"))


def test_the_sentence_holds_the_numbers_and_the_control():
    said = figures.headline(skilled.localize(family(2)))
    for words_ in (
        "learned mask: 1.00 [0.92, 1.08] at 1.000%",
        "random entries: not enough yet, 0.10 [0.02, 0.18] at 10.000%",
    ):
        assert words_ in said, said
