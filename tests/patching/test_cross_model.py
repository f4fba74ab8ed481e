"""Cross-model patching and restoration find what was planted, and nothing elsewhere."""

from __future__ import annotations

import re
import weakref
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.conftest import adapter, nudged
from tests.patching.conftest import boxes, model, paired, planted, value, write
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import Layout, Site, merged
from workbench.models.rerun import Rerun
from workbench.patching.cross_model import continued, random_groups
from workbench.patching.patches import grouped
from workbench.patching.sweep_rows import shares
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import batch, rows

LAYER = 1  # of three
NEAR = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("direction", ["tuned->base", "base->tuned"])
def test_a_change_in_one_layer(tmp_path, direction):
    """The stream 0 before it and 1 from it on, the MLP 1 at it, parameters 0 / 1 / 0."""
    pair, prompts = planted(tmp_path, LAYER, "down"), boxes()
    found = wb.patching.cross_model(pair, prompts, direction=direction)
    for metric in ("krs", "recovered:log_probability", "recovered:logit_difference"):
        stream = value(found, metric, component="resid_post")
        torch.testing.assert_close(stream, torch.tensor([0.0, 1.0, 1.0]).double(), **NEAR)
        mlp = value(found, metric, component="mlp_out")
        assert abs(mlp[0]) < 1e-6
        torch.testing.assert_close(mlp[1], torch.tensor(1.0).double(), **NEAR)
        restored = wb.patching.restore(pair, prompts, direction=direction)
        exact = value(restored, metric, component="layer")
        torch.testing.assert_close(exact, torch.tensor([0.0, 1.0, 0.0]).double(), **NEAR)
    # A patch behind the change moves the output although nothing was changed there.
    assert abs(value(found, "krs", component="mlp_out")[2]) > 1e-3
    matrices = wb.patching.restore(
        pair, prompts, direction=direction, components=["mlp.down_proj", "mlp.up_proj"]
    )
    assert value(matrices, "krs", component="mlp.up_proj").abs().max() < 1e-5
    assert value(matrices, "krs", component="mlp.down_proj")[1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_planted_head_is_found(tmp_path, name):
    """One head's columns of the output projection scaled; llama has grouped-query heads."""
    base, tuned = model(name), model(name)
    layout = Layout(tuned)
    module: Any = layout.module(Site("z", LAYER))
    columns = slice(2 * layout.d_head, 3 * layout.d_head)
    if name == "gpt2":
        module.weight[columns] *= 4
    else:
        module.weight[:, columns] *= 4
    pair = paired(base, tuned, tmp_path)
    found = wb.patching.cross_model(pair, boxes(), sites=["head"]).metric("krs")
    found = found[found["arm"] == "patch"].set_index(["layer", "head"])["value"]
    assert found[LAYER, 2] == pytest.approx(1, abs=1e-5)
    assert (found.loc[LAYER].drop(2).abs() < 1e-6).all()
    assert (found.loc[0].abs() < 1e-6).all()
    # z alone cannot see it: what was changed stands behind it.
    z = wb.patching.cross_model(pair, boxes(), sites=[f"{LAYER}.z.h2"])
    assert value(z, "krs").abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("direction", ["tuned->base", "base->tuned"])
def test_the_last_stream_is_the_source(tmp_path, kind, direction):
    """Blocks that all differ, between one embedding and one head: the endpoint, and the null."""
    base, tuned = model(kind), model(kind)
    layout = Layout(tuned)
    for layer in range(layout.layers):
        nudged(layout.block(layer))
    pair = paired(base, tuned, tmp_path)
    found = wb.patching.cross_model(
        pair, boxes(), sites=["resid_post", "attn_out"], direction=direction
    )
    last = found.table[
        (found.table["layer"] == layout.layers - 1) & (found.table["arm"] == "patch")
    ]
    last = last.set_index(["component", "metric"])["value"]
    for metric in ("krs", "kl_krs", "agreement", "recovered:logit_difference"):
        assert last["resid_post", metric] == pytest.approx(1, abs=1e-5)
    assert last["attn_out", "krs"] < 0.9
    same = wb.load_pair(tmp_path / "base", tmp_path / "base")
    null = wb.patching.cross_model(same, boxes(), sites=["resid_pre", "z"])
    assert np.isnan(value(null, "krs")).all()
    assert np.isnan(value(null, "recovered:score")).all()
    assert sum("not meaningful" in note for note in null.provenance.notes) == 3


def test_adapters_and_merged_weights_agree(tmp_path):
    folder = write(model(), tmp_path / "base")
    lora = wb.load_pair(folder, adapter(model(), tmp_path / "lora"))
    full = wb.load_pair(folder, write(merged(lora), tmp_path / "merged"))
    prompts = boxes()
    for direction in ("tuned->base", "base->tuned"):
        options = {"sites": ["resid_post", "head", "mlp_out"], "direction": direction}
        one, other = (wb.patching.cross_model(p, prompts, **options) for p in (lora, full))
        torch.testing.assert_close(value(one, "krs"), value(other, "krs"), atol=1e-4, rtol=1e-4)
    one, other = (wb.patching.restore(p, prompts) for p in (lora, full))
    torch.testing.assert_close(value(one, "krs"), value(other, "krs"), atol=1e-4, rtol=1e-4)


def test_every_measure_by_hand_under_padding(tmp_path):
    """Answers of one, two and three tokens behind prompts of unequal length, against plain forward
    passes, prompt by prompt."""
    pair = planted(tmp_path, LAYER, "down")
    texts = {
        "apple ball card coin": " coin", "Box K contains the": " key ring",
        "the lamp": " book coin cup",
    }  # fmt: skip
    prompts = PromptSet(
        "some", tuple(Prompt(text, text, own, (" cup", " ball")) for text, own in texts.items())
    )
    site = Site("attn_out", LAYER)
    found = wb.patching.cross_model(
        pair, prompts, sites=[str(site)], direction="base->tuned", batch_size=2
    )
    words = pair.base.tokenizer()
    base, tuned = pair.base.load(), pair.tuned.load()
    seen = []
    for prompt in prompts:
        ids = torch.tensor([words(prompt.text)["input_ids"]])
        start = len(words(prompt.prompt)["input_ids"])
        with wb.models.capture(base, [site]) as kept:
            goal = base(input_ids=ids).logits[0, start - 1 : -1]
        plain = tuned(input_ids=ids).logits[0, start - 1 : -1]
        with wb.models.replace(tuned, dict(kept)):
            patched = tuned(input_ids=ids).logits[0, start - 1 : -1]
        answer = ids[0, start:]
        foils = [words(foil)["input_ids"][-1] for foil in (" cup", " ball")]
        assert len(answer) == len(goal) == len(seen) + 1

        def measures(run: torch.Tensor, goal=goal, answer=answer, foils=foils) -> dict[str, float]:
            log_p, goal_log_p = (one.double().log_softmax(-1) for one in (run, goal))
            divergence = torch.nn.functional.kl_div(
                log_p, goal_log_p, reduction="sum", log_target=True
            )
            return {
                "score": float((run.argmax(-1) == answer).all()),
                "log_probability": float(log_p[range(len(answer)), answer].sum()),
                "logit_difference": float(run[0, answer[0]] - run[0, foils].max()),
                "krs": float((run - goal).square().sum()),
                "kl_krs": float(divergence / len(answer)),
                "agreement": float((run.argmax(-1) == goal.argmax(-1)).all()),
            }

        seen.append([measures(run) for run in (plain, goal, patched)])
    for metric in seen[0][0]:
        zero, one, own = (np.array([three[i][metric] for three in seen]) for i in range(3))
        if metric in ("krs", "kl_krs"):
            expected = {metric: 1 - own.sum() / zero.sum()}
        else:
            expected = {metric: own.mean()}
            baseline = found.metric(metric).query("arm == 'patch'")["baseline"].item()
            assert baseline == pytest.approx(zero.mean(), abs=1e-5)
        if metric in ("log_probability", "logit_difference"):
            share = (own - zero).sum() / (one - zero).sum()
            expected[f"recovered:{metric}"] = share
        for name, number in expected.items():
            assert value(found, name).item() == pytest.approx(number, abs=1e-4), name
    assert found.metric("krs")["n"].iloc[0] == 3


@pytest.mark.parametrize("direction", ["tuned->base", "base->tuned"])
@pytest.mark.parametrize(
    ("components", "window", "names"),
    [
        ("layer", 1, "{layer}."),
        ("layer", 3, "({layer}|{before}|{behind})."),
        (["mlp.down_proj", "self_attn.q_proj"], 1, "{layer}.{component}.weight"),
    ],
)
def test_restored_parameters_by_hand(tmp_path, direction, components, window, names):
    """Plain state dicts with some of the other side's tensors, and the embedding's norm among what
    lies outside the blocks."""
    base, tuned = model(), model(seed=1)
    pair, prompts = paired(base, tuned, tmp_path), boxes(4, count=None)
    found = wb.patching.restore(
        pair, prompts, direction=direction, components=components, window=window, batch_size=3
    ).metric("krs")
    states = [dict(one.state_dict()) for one in (base, tuned)]
    into, source = states if direction == "tuned->base" else states[::-1]
    made, given = model(), rows(pair.base.tokenizer(), prompts, answers=True)

    def logits(state: dict) -> torch.Tensor:
        made.load_state_dict(state)
        last = [made(input_ids=torch.tensor([row.ids])).logits[0, -1] for row in given]
        return torch.stack(last).double()

    goal, plain = logits(source), logits(into)
    own = found[found["arm"] == "patch"]
    kinds = ["layer"] if components == "layer" else components
    expected = []
    for component in kinds:
        for layer in range(3):
            pattern = names.format(
                layer=layer, before=layer - 1, behind=layer + 1, component=component
            )
            swapped = {n: t for n, t in source.items() if re.match(rf"model\.layers\.{pattern}", n)}
            assert swapped
            error = (logits(into | swapped) - goal).square().sum()
            expected.append(float(1 - error / (plain - goal).square().sum()))
    if components == "layer":
        swapped = {n: t for n, t in source.items() if "layers" not in n}
        error = (logits(into | swapped) - goal).square().sum()
        expected.append(float(1 - error / (plain - goal).square().sum()))
    assert own["value"].tolist() == pytest.approx(expected, abs=1e-4)
    random = found[found["arm"] == "random"]["value"].tolist()
    means = np.array(expected[: 3 * len(kinds)]).reshape(-1, 3).mean(1)
    assert random == pytest.approx(means.tolist(), abs=1e-4)


def test_the_answer_can_be_what_the_base_says(tmp_path):
    pair = planted(tmp_path, LAYER, "down")
    found = wb.patching.cross_model(
        pair, boxes(), sites=["resid_post"], direction="base->tuned", answer="base", answer_tokens=3
    )
    rows = found.table[(found.table["metric"] == "score") & (found.table["arm"] == "source")]
    assert rows["value"].item() == 1.0
    assert value(found, "krs")[-1] == pytest.approx(1)
    # The changed model says something else, until the stream behind the change is put in.
    rows = found.table[(found.table["metric"] == "score") & (found.table["arm"] == "destination")]
    assert rows["value"].item() == 0.0
    assert value(found, "recovered:score").tolist() == [0, 1, 1]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_what_a_model_goes_on_with_by_hand(batch_size):
    """Greedy, token by token, until a row says the end token, which the others do not mind."""
    made, words = model(), shipped.tokenizer()
    given = rows(words, boxes(5, count=None), answers=True)

    def said(row, tokens: int, stop: int | None = None) -> tuple[int, ...]:
        own: list[int] = []
        while len(own) < tokens and (not own or own[-1] != stop):
            own.append(int(made(input_ids=torch.tensor([[*row.ids, *own]])).logits[0, -1].argmax()))
        return tuple(own)

    whole = [said(row, 4) for row in given]
    stop = next(own[1] for own in whole if own[1] != own[0])
    words.eos_token = words.convert_ids_to_tokens(stop)
    expected = [said(row, 4, stop) for row in given]
    assert {len(own) for own in expected} > {4}
    found = continued(made, given, 4, words, batch_size, "cpu")
    assert [row.answer for row in found] == expected
    assert [row.ids for row in found] == [row.ids for row in given]
    assert not any(row.foils for row in found)


@pytest.fixture
def living(monkeypatch) -> list[int]:
    """How many plain runs were kept at once, each time another one was made."""
    alive: set[int] = set()
    counts: list[int] = []
    born = Rerun.__init__

    def counted(self: Rerun, *args: Any, **kwargs: Any) -> None:
        born(self, *args, **kwargs)
        alive.add(id(self))
        weakref.finalize(self, alive.discard, id(self))
        counts.append(len(alive))

    monkeypatch.setattr(Rerun, "__init__", counted)
    return counts


def test_restoration_keeps_a_bounded_part_of_the_plain_runs(tmp_path, monkeypatch, living):
    """A batch at a time gives the numbers of all at once."""
    pair, prompts = paired(model(), model(seed=1), tmp_path), boxes(9, count=None)
    options: dict[str, Any] = {"components": "matrix", "batch_size": 2}
    whole = wb.patching.restore(pair, prompts, **options)
    assert max(living) >= 5
    living.clear()
    monkeypatch.setattr(import_module("workbench.patching.restore"), "KEPT", 0)
    bounded = wb.patching.restore(pair, prompts, **options)
    for metric in ("krs", "log_probability", "score"):
        assert torch.equal(value(whole, metric), value(bounded, metric))
    assert max(living) <= 2


def test_a_sweep_keeps_the_plain_runs_of_one_batch(tmp_path, living):
    pair, prompts = paired(model(), model(seed=1), tmp_path), boxes(8, count=None)
    wb.patching.cross_model(pair, prompts, sites=["pattern"], batch_size=2, controls=0)
    assert len(living) > 8
    assert max(living) <= 3  # both sides', and the first prompt's for the check of its own values


def test_groups_stand_beside_random_ones(tmp_path):
    pair = planted(tmp_path, LAYER, "o")
    layer = [f"{LAYER}.z.h{head}" for head in range(4)]
    found = wb.patching.cross_model(pair, boxes(), groups={"planted": layer, "other": ["2.z.h0"]})
    krs = found.metric("krs").set_index(["arm", "group"])["value"]
    assert krs["patch", "planted"] == pytest.approx(1)
    assert krs["random", "planted"] < 0.9
    assert krs["patch", "other"] < 0.9


def test_heads_of_several_layers_react_to_each_other(tmp_path):
    """With one output projection on both sides, what heads add is what their z gives."""
    base, tuned = model(), model()
    layout = Layout(tuned)
    for layer in range(layout.layers):
        nudged(layout.module(Site("v", layer)), scale=0.3)
    pair, heads = paired(base, tuned, tmp_path), ["0.z.h1", "1.z.h2", "2.z.h0", "2.z.h3"]
    grouped = wb.patching.cross_model(pair, boxes(), groups={"all": heads})
    words = pair.base.tokenizer()
    given = batch(rows(words, boxes(), answers=True), range(6), "cpu", 0)
    there = Rerun(tuned, given, [Site("z", layer) for layer in range(3)])
    here = Rerun(base, given)
    patched = here.again([{(s := Site.parse(h)): there.read(s) for h in heads}])
    error = (patched - there.logits).square().sum() / (here.logits - there.logits).square().sum()
    assert value(grouped, "krs").item() == pytest.approx(1 - error.item(), abs=1e-5)
    windows = {"window": 3, "cumulative": False}
    one = wb.patching.cross_model(pair, boxes(), sites=["head"], **windows)
    other = wb.patching.cross_model(pair, boxes(), sites=["z"], **windows)
    torch.testing.assert_close(value(one, "krs"), value(other, "krs"), atol=1e-5, rtol=1e-4)


def test_a_head_counts_once_however_often_its_tokens_are_named(tmp_path):
    """Listed twice, at all tokens and at one of them, or at a place and its count: what a head adds
    is put in once."""
    base, tuned = model(), model()
    layout = Layout(tuned)
    for layer in range(layout.layers):
        nudged(layout.module(Site("z", layer)), scale=0.3)
    pair = paired(base, tuned, tmp_path)
    words = pair.base.tokenizer()
    prompts = boxes(order="object first")
    first, end = rows(words, prompts)[0].spans["query box"]
    assert end == first + 1
    alike = [
        {"once": ["1.z.h2"], "twice": ["1.z.h2", "1.z.h2"], "also": ["1.z.h2@-1", "1.z.h2"]},
        {"once": ["1.z.h2@query box"], "count": ["1.z.h2@query box", f"1.z.h2@{first}"]},
        {"once": ["1.z.h2@-1", "0.z.h1"], "mixed": ["0.z.h1", "1.z.h2@-1", "0.z.h1@-1"]},
    ]
    for groups in alike:
        found = wb.patching.cross_model(pair, prompts, groups=groups)
        for metric in ("krs", "logit_difference"):
            values = value(found, metric)
            torch.testing.assert_close(values, values[:1].expand_as(values), atol=1e-6, rtol=1e-5)
    # Two places that share no token are both counted.
    both = {"one": ["1.z.h2@-1"], "both": ["1.z.h2@-1", "1.z.h2@query box"]}
    krs = value(wb.patching.cross_model(pair, prompts, groups=both), "krs")
    assert abs(krs[1] - krs[0]) > 1e-4


def test_random_groups_have_as_many_heads(tmp_path):
    layout = Layout(model())
    given = grouped(layout, {"g": ["0.z.h1@-1", "0.z.h1@3", "1.z.h0@-1"]}, added=True)
    for drawn in random_groups(layout, given, seed=0):
        assert [site.position for site in drawn.sites] == [-1, 3, -1]
        one, same, other = ((site.layer, site.head) for site in drawn.sites)
        assert one == same != other
        assert not {one, other} & {(0, 1), (1, 0)}
    # Of keys and values there are two a layer, of MLPs one, of a neuron's number as many as layers.
    for own, places in (("0.k.h1@-1", 5), ("1.v.h0", 5), ("2.q.h3", 11), ("1.mlp_out", 2),
                        ("0.mlp_hidden.n7", 2)):  # fmt: skip
        given = grouped(layout, {"g": [own]})
        drawn = {
            patch.sites[0] for seed in range(20) for patch in random_groups(layout, given, seed)
        }
        assert len(drawn) == places
        assert Site.parse(own) not in drawn
        assert {layout.check(site).position for site in drawn} == {Site.parse(own).position}
        assert {site.neuron for site in drawn} == {Site.parse(own).neuron}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer": "tuned"}, 'answer "target" or "base"'),
        ({"answer": "base", "answer_tokens": 0}, "at least 1"),
        ({"sites": []}, "Nothing to patch"),
        ({"groups": {}}, "Nothing to patch"),
        ({"batch_size": 0}, "batch_size"),
        ({"direction": "up"}, "tuned->base"),
        ({"sites": ["resid"]}, "Unknown site 'resid'"),
        ({"window": 2}, "odd window"),
        ({"sites": ["9.resid_post"]}, "layers 0 to 2"),
        ({"positions": "each"}, "one length"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, options, message):
    pair = planted(tmp_path, LAYER, "down")
    prompts = boxes(8, count=None)
    with pytest.raises(WorkbenchError, match=message):
        wb.patching.cross_model(pair, prompts, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 2}, "odd window"),
        ({"window": 0}, "odd window"),
        ({"direction": "both"}, "Expected direction"),
        ({"components": ["mlp.nothing"]}, "No layer has a component 'mlp.nothing'"),
        ({"answer": "tuned"}, 'answer "target" or "base"'),
    ],
)
def test_bad_input_of_restoration_is_one_sentence(tmp_path, options, message):
    with pytest.raises(WorkbenchError, match=message):
        wb.patching.restore(planted(tmp_path, LAYER, "down"), boxes(2), **options)


