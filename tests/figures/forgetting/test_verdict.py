"""The grid of a verdict shows its evidence."""

from __future__ import annotations

import matplotlib as mpl

from tests.figures.looking import of_key, words
from workbench.figures import style
from workbench.figures.forgetting.verdict import KEY, MEASURES, READINGS, verdict_grid


def test_the_grid_is_coloured_by_its_readings(results):
    result = of_key(results, KEY)
    figure = verdict_grid(result)
    told = words(figure)
    for reading in result.metric("verdict")["reading"]:
        assert reading.lower() in told
    boxes = [p for p in figure.axes[0].patches if isinstance(p, mpl.patches.Rectangle)]
    table = result.metric("evidence").set_index(["member", "arm"])["reading"]
    wanted = [READINGS[table[m, arm]] for m in style.looks(result) for arm in MEASURES]
    assert [mpl.colors.to_hex(p.get_facecolor()) for p in boxes] == [w.lower() for w in wanted]
