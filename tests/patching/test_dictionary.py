"""Sparse dictionaries: SAELens' own numbers, plain torch, and a direction that a model adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import boxes, model, paired
from tests.patching.dictionaries import drawn, exact, saved
from workbench.patching.dictionary import CHANGE, largest, unexplained
from workbench.patching.sae import CFG, SAE, WEIGHTS
from workbench.stats import halves, others
from workbench.tasks.batching import rows

LAYER, KEPT = 1, 4  # of the planted change, its row


def waves() -> dict[str, Tensor]:
    """Weights that any library makes alike."""

    def wave(step: float, *shape: int) -> Tensor:
        count = torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float32)
        return torch.cos(step * count).reshape(shape)

    return {
        "W_enc": wave(0.7, 4, 6), "W_dec": wave(1.3, 6, 4), "b_enc": 0.2 * wave(2.1, 6),
        "b_dec": 0.5 * wave(1.9, 4), "threshold": 2 * wave(0.4, 6).abs(),
    }  # fmt: skip


# What SAELens 6.51.1 gives of `waves` for the state below: latents, and the reconstruction.
STATE = [-1.41108, 0.62308, 1.97634, 1.16983]
OURS: list[tuple[dict[str, Any], list[float], list[float]]] = [
    (
        {"architecture": "standard"},
        [0.0, 0.0, 0.55064, 1.16269, 1.49164, 1.36056],
        [-2.48204, -0.49945, 2.68213, 1.44125],
    ),
    (
        {"architecture": "standard", "apply_b_dec_to_input": False},
        [0.0, 0.0, 0.0, 0.98185, 1.79433, 2.00443],
        [-3.43434, -1.80197, 2.93758, 2.88043],
    ),
    (
        {"architecture": "standard", "normalize_activations": "layer_norm"},
        [0.0, 0.0, 0.83081, 1.21118, 1.28565, 0.99697],
        [-2.16961, 0.83677, 4.15617, 1.5379],
    ),
    (
        {"architecture": "standard", "normalize_activations": "constant_norm_rescale"},
        [0.0, 0.0, 0.614, 0.86187, 0.96812, 0.86056],
        [-2.11433, -0.17069, 2.66941, 0.91667],
    ),
    (
        {"architecture": "jumprelu"},
        [0.0, 0.0, 0.0, 1.16269, 1.49164, 0.0],
        [-2.07438, 0.28992, 2.69678, 0.65972],
    ),
    (
        {"architecture": "topk", "k": 2},
        [0.0, 0.0, 0.0, 0.0, 1.49164, 1.36056],
        [-2.40871, -1.92504, 1.84611, 2.41957],
    ),
    (
        {"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True},
        [0.0, 0.0, 0.0, 0.0, 2.24086, 2.00436],
        [-2.40871, -1.92504, 1.84611, 2.41957],
    ),
]


@pytest.mark.parametrize(("cfg", "latents", "rebuilt"), OURS)
def test_latents_and_reconstruction_are_saelens(tmp_path, cfg, latents, rebuilt):
    weights = waves()
    if cfg.get("architecture") != "jumprelu":
        del weights["threshold"]
    read = SAE.load(saved(tmp_path / "sae", weights, **cfg)).read(torch.tensor([STATE]))
    assert read.latents[0].tolist() == pytest.approx(latents, abs=2e-5)
    assert read.rebuilt[0].tolist() == pytest.approx(rebuilt, abs=5e-5)


def test_a_cfg_from_before_version_6_is_read_alike(tmp_path):
    weights = {name: own for name, own in waves().items() if name != "threshold"}
    now = SAE.load(saved(tmp_path / "now", weights, architecture="topk", k=2))
    saved(tmp_path / "then", weights)
    (tmp_path / "then" / CFG).write_text(
        '{"d_in": 4, "d_sae": 6, "hook_point": "blocks.1.hook_resid_post", "activation_fn_str": '
        '"topk", "activation_fn_kwargs": {"k": 2}, "normalize_activations": "none"}'
    )
    then, state = SAE.load(tmp_path / "then"), torch.tensor([STATE])
    assert (then.site, then.k) == (now.site, now.k)
    assert torch.equal(then.read(state).rebuilt, now.read(state).rebuilt)


def test_unexplained_variance_by_hand_and_its_scatter():
    """(1 + 2) / (2 + 4) = 1/2, and an error in proportion has no scatter."""
    assert unexplained(np.array([1.0, 2.0]), np.array([2.0, 4.0])) == pytest.approx([0.5, 0.5])
    draw = np.random.default_rng(0)
    told, seen = [], []
    for _ in range(300):
        scatter = draw.uniform(1, 3, 50)
        values = unexplained(scatter * draw.uniform(0, 0.4, 50), scatter)
        told.append(values.std(ddof=1) / np.sqrt(50))
        seen.append(values.mean())
    assert np.mean(told) == pytest.approx(np.std(seen), rel=0.15)


def test_the_largest_change_by_chance_is_exceeded_as_often_as_told():
    """Of sides that differ in nothing but noise, alike in no two latents, in 5% of cases; a change
    of one latent by more than that is found."""
    draw = np.random.default_rng(1)
    beyond = []
    for seed in range(200):
        noise = draw.standard_normal((12, 30)) * draw.uniform(0.1, 3, 30)
        beyond.append(np.abs(noise.mean(0)).max() > largest(noise, seed))
    assert 0.005 <= np.mean(beyond) <= 0.1
    noise = draw.standard_normal((12, 30))
    noise[:, 7] += 4
    assert np.flatnonzero(np.abs(noise.mean(0)) > largest(noise, 0)).tolist() == [7]
    assert largest(np.zeros((5, 3)), 0) == 0 == largest(np.zeros((5, 0)), 0)


def states(made: Any, words: Any, prompts: Any) -> list[Tensor]:
    """What transformers calls hidden states behind layer 1, of all tokens of a prompt."""
    with torch.no_grad():
        return [
            made(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[LAYER + 1][0]
            for row in rows(words, prompts)
        ]


def last_logits(made: Any, ids: list[int], state: Tensor | None = None) -> Tensor:
    """log p at the last token, with layer 1 putting out this."""

    def put(module: Any, args: Any, out: Any) -> Any:
        return (state[None], *out[1:]) if isinstance(out, tuple) else state[None]

    hook = made.model.layers[LAYER].register_forward_hook(put) if state is not None else None
    with torch.no_grad():
        found = made(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    if hook is not None:
        hook.remove()
    return found


def test_every_number_by_plain_torch(tmp_path):
    base, tuned = model(), nudged(model(), seed=1)
    pair, prompts = paired(base, tuned, tmp_path), boxes(9, count=None)
    words, weights = pair.base.tokenizer(), drawn(base.config.hidden_size, 40)
    found = wb.patching.dictionary(pair, prompts, saved(tmp_path / "sae", weights), batch_size=4)
    table = found.table

    def rebuilt(x: Tensor) -> tuple[Tensor, Tensor]:
        z = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).clamp(min=0)
        return z, z @ weights["W_dec"] + weights["b_dec"]

    def told(metric: str, **where: Any) -> Any:
        own = table[table["metric"] == metric]
        for column, wanted in where.items():
            own = own[own[column] == wanted]
        return own.iloc[0]

    full = {side: states(one, words, prompts) for side, one in (("base", base), ("tuned", tuned))}
    used = {side: [x[1:] for x in own] for side, own in full.items()}
    error = {side: [x - rebuilt(x)[1] for x in own] for side, own in used.items()}
    fvu, active = {}, {}
    for side, own in used.items():
        every = torch.cat(own)
        left = torch.cat(error[side]).square().sum()
        fvu[side] = float(left / (every - every.mean(0)).square().sum())
        active[side] = np.mean([float((rebuilt(x)[0] > 0).sum(1).float().mean()) for x in own])
        assert told("fvu", side=side)["value"] == pytest.approx(fvu[side], rel=1e-4)
        assert told("l0", side=side)["value"] == pytest.approx(active[side], rel=1e-5)
    for metric, own in (("fvu", fvu), ("l0", active)):
        change = own["tuned"] - own["base"]
        assert told(metric, side=CHANGE)["value"] == pytest.approx(change, abs=1e-5)

    moved = torch.cat(used["tuned"]) - torch.cat(used["base"])
    inside = torch.cat(error["tuned"]) - torch.cat(error["base"])
    part = told("change_explained")
    assert part["value"] == pytest.approx(
        1 - float(inside.square().sum() / moved.square().sum()), abs=1e-4
    )
    ends = [torch.stack([x[-1] for x in own]) for own in (used["base"], error["base"])]
    apart, left = (float((x - x[others(9, 0)]).square().sum()) for x in ends)
    assert part["baseline"] == pytest.approx(1 - left / apart, abs=1e-4)

    norms = weights["W_dec"].norm(dim=1)
    mean = {
        side: np.stack([(rebuilt(x)[0].mean(0) * norms).numpy() for x in own])
        for side, own in used.items()
    }
    change = (mean["tuned"] - mean["base"]).astype(float)
    count = (np.abs(change.mean(0)) > largest(change, 0)).sum()
    assert told("changed")["value"] == count > 0
    pick, report = halves(9, 0)
    half = mean["base"][pick].astype(float) - mean["base"][report[: len(pick)]]
    assert told("changed")["baseline"] == (np.abs(half.mean(0)) > largest(half, 0)).sum()
    shown = table[(table["metric"] == "activation") & (table["side"] == CHANGE)]
    order = np.argsort(-np.abs(change[pick].mean(0)))[:20]
    assert shown["latent"].tolist() == order.tolist()
    assert shown["value"].to_numpy() == pytest.approx(change[report][:, order].mean(0), abs=1e-5)
    edge = largest(change[report], 0)
    assert shown["null_high"].to_numpy() == pytest.approx(edge, rel=1e-4)
    assert shown["null_low"].to_numpy() == pytest.approx(-edge, rel=1e-4)
    splits = [halves(9, seed) for seed in range(8)]
    null = np.mean(
        [np.abs(mean["base"][a].mean(0) - mean["base"][b].mean(0)) for a, b in splits], 0
    )
    assert shown["baseline"].to_numpy() == pytest.approx(null[order], abs=1e-5)
    np.testing.assert_allclose(found.tensors["latents/tuned"], mean["tuned"].mean(0), atol=1e-5)

    kl: dict[str, list[float]] = {arm: [] for arm in ("base", "latents", "error", "both")}
    for row, x, y in zip(rows(words, prompts), full["base"], full["tuned"], strict=True):
        goal, more = last_logits(tuned, row.ids), rebuilt(y)[1] - rebuilt(x)[1]
        runs = {"base": None, "latents": x + more, "error": y - more, "both": y}
        for arm, state in runs.items():
            p = last_logits(base, row.ids, state)
            kl[arm].append(float((goal.exp() * (goal - p)).sum()))
    for arm, values in kl.items():
        assert told("kl_tuned", arm=arm)["value"] == pytest.approx(np.mean(values), abs=2e-5)


def test_the_base_against_itself_changes_no_latent(tmp_path):
    made = model()
    pair = paired(made, made, tmp_path)
    sae = saved(tmp_path / "sae", drawn(made.config.hidden_size, 40))
    table = wb.patching.dictionary(pair, boxes(8), sae).table
    both = table[table["side"] == CHANGE].set_index("metric")["value"]
    assert (both[["fvu", "l0", "changed"]] == 0).all()
    assert (both["activation"] == 0).all()
    assert np.isnan(both["change_explained"])
    assert table.loc[table["metric"] == "kl_tuned", "value"].to_numpy() == pytest.approx(
        0, abs=1e-6
    )


def adding(folder: Path, size: float) -> Any:
    """A pair whose tuned model adds a row of `exact` to the stream behind layer 1."""
    base, tuned = (model("gpt2") for _ in range(2))
    row = exact(base.config.hidden_size)["W_dec"][KEPT]
    tuned.transformer.h[LAYER].mlp.c_proj.bias.data.add_(size * row)
    return paired(base, tuned, folder)


def test_a_direction_that_is_added_is_one_latent(tmp_path):
    """It is found alone, by its size; its part of the change does all that the change does."""
    pair = adding(tmp_path, 3.0)
    sae = saved(tmp_path / "sae", exact(pair.base.config["n_embd"]))
    found = wb.patching.dictionary(pair, boxes(12), sae, shown=3)
    table = found.table.set_index("metric")
    first = table.loc["activation"].query("side == @CHANGE").iloc[0]
    assert first["latent"] == KEPT
    assert first["value"] == pytest.approx(3, abs=1e-4)
    assert first["value"] > first["null_high"]
    assert (table.loc["changed", "value"], table.loc["changed", "baseline"]) == (1, 0)
    assert table.loc["change_explained", "value"] == pytest.approx(1, abs=1e-6)
    assert table.loc["fvu", "value"].to_numpy() == pytest.approx(0, abs=1e-6)
    kl = table.loc["kl_tuned"].set_index("arm")["value"]
    assert kl["base"] > 0.01
    assert kl[["latents", "both"]].to_numpy() == pytest.approx(0, abs=1e-5)
    assert kl["error"] == pytest.approx(kl["base"], abs=1e-4)


def test_a_direction_that_the_dictionary_lacks_is_in_the_error_node(tmp_path):
    pair = adding(tmp_path, 3.0)
    sae = saved(tmp_path / "sae", exact(pair.base.config["n_embd"], without=KEPT))
    table = wb.patching.dictionary(pair, boxes(12), sae, shown=3).table.set_index("metric")
    assert table.loc["changed", "value"] == 0
    assert table.loc["change_explained", "value"] == pytest.approx(0, abs=1e-4)
    kl = table.loc["kl_tuned"].set_index("arm")["value"]
    assert kl["error"] == pytest.approx(0, abs=1e-5)
    assert kl["latents"] == pytest.approx(kl["base"], abs=1e-4)


def test_another_site_than_the_cfgs(tmp_path):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    sae = saved(tmp_path / "sae", drawn(32, 40), hook="model.layers.0.mlp")
    with pytest.raises(wb.WorkbenchError, match=r"found hook_name 'model\.layers\.0\.mlp'"):
        wb.patching.dictionary(pair, boxes(4), sae)
    found = wb.patching.dictionary(pair, boxes(4), sae, site="0.mlp_out").table
    assert {*found["component"]} == {"mlp_out"}
    assert {*found["layer"]} == {0}


@pytest.mark.parametrize(
    ("cfg", "says"),
    [
        (
            {"architecture": "gated"},
            "whose architecture is standard, jumprelu, topk, found 'gated'",
        ),
        ({"architecture": "jumprelu"}, r"Expected threshold of shape \(40,\)"),
        ({"architecture": "topk"}, "Expected k of a topk dictionary"),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations is none"),
        ({"activation_fn": "tanh-relu"}, "activation_fn is relu, topk"),
        ({"hook": "blocks.1.attn.hook_z"}, "residual stream or of what a sublayer adds"),
        ({"hook": "blocks.9.hook_resid_post"}, "the model has layers 0 to 2"),
        ({"hook": "blocks.1.mlp.hook_post"}, "reads 32 numbers, but the model's 1.mlp_hidden has"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, cfg, says):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    sae = saved(tmp_path / "sae", drawn(32, 40), **cfg)
    with pytest.raises(wb.WorkbenchError, match=says):
        wb.patching.dictionary(pair, boxes(4), sae)


def test_folders_that_hold_no_dictionary_are_refused(tmp_path):
    pair, prompts = paired(model(), nudged(model(), seed=1), tmp_path), boxes(4)
    with pytest.raises(wb.WorkbenchError, match="Expected a folder with"):
        wb.patching.dictionary(pair, prompts, str(tmp_path / "none"))
    more = saved(tmp_path / "more", drawn(32, 40) | {"scaling_factor": torch.ones(40)})
    with pytest.raises(wb.WorkbenchError, match="found scaling_factor besides"):
        wb.patching.dictionary(pair, prompts, more)
    weights = drawn(32, 40)
    weights["b_enc"][3] = torch.nan
    with pytest.raises(wb.WorkbenchError, match=r"b_enc .* not finite"):
        wb.patching.dictionary(pair, prompts, saved(tmp_path / "nan", weights))
    bare = Path(saved(tmp_path / "bare", drawn(32, 40)))
    (bare / WEIGHTS).unlink()
    with pytest.raises(wb.WorkbenchError, match=f"Expected {WEIGHTS} beside"):
        wb.patching.dictionary(pair, prompts, str(bare))
    sae = saved(tmp_path / "sae", drawn(32, 40))
    with pytest.raises(wb.WorkbenchError, match="at least 4 prompts"):
        wb.patching.dictionary(pair, boxes(3), sae)
    with pytest.raises(wb.WorkbenchError, match="shown to be 1 or more"):
        wb.patching.dictionary(pair, prompts, sae, shown=0)