def test_a_share_is_judged_by_the_prompts_it_is_of():
    gap = np.array([1e-7, 1e-7, 2.0, 2.1, 2.2])
    whole, some = np.array([1.0, 1.0, 1.0, 1.1, 1.2]), np.array([1.0, 1.0, *[np.nan] * 3])
    found = shares(np.stack([whole, some]), gap)
    assert found.value[0] == pytest.approx(5.3 / 6.3)
    assert np.isnan(found.value[1])  # of the two prompts that it knows the gap is nothing
    one = np.array([[1.0, np.nan]])
    assert np.isnan(shares(one, np.array([0.01, 2.0])).value[0])
    assert shares(one, np.array([0.5, 2.0])).value[0] == 2


@pytest.mark.parametrize("more", [1, 8, 64])
@pytest.mark.parametrize("grown", ["base", "tuned"])
def test_new_tokens_of_one_side_change_nothing_that_both_sides_have(tmp_path, grown, more):
    """An embedding resized for special tokens, or padded: errors and divergences are over the
    tokens that both have, so the numbers are those of the pair before."""
    prompts = boxes(4)
    plain = planted(tmp_path / "plain", LAYER, "down")
    sides = {"base": model(), "tuned": model()}
    sides["tuned"].load_state_dict(plain.tuned.load().state_dict())
    sides[grown].resize_token_embeddings(sides[grown].config.vocab_size + more)
    pair = paired(sides["base"], sides["tuned"], tmp_path / "grown")
    assert any("resized vocabulary" in note for note in pair.check(read=False).notes)
    for analysis, options in (
        (wb.patching.cross_model, {"sites": ("resid_post", "mlp_out")}),
        (wb.patching.restore, {}),
    ):
        ours, theirs = (analysis(one, prompts, **options) for one in (pair, plain))
        for metric in ("krs", "kl"):
            if theirs.has(metric):
                found, wanted = (value(one, metric) for one in (ours, theirs))
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert wb.patching.lens(pair, prompts).has("kl")
