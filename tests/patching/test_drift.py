"""Drift of hidden states: exact nulls, invariances, scipy's matrix root, and numbers by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import boxes, model, paired
from workbench.patching.drift import alignment, cka, cosines, frechet, uniformity
from workbench.stats import halves
from workbench.tasks import PromptSet
from workbench.tasks.batching import rows

BOTH = "tuned - base"


def drawn(n: int, width: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed)
    return made.standard_normal((n, width)) @ made.standard_normal((width, width)) + made.random(
        width
    )


def test_frechet_is_scipys_with_a_matrix_root():
    """Where the covariances have full rank: |m1 - m2|^2 + tr(S1 + S2 - 2 sqrtm(S1 S2))."""
    x, y = drawn(40, 5, 0), drawn(30, 5, 1)
    first, second = np.cov(x.T), np.cov(y.T)
    exact = np.square(x.mean(0) - y.mean(0)).sum()
    exact += np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert frechet(x, y) == pytest.approx(exact, rel=1e-8)


def test_frechet_by_hand_and_its_nulls():
    """One coordinate: (m1 - m2)^2 + (s1 - s2)^2. A shift by t adds |t|^2, a rotation nothing."""
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [7.0]])
    assert frechet(x, y) == pytest.approx(9 + (np.sqrt(18) - np.sqrt(2)) ** 2)
    wide = drawn(6, 20, 2)  # fewer states than coordinates
    assert frechet(wide, wide) == pytest.approx(0, abs=1e-9)
    assert frechet(wide, wide + 3) == pytest.approx(9 * 20)
    turn = np.linalg.qr(drawn(20, 20, 3))[0]
    other = drawn(6, 20, 4)
    assert frechet(wide @ turn, other @ turn) == pytest.approx(frechet(wide, other))


def test_cka_is_blind_to_rotation_and_scale_and_low_for_strangers():
    x = drawn(200, 6, 0)
    turn = np.linalg.qr(drawn(6, 6, 1))[0]
    assert cka(x, 3 * x @ turn + 1) == pytest.approx(1)
    a, b = x - x.mean(0), drawn(200, 4, 9)
    b = b - b.mean(0)
    exact = np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert cka(x, b) == pytest.approx(exact)
    assert cka(x, b) < 0.1
    assert np.isnan(cka(x, np.ones((200, 2))))


def test_uniformity_is_that_of_all_pairs_and_its_scatter_covers():
    """log mean over pairs by scipy's distances; and the influences' spread is the statistic's."""
    x = drawn(25, 4, 0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    exact = np.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean())
    assert uniformity(x).mean() == pytest.approx(exact)
    assert uniformity(np.ones((5, 3))) == pytest.approx(np.zeros(5))
    draw = np.random.default_rng(0)
    repeated = [uniformity(draw.standard_normal((60, 3)) + 1) for _ in range(300)]
    told = np.mean([one.std(ddof=1) / np.sqrt(60) for one in repeated])
    assert told == pytest.approx(np.std([one.mean() for one in repeated]), rel=0.15)


def test_alignment_and_cosines_by_hand():
    x, y = np.array([[1.0, 0], [2, 0], [0, 3]]), np.array([[0.0, 5], [1, 0], [0, -1]])
    assert cosines(x, y) == pytest.approx([0, 1, -1])
    assert alignment(x, y) == pytest.approx([2, 0, 4])
    assert np.isnan(cosines(x, np.zeros((3, 2)))).all()


def states(made, words, prompts: PromptSet) -> list[np.ndarray]:
    """What transformers calls hidden states, at each prompt's own last token; the last one is
    normalised there, so without it."""
    found = []
    with torch.no_grad():
        for row in rows(words, prompts):
            out = made(torch.tensor([row.ids]), output_hidden_states=True)
            found.append([state[0, -1].double().numpy() for state in out.hidden_states])
    return [np.stack(depth) for depth in zip(*found, strict=True)][:-1]


