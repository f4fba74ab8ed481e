"""The curves over a run's steps are its rows, with and without a task."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.figures.looking import panels
from tests.figures.synthetic import family, retention, stepped
from workbench.figures.forgetting.along import of_one_run, over_steps


def test_curves_are_the_rows_in_the_order_of_the_steps():
    result = retention(stepped())
    assert of_one_run(result)
    assert not of_one_run(retention(family(2)))
    steps = [result.provenance.members[name]["step"] for name in result.members]
    loss, *_, score = panels(over_steps(result))
    for here, metric in ((loss, "loss_change"), (score, "score")):
        rows = result.metric(metric).drop_duplicates("member").set_index("member")
        drawn = next(line for line in here.lines if len(line.get_xdata()) == len(steps))
        np.testing.assert_array_equal(drawn.get_xdata(), sorted(steps))
        order = [result.members[i] for i in np.argsort(steps)]
        np.testing.assert_allclose(drawn.get_ydata(), rows.loc[order, "value"].to_numpy(float))


def test_a_run_of_texts_alone_has_a_figure():
    result = retention(stepped())
    texts = result.table[result.table["metric"] != "score"].reset_index(drop=True)
    figure = over_steps(replace(result, table=texts))
    assert len(panels(figure)) == len(panels(over_steps(result))) - 1
