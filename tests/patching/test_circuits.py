"""Path patching, circuits and masks on a circuit built by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.patching.conftest import MOVER, READER, boxes, copier, model, paired, said, value
from workbench.errors import WorkbenchError
from workbench.models import Site
from workbench.patching.circuit import overlaps
from workbench.patching.discovery import Group, discover, heads, sites
from workbench.patching.sweep import Side
from workbench.tasks import PromptSet
from workbench.tasks.batching import rows
from workbench.tasks.desiderata import Counterfactual, Counterfactuals

EVERY = [(layer, head) for layer in range(3) for head in range(4)]


@pytest.fixture(params=[2, 4], ids=["grouped-query", "a value head each"])
def pair(request, tmp_path):
    return paired(copier(request.param), model(hidden_size=64), tmp_path)


def effect(result, metric: str = "logit_change") -> dict:
    found = result.metric(metric)
    found = found[(found["arm"] == "patch") & (found["side"] == "base")]
    return {
        (int(a), int(b)): v for a, b, v in found[["layer", "head", "value"]].itertuples(index=False)
    }


def test_paths_of_a_copy_circuit(pair):
    """The mover acts on the logits, the reader on the mover's values; nothing else on anything."""
    options = {"corrupted": said(turn=1), "sides": ("base",)}
    direct = effect(wb.patching.path(pair, said(), **options))
    assert direct.pop(MOVER) < -1
    assert np.abs(list(direct.values())).max() < 1e-5
    into = {"receivers": [MOVER], "position": None}
    through = effect(wb.patching.path(pair, said(), part="v", **into, **options))
    assert through.pop(READER) < -1
    assert np.abs(list(through.values())).max() < 1e-5
    for part in ("q", "k"):
        none = effect(wb.patching.path(pair, said(), part=part, **into, **options))
        assert np.abs(list(none.values())).max() < 1e-5
    # At the last token alone the mover reads one of its many sources.
    last = wb.patching.path(pair, said(), receivers=[MOVER], part="v", position=-1, **options)
    assert through != effect(last)


def test_an_early_token_does_not_reach_the_logits_directly(tmp_path):
    """All later heads are frozen at every token: nothing moves to the last one."""
    pair, prompts = paired(model(), model(seed=1), tmp_path), boxes()
    direct = effect(wb.patching.path(pair, prompts, position="query box", sides=("base",)))
    assert np.abs(list(direct.values())).max() < 1e-5
    last = effect(wb.patching.path(pair, prompts, position=-1, sides=("base",)))
    assert np.abs(list(last.values())).max() > 1e-3


def test_effect_is_the_papers_score(pair):
    """mean((p_patched - p_clean) / p_clean), by two plain forward passes."""
    found = wb.patching.path(pair, said(), corrupted=said(turn=1), sides=("base",), senders=[MOVER])
    base, words = pair.base.load(), pair.base.tokenizer()
    site, changes = Site("z", *MOVER, position=3), []
    for clean, dirty in zip(said(), said(turn=1), strict=True):
        ids, other = (torch.tensor([words(p.prompt)["input_ids"]]) for p in (clean, dirty))
        right = words(clean.target)["input_ids"][-1]
        site = Site("z", *MOVER, position=ids.shape[1] - 1)
        with wb.models.capture(base, [site]) as seen:
            base(input_ids=other)
        before = base(input_ids=ids).logits[0, -1].softmax(-1)[right]
        with wb.models.replace(base, dict(seen)):
            after = base(input_ids=ids).logits[0, -1].softmax(-1)[right]
        changes.append(float((after - before) / before))
    assert value(found, "effect").item() == pytest.approx(np.mean(changes), rel=1e-4)


def test_discovery_finds_the_circuit_group_by_group(pair):
    words = pair.base.tokenizer()
    clean, dirty = (Side(copier(), rows(words, p, answers=True)) for p in (said(), said(turn=1)))
    groups = (Group("mover", "logits"), Group("reader", "mover", "v", None))
    found, table, cost = discover(clean, dirty, words, groups=groups)
    assert found == {"mover": [MOVER], "reader": [READER]}
    assert set(table["group"]) == {"mover", "reader"}
    assert cost > 2
    assert heads(found) == [READER, MOVER]
    assert sites(found, groups)["mover"] == [Site("z", *MOVER, position=-1)]