def test_every_number_by_plain_torch(tmp_path):
    base, tuned = model(), nudged(model(), seed=1)
    pair, prompts = paired(base, tuned, tmp_path), boxes(9, count=None)
    words = pair.base.tokenizer()
    turned = PromptSet("turned", prompts.prompts[::-1])
    found = wb.patching.drift(pair, prompts, rewordings=turned, batch_size=4)
    ours, theirs = (states(one, words, prompts) for one in (base, tuned))
    other = [states(one, words, turned) for one in (base, tuned)]
    table = found.table.set_index(["layer", "side", "metric"])["value"]
    assert sorted(set(found.table["layer"])) == [-1, 0, 1, 2]
    for depth, (x, y) in enumerate(zip(ours, theirs, strict=True)):
        layer = depth - 1
        first = [halves(9, seed)[0] for seed in range(8)]
        apart = np.mean([frechet(x[own], y[own]) for own in first])
        assert table[layer, BOTH, "frechet"] == pytest.approx(apart, rel=1e-4)
        a, b = x - x.mean(0), y - y.mean(0)
        if layer < 0:  # all prompts end in the same token
            assert np.isnan(table[layer, BOTH, "cka"])
        else:
            exact = np.linalg.norm(a.T @ b) ** 2
            exact /= np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
            assert table[layer, BOTH, "cka"] == pytest.approx(exact, rel=1e-4)
        unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (x, y)]
        assert table[layer, BOTH, "cosine"] == pytest.approx(
            (unit[0] * unit[1]).sum(1).mean(), rel=1e-4
        )
        even = [np.log(np.exp(-2 * pdist(one, "sqeuclidean")).mean()) for one in unit]
        far = [
            2 - 2 * cosines(own, reworded[depth]).mean()
            for own, reworded in zip((x, y), other, strict=True)
        ]
        for metric, (before, after) in (("uniformity", even), ("alignment", far)):
            assert table[layer, "base", metric] == pytest.approx(before, rel=1e-4)
            assert table[layer, "tuned", metric] == pytest.approx(after, rel=1e-4)
            change = table[layer, BOTH, metric]
            assert change == pytest.approx(after - before, abs=1e-5)


def test_the_base_against_itself_does_not_drift(tmp_path):
    made = model()
    pair = paired(made, made, tmp_path)
    found = wb.patching.drift(pair, boxes(8, count=None))
    both = found.table[(found.table["side"] == BOTH) & (found.table["layer"] >= 0)]
    for metric, null in (("frechet", 0), ("cka", 1), ("cosine", 1), ("uniformity", 0)):
        assert both.loc[both["metric"] == metric, "value"].to_numpy() == pytest.approx(
            null, abs=1e-6
        )
    far = both[both["metric"] == "frechet"]
    assert (far["baseline"] > 0.001).all()
    assert (far["null_low"] <= far["baseline"]).all()
    assert (far["baseline"] <= far["null_high"]).all()


def test_a_change_of_one_layer_drifts_from_there_on(tmp_path):
    """Planted in layer 1's MLP: the embedding and layer 0 stay exactly as they were."""
    tuned = model()
    with torch.no_grad():
        tuned.model.layers[1].mlp.down_proj.weight.mul_(3)
    pair = paired(model(), tuned, tmp_path)
    found = wb.patching.drift(pair, boxes(8, count=None)).metric("frechet").sort_values("layer")
    early, late = found["value"].to_numpy()[:2], found["value"].to_numpy()[2:]
    assert early == pytest.approx(0, abs=1e-9)
    assert (late > 1e-4).all()


def test_too_few_prompts_and_other_numbers_of_rewordings_are_refused(tmp_path):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    with pytest.raises(wb.WorkbenchError, match="at least 4 prompts"):
        wb.patching.drift(pair, boxes(3, count=None))
    with pytest.raises(wb.WorkbenchError, match="rewording of each of the 6 prompts"):
        wb.patching.drift(pair, boxes(6, count=None), rewordings=boxes(5, count=None))