def test_faithfulness_of_known_circuits(pair):
    """All heads are the model, none of them is nothing, the planted two are enough."""
    circuits = {
        "all": {"everything": EVERY}, "none": {"nothing": []}, "planted": {"both": [READER, MOVER]},
        "half": {"mover": [MOVER]},
    }  # fmt: skip
    found = wb.patching.circuit(
        pair, said(16), corrupted=said(16, turn=1), circuits=circuits, sides=("base",), seed=2
    )
    table = found.table[found.table["arm"] == "patch"]
    for metric in ("faithfulness:score", "faithfulness:logit_difference"):
        own = table[table["metric"] == metric].set_index("circuit")["value"]
        assert own["all"] == pytest.approx(1, abs=1e-6)
        assert own["none"] == pytest.approx(0, abs=0.3 if metric.endswith("score") else 1e-6)
        assert own["planted"] == pytest.approx(1, abs=1e-5)
        assert own["half"] < 0.7
    random = found.table[(found.table["arm"] == "random") & (found.table["circuit"] == "planted")]
    assert (random["value"] < 0.7).all()
    lost = table[(table["metric"] == "minimality:score") & (table["circuit"] == "planted")]
    assert (lost[lost["head"].notna()]["value"] > 0.3).all()
    whole = table[(table["metric"] == "minimality:score") & (table["circuit"] == "all")]
    idle = whole[whole["layer"] == 1]["value"]
    assert idle.abs().max() < 1e-6
    missing = table[table["metric"] == "incompleteness:logit_difference"].set_index("circuit")
    assert missing.loc["planted", "value"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("keep", ["position", "everywhere"])
@pytest.mark.parametrize("one_length", [True, False])
def test_a_circuit_is_kept_where_its_groups_act(tmp_path, keep, one_length):
    """Against plain forward passes with z replaced by hand, prompt by prompt: a head of two groups
    is kept at both places, one of a group without a place at every token."""
    more = {"order": "object first"} if one_length else {"count": None}
    pair, prompts = paired(model(), model(seed=1), tmp_path), boxes(8, **more)
    own = {
        "value fetcher": [(2, 0), (1, 1)], "position detector": [(1, 1), (0, 2)],
        "of another paper": [(0, 3)],
    }  # fmt: skip
    found = wb.patching.circuit(
        pair, prompts, circuits={"own": own}, sides=("base",), keep=keep, minimal=False, random=0
    ).table
    made = found[(found["circuit"] == "own") & (found["arm"] == "circuit")]
    made = made.set_index("metric")["value"]
    order = np.random.default_rng(0).permutation(8)
    given, base = rows(pair.base.tokenizer(), prompts, answers=True), pair.base.load()
    zs = [Site("z", layer) for layer in range(3)]
    seen = [
        wb.models.run(base, {"input_ids": torch.tensor([given[i].fed])}, read=zs).captured
        for i in order[:4]
    ]
    aligned = len({len(row.fed) for row in given}) == 1
    assert aligned == one_length
    stack = torch.stack if aligned else torch.cat
    mean = {z: stack([one[z][0] for one in seen]).mean(0) for z in zs}
    differences = []
    for row in (given[i] for i in order[4:]):
        detector = list(range(*row.spans["query box"]))
        at = {(2, 0): [-1], (1, 1): [-1, *detector], (0, 2): detector, (0, 3): range(len(row.fed))}

        def changed(z: Site, at: dict = at):
            def change(full: torch.Tensor) -> torch.Tensor:
                new = mean[z].expand_as(full).clone()
                for (layer, head), tokens in at.items():
                    tokens = range(full.shape[1]) if keep == "everywhere" else tokens
                    if layer == z.layer:
                        new[:, list(tokens), head] = full[:, list(tokens), head]
                return new

            return change

        ids = {"input_ids": torch.tensor([row.fed])}
        logits = wb.models.run(base, ids, write={z: changed(z) for z in zs}).logits[0, -1]
        differences.append(float(logits[row.answer[0]] - logits[list(row.foils)].max()))
    assert made["logit_difference"] == pytest.approx(np.mean(differences), abs=1e-4)


def test_the_planted_circuit_needs_its_own_places(pair):
    """The mover acts at the last token, on what the reader did at every token before."""
    own = {"mover": [MOVER], "reader": [READER]}
    found = {}
    for place in (None, -1):
        paths = (Group("mover", "logits"), Group("reader", "mover", "v", place))
        table = wb.patching.circuit(
            pair, said(16), corrupted=said(16, turn=1), circuits={"own": own}, paths=paths,
            sides=("base",), seed=2, minimal=False,
        ).table  # fmt: skip
        table = table[(table["circuit"] == "own") & (table["arm"] == "patch")]
        found[place] = table.set_index("metric")["value"]["faithfulness:score"]
    assert found[None] == pytest.approx(1)
    assert found[-1] < 0.7


def test_circuits_go_to_other_members(pair):
    found = wb.patching.circuit(
        pair, said(16), corrupted=said(16, turn=1), sides=("base",), minimal=False
    )
    circuits = wb.patching.circuits_of(found)
    assert circuits["base"]["value fetcher"] == [MOVER]
    again = wb.patching.circuit(
        pair, said(16), corrupted=said(16, turn=1), circuits={"theirs": circuits["base"]},
        sides=("base",), minimal=False,
    )  # fmt: skip
    scores = again.table[
        (again.table["metric"] == "faithfulness:score") & (again.table["arm"] == "patch")
    ].set_index("circuit")["value"]
    assert scores["theirs"] == scores["base"]


def test_overlap_by_hand():
    first = {"a": [(0, 0), (0, 1)], "b": [(1, 0)]}
    second = {"a": [(0, 1), (0, 2)], "b": [(1, 0)]}
    table = overlaps({"one": first, "two": second}, total=12)
    found = table.set_index([table["group"].fillna("whole"), "metric"])["value"]
    assert found["whole", "shared"] == 2
    assert found["whole", "jaccard"] == pytest.approx(2 / 4)
    assert found["a", "jaccard"] == pytest.approx(1 / 3)
    assert found["b", "jaccard"] == 1
    chance = table[(table["metric"] == "shared") & table["group"].isna()]["baseline"].item()
    assert chance == pytest.approx(3 * 3 / 12, abs=0.05)


def test_the_mask_selects_the_planted_heads(pair):
    """Object value: the source's object must be said. Both heads have a part in it at the last
    token, where the mover reads the reader's copy too."""
    pairs = Counterfactuals(
        "object value", "object value",
        tuple(
            Counterfactual(base, source, f" {source.prompt.split()[1]}")
            for base, source in zip(said(32), said(32, turn=3), strict=True)
        ),
    )  # fmt: skip
    found = wb.patching.mask(pair, pairs, sides=("base",), epochs=4)
    chosen = found.metric("chosen")
    chosen = chosen[chosen["value"] == 1]
    assert list(zip(chosen["layer"], chosen["head"], strict=True)) == [READER, MOVER]
    score = found.metric("score").set_index("arm")["value"]
    assert score["patch"] == 1
    assert score["all"] == 1
    assert score["none"] == 0
    assert score["random"] < 0.5
    # Nothing the other heads do can matter, so the penalty alone moves them: they are kept.
    mask = found.metric("mask").set_index(["layer", "head"])["value"]
    assert (mask.drop([READER, MOVER]) == 1).all()
    dear = wb.patching.mask(pair, pairs, sides=("base",), penalty=1e4)
    assert dear.metric("chosen")["value"].sum() == 0


def test_masks_over_mlps_and_neurons(tmp_path):
    """Where the MLPs are silent no mask is learned; shapes are those of the model."""
    pair = paired(copier(), copier(), tmp_path)
    pairs = wb.tasks.desiderata("object value", 10, seed=0, count=4)
    mlp = wb.patching.mask(pair, pairs, component="mlp", sides=("tuned",))
    assert len(mlp.metric("mask")) == 3
    assert mlp.metric("chosen")["value"].sum() == 0
    neuron = wb.patching.mask(pair, pairs, component="neuron", sides=("base",), epochs=1)
    assert len(neuron.metric("mask")) == 3 * 48


def test_models_are_as_they_were(pair):
    before = {n: p.clone() for n, p in pair.base.load().named_parameters()}
    wb.patching.circuit(pair, said(8), corrupted=said(8, turn=1), minimal=False)
    for name, parameter in pair.base.load().named_parameters():
        assert torch.equal(before[name], parameter)


def test_bad_input_is_one_sentence(pair):
    prompts, other = said(), said(turn=1)
    with pytest.raises(WorkbenchError, match="part q, k or v"):
        wb.patching.path(pair, prompts, corrupted=other, receivers=[MOVER], part="z")  # pyright: ignore
    with pytest.raises(WorkbenchError, match="layers 0 to 2"):
        wb.patching.path(pair, prompts, corrupted=other, receivers=[(7, 0)])
    with pytest.raises(WorkbenchError, match="No head lies before"):
        wb.patching.path(pair, prompts, corrupted=other, receivers=[(0, 0)])
    with pytest.raises(WorkbenchError, match="at least 8"):
        wb.patching.circuit(pair, boxes(4))
    with pytest.raises(WorkbenchError, match="at least 8"):
        wb.patching.mask(pair, wb.tasks.desiderata("positional", 4, seed=0, count=4))
    with pytest.raises(WorkbenchError, match="does not lie before"):
        wb.patching.path(pair, prompts, corrupted=other, receivers=[(1, 0)], senders=[(2, 0)])
    for call in (wb.patching.path, wb.patching.circuit):
        with pytest.raises(WorkbenchError, match="sides base, tuned or both"):
            call(pair, said(8), corrupted=said(8, turn=1), sides=("left",))
    with pytest.raises(WorkbenchError, match="layers 0 to 2"):
        wb.patching.circuit(
            pair, said(8), corrupted=said(8, turn=1), circuits={"far": {"group": [(9, 0)]}}
        )
    with pytest.raises(WorkbenchError, match="keep position or everywhere"):
        wb.patching.circuit(pair, said(8), corrupted=said(8, turn=1), keep="here")  # pyright: ignore
    with pytest.raises(WorkbenchError, match="no span 'query box'"):
        wb.patching.circuit(
            pair, said(8), corrupted=said(8, turn=1),
            circuits={"placed": {"position detector": [(1, 0)]}},
        )  # fmt: skip
    bare = PromptSet("bare", tuple(replace(p, foils=()) for p in said(8)))
    with pytest.raises(WorkbenchError, match="needs foils"):
        wb.patching.circuit(pair, bare, corrupted=bare)
    longer = PromptSet("longer", tuple(replace(p, prompt="the " + p.prompt) for p in said(turn=1)))
    with pytest.raises(WorkbenchError, match="different lengths"):
        wb.patching.path(pair, prompts, corrupted=longer, position=None)
    assert isinstance(overlaps({}, 12), pd.DataFrame)
