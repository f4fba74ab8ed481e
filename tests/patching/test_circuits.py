"""Path patching, circuits and masks on a circuit built by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import workbench as wb
from tests.patching.conftest import MOVER, READER, boxes, copier, model, paired, said, value
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import Site
from workbench.patching.circuit import overlaps
from workbench.patching.circuit_discovery import Group, discover, heads, sites
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


def test_what_no_prompt_has_is_in_no_row(pair):
    """Without foils there is no logit difference, of one answer no other prompt to shuffle with;
    of answers that nobody would give there is no relative change, which a NaN says."""
    alike = PromptSet("alike", tuple(replace(p, target=" cup", foils=()) for p in said(4)))
    result = wb.patching.path(pair, alike, corrupted=alike)
    assert "base gives none of the answers; tuned: tuned (layer" in wb.figures.headline(result)
    found = result.table
    assert set(found["metric"]) == {"effect"}
    known = found.groupby("side")["value"].apply(lambda own: own.notna().any()).to_dict()
    assert known == {"base": False, "tuned": True}
    assert set(found.loc[found["side"] == "tuned", "arm"]) == {"patch", "random"}
    assert set(found.loc[found["side"] == "base", "arm"]) == {"patch"}


@pytest.mark.parametrize(
    ("part", "position", "looks", "mlp"),
    [
        ("q", -1, None, []), ("v", "query box", None, [1]), ("k", None, None, []),
        ("v", None, None, [0, 1]), ("v", "query box", -1, [0, 1]),
        ("k", "query box", "query box", []), ("q", None, -1, [1]),
    ],
)  # fmt: skip
def test_paths_by_hand(tmp_path, part, position, looks, mlp):
    """The three steps with plain hooks, prompt by prompt; two query heads share a key and value. A
    receiver that a sender does not lie before stays as it is. Heads that look from some tokens
    alone have their clean output at all others. What an MLP receives acts by what it adds."""
    pair, prompts = paired(model(), model(seed=1), tmp_path), boxes(4, order="object first")
    words, base = pair.base.tokenizer(), pair.base.load()
    dirty_set = wb.tasks.corrupt(prompts, 0, tokenizer=words)
    senders, receivers = [(0, 2), "1.1", "1.mlp", "embedding"], [(2, 3), (1, 0), (0, 1)]
    into = [*receivers, *(f"{layer}.mlp" for layer in mlp)]
    found = wb.patching.path(
        pair, prompts, corrupted=dirty_set, receivers=into, part=part,
        position=position, receiver_position=looks, senders=senders, sides=("base",),
    )  # fmt: skip
    clean, dirty = (rows(words, one, answers=True) for one in (prompts, dirty_set))
    whole = [Site("z", layer) for layer in range(3)]
    # Where each sender sends, the first layer whose heads are frozen, and the first MLP behind it.
    places: dict[Any, tuple[Site, int, int]] = {
        ("head", 0, 2): (Site("z", 0), 1, 0), ("head", 1, 1): (Site("z", 1), 2, 1),
        ("mlp", 1, None): (Site("mlp_out", 1), 2, 2),
        ("embedding", None, None): (Site("resid_pre", 0), 0, 0),
    }  # fmt: skip

    def run(row, write, read=()):
        made = wb.models.run(base, {"input_ids": torch.tensor([row.ids])}, read=read, write=write)
        last = made.logits[0, -1].double()
        said = last.log_softmax(-1)[row.answer[0]]
        return made, float(said), float(last[row.answer[0]] - last[list(row.foils)].max())

    def changes(row, other, sender):
        sent, frozen, behind = places[sender]
        seen = [run(one, {}, [*whole, sent])[0].captured for one in (row, other)]

        def tokens(place):
            at = {-1: [-1], None: slice(None)}.get(place)
            return list(range(*row.spans[place])) if at is None else at

        at = tokens(position)

        def put(head: int | slice, values: torch.Tensor, at=at):
            def change(full: torch.Tensor) -> torch.Tensor:
                new = full.clone()
                if full.ndim == 3:
                    new[:, at] = values[:, at]
                else:
                    new[:, at, head] = values[:, at, head]
                return new

            return change

        def held(layer: int, head: int):
            acts = set(np.arange(len(row.ids))[tokens(looks)])
            rest = [token for token in range(len(row.ids)) if token not in acts]
            heads = (
                slice(head, head + 1) if part == "q" else slice(head // 2 * 2, head // 2 * 2 + 2)
            )
            return put(heads, seen[0][Site("z", layer)], rest)

        write = {z: put(slice(None), seen[0][z]) for z in whole[frozen:]}
        into = {
            Site(part, layer): head if part == "q" else head // 2
            for layer, head in receivers
            if layer >= frozen
        } | {Site("mlp_out", layer): 0 for layer in mlp if layer >= behind}
        head = sender[2] or 0
        step, _, _ = run(row, write | {sent: put(head, seen[1][sent])}, [*into])
        received = {site: put(head, step.captured[site]) for site, head in into.items()}
        if looks is not None:
            received |= {Site("z", one): held(one, h) for one, h in receivers if one >= frozen}
        (_, before, gap), (_, after, now) = run(row, {}), run(row, received)
        return np.exp(after - before) - 1, now - gap

    for sender, arm in product(places, ("patch", "shuffled")):
        own = []
        for i, row in enumerate(clean):
            turn = [*dirty[i + 1 :], *dirty[:i]]
            other = next(one for one in turn if one.answer != dirty[i].answer)
            own.append(changes(row, dirty[i] if arm == "patch" else other, sender))
        component, layer, head = sender
        for metric, expected in zip(("effect", "logit_change"), np.mean(own, axis=0), strict=True):
            rows_of = found.metric(metric)
            rows_of = rows_of[(rows_of["arm"] == arm) & (rows_of["component"] == component)]
            alike = rows_of["layer"].eq(layer) & rows_of["head"].eq(head)
            rows_of = rows_of[alike | (component != "head")]
            assert rows_of["value"].item() == pytest.approx(expected, abs=2e-5), (arm, metric)
            # In the last layer what is read at another token than the last has no way on; the last
            # token is the same in all prompts.
            nowhere = looks == "query box" and layer == 1
            assert (expected == 0) == (nowhere or (position == -1 and component == "embedding"))


def test_discovery_finds_the_circuit_group_by_group(pair):
    words = pair.base.tokenizer()
    clean, dirty = (Side(copier(), rows(words, p, answers=True)) for p in (said(), said(turn=1)))
    groups = (Group("mover", "logits"), Group("reader", "mover", "v", None))
    found, table, cost = discover(clean, dirty, words, groups=groups)
    assert found == {"mover": [MOVER], "reader": [READER]}
    assert set(table["group"]) == {"mover", "reader"}
    assert set(table["arm"]) == {"patch", "random"}
    assert cost > 2
    assert heads(found) == [READER, MOVER]
    assert sites(found, groups)["mover"] == [Site("z", *MOVER, position=-1)]


@pytest.mark.parametrize(
    ("most", "least", "expected"),
    [(8, 1e-4, [3, 0, 1]), (1, 1e-4, [3]), (8, 0.2, [3, 0]), (8, 50.0, [])],
)
def test_a_head_belongs_to_a_group_by_how_much_it_lowers_the_answer(most, least, expected):
    """Beside the mover others that move half of it, a twentieth, and the wrong way."""
    made, words = copier(4), shipped.tokenizer()
    attention = made.model.layers[MOVER[0]].self_attn
    for head, strength in ((0, 0.5), (1, 0.05), (2, -0.3)):
        attention.v_proj.weight[8 * head : 8 * head + 8, 32:40] = torch.eye(8)
        attention.o_proj.weight[40:48, 8 * head : 8 * head + 8] = strength * torch.eye(8)
    clean, dirty = (rows(words, p, answers=True) for p in (said(), said(turn=1)))
    clean[0] = replace(clean[0], spans={"somewhere": (1, 2)})
    clean, dirty = Side(made, clean), Side(made, dirty)
    groups = (
        Group("mover", "logits"), Group("reader", "mover", "v", None),
        Group("placed", "logits", position="somewhere"), Group("behind", "placed", "q"),
        Group("first", "reader", "v", None),
    )  # fmt: skip
    found, table, _ = discover(clean, dirty, words, groups=groups, most=most, least=least)
    assert found["mover"] == [(MOVER[0], head) for head in expected]
    assert found["reader"] == ([READER] if expected else [])
    # Not everywhere such a place, nothing before it found, nothing before it in the model.
    assert found["placed"] == found["behind"] == found["first"] == []
    assert set(table["group"]) == ({"mover", "reader"} if expected else {"mover"})


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
    assert ((random["low"] < random["value"]) & (random["value"] < random["high"])).all()
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
    is kept at both places, one of a group without a place at every token. Every measure of it."""
    more = {"order": "object first"} if one_length else {"count": None}
    pair, prompts = paired(model(), model(seed=1), tmp_path), boxes(8, **more)
    own = {
        "value fetcher": [(2, 0), (1, 1)], "position detector": [(1, 1), (0, 2)],
        "of another paper": [(0, 3)],
    }  # fmt: skip
    found = wb.patching.circuit(
        pair, prompts, circuits={"own": own}, sides=("base",), keep=keep, random=2
    ).table
    found = found[found["circuit"] == "own"]
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
    last, label, every = "last", "query box", "every"
    places = {(2, 0): {last}, (1, 1): {last, label}, (0, 2): {label}, (0, 3): {every}}
    if keep == "everywhere":
        places = {head: {every} for head in places}
    all_heads = {head: {every} for head in EVERY}

    def scores(kept: dict) -> dict[str, np.ndarray]:
        """metric -> (prompts,), with every head at its mean but where it is kept."""
        made = []
        for row in (given[i] for i in order[4:]):
            tokens = {last: [-1], label: list(range(*row.spans[label]))}
            tokens[every] = list(range(len(row.fed)))

            def changed(z: Site, tokens: dict = tokens):
                def change(full: torch.Tensor) -> torch.Tensor:
                    new = mean[z].expand_as(full).clone()
                    for (layer, head), names in kept.items():
                        for name in names if layer == z.layer else ():
                            new[:, tokens[name], head] = full[:, tokens[name], head]
                    return new

                return change

            ids = {"input_ids": torch.tensor([row.fed])}
            logits = wb.models.run(base, ids, write={z: changed(z) for z in zs}).logits[0, -1]
            answer, foils = row.answer[0], list(row.foils)
            made.append(
                [int(logits.argmax() == answer), float(logits[answer] - logits[foils].max())]
            )
        return dict(zip(("score", "logit_difference"), np.array(made).T, strict=True))

    def without(kept: dict, gone: list) -> dict:
        return {head: at for head, at in kept.items() if head not in gone}

    whole, nothing, circuit = scores(all_heads), scores({}), scores(places)
    parts = [*own.values(), *([head] for head in sorted(places))]
    less = [scores(without(places, part)) for part in parts]
    lacking = [scores(without(all_heads, part)) for part in parts]
    draw, drawn = np.random.default_rng(0), []
    for _ in range(2):
        picked = [EVERY[i] for i in draw.permutation(12)[:4]]
        at = [places[head] for head in sorted(places)]
        drawn.append(scores(dict(zip(picked, at, strict=True))))
    for metric in ("score", "logit_difference"):
        rows_of = {arm: one for arm, one in found[found["metric"] == metric].groupby("arm")}
        for arm, values in (("model", whole), ("circuit", circuit), ("all ablated", nothing)):
            assert rows_of[arm]["value"].item() == pytest.approx(values[metric].mean(), abs=1e-4)
            assert rows_of[arm]["baseline"].item() == pytest.approx(whole[metric].mean(), abs=1e-4)
        lost = found[found["metric"] == f"minimality:{metric}"]
        expected = [(circuit[metric] - one[metric]).mean() for one in less]
        assert lost["value"].tolist() == pytest.approx(expected, abs=1e-4)
        assert lost["group"].tolist()[:3] == [*own]
        heads_of = lost[["layer", "head"]].to_numpy()[3:].tolist()
        assert [tuple(one) for one in heads_of] == sorted(places)
        gaps = [abs((a[metric] - b[metric]).mean()) for a, b in zip(lacking, less, strict=True)]
        row = found[found["metric"] == f"incompleteness:{metric}"].iloc[0]
        assert row["value"] == pytest.approx(np.mean(gaps), abs=1e-4)
        assert (row["low"], row["high"], row["n"]) == (
            pytest.approx(min(gaps), abs=1e-4), pytest.approx(max(gaps), abs=1e-4), len(parts),
        )  # fmt: skip
        floor = 0.0 if metric == "score" else nothing[metric]
        name = f"faithfulness:{metric}"
        rows_of = found[found["metric"] == name].set_index("arm")
        told = rows_of["value"]
        gap = (whole[metric] - floor).sum()
        if gap == 0:
            assert told.isna().all()
            continue
        share = [(one[metric] - floor).sum() / gap for one in (circuit, *drawn)]
        assert told["patch"] == pytest.approx(share[0], abs=1e-4)
        assert told["random"] == pytest.approx(np.mean(share[1:]), abs=1e-4)
        # Of four prompts the gap may be none: nothing has an interval.
        assert rows_of[["low", "high"]].isna().all(axis=None)
    assert found.loc[found["metric"] == "size", "value"].item() == 4


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


def test_only_the_groups_nearest_to_the_logits_are_looked_for(pair):
    """As many as `depth` says give what those alone give; places of given groups stay known."""
    paths = (Group("mover", "logits"), Group("reader", "mover", "v", None))
    run = {"corrupted": said(16, turn=1), "sides": ("base",), "minimal": False, "random": 2}
    given = {"own": {"mover": [MOVER], "reader": [READER]}}
    one, alone, both = (
        wb.patching.circuit(pair, said(16), circuits=given, **more, **run)
        for more in ({"paths": paths, "depth": 1}, {"paths": paths[:1]}, {"paths": paths})
    )
    pd.testing.assert_frame_equal(one.table, alone.table)
    assert one.provenance.parameters["paths"] == ["mover"]
    assert set(both.metric("chosen")["group"]) == {"mover", "reader"}
    found = wb.patching.groups(pair, said(16), corrupted=said(16, turn=1), paths=paths, depth=1)
    assert set(found.provenance.parameters["groups"]) == {"mover", "whole circuit"}
    for call in (wb.patching.circuit, wb.patching.groups):
        with pytest.raises(WorkbenchError, match="depth of 1"):
            call(pair, said(16), corrupted=said(16, turn=1), depth=0)


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


def test_the_groups_of_the_bases_circuit_carry_what_changed_behind_them(tmp_path):
    """The mover's output is doubled in the member: it carries all of that, the reader nothing. The
    circuit is found on eight prompts and patched on the other eight."""
    tuned = copier()
    tuned.model.layers[MOVER[0]].self_attn.o_proj.weight[
        40:48, 8 * MOVER[1] : 8 * MOVER[1] + 8
    ] *= 2
    pair = paired(copier(), tuned, tmp_path)
    paths = (Group("mover", "logits"), Group("reader", "mover", "v", None))
    found = wb.patching.groups(pair, said(16), corrupted=said(16, turn=1), paths=paths)
    rows_of = found.metric("recovered:logit_difference")
    own = rows_of[rows_of["arm"] == "patch"].set_index(["direction", "group"])["value"]
    for direction in ("tuned->base", "base->tuned"):
        assert own[direction].to_dict() == pytest.approx(
            {"mover": 1, "reader": 0, "whole circuit": 1}, abs=1e-5
        )
    assert (rows_of["n"][rows_of["arm"] == "patch"] == 8).all()
    random = rows_of[rows_of["arm"] == "random"].set_index(["direction", "group"])["value"]
    assert random["tuned->base", "mover"] == pytest.approx(0, abs=1e-5)
    told = found.provenance.parameters
    assert told["groups"]["whole circuit"] == ["2.z.h3@-1", "0.z.h1"]
    assert told["paths"] == ["mover", "reader"]
    # Where nothing is corrupted in the half that finds it, there is none to be found.
    finds = np.random.default_rng(0).permutation(16)[:8].tolist()
    half = [(said(16) if i in finds else said(16, turn=1)).prompts[i] for i in range(16)]
    with pytest.raises(WorkbenchError, match="there is no circuit to patch"):
        wb.patching.groups(pair, said(16), corrupted=PromptSet("half", tuple(half)), paths=paths)
    with pytest.raises(WorkbenchError, match="at least 8"):
        wb.patching.groups(pair, said(7), corrupted=said(7, turn=1))


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


@pytest.mark.parametrize(("component", "kind"), [("head", "z"), ("mlp", "mlp_out")])
def test_a_step_of_the_mask_by_hand(tmp_path, component, kind):
    """One step of Adam goes its rate against the sign of the slope, here of finite differences of
    -mean target logit + penalty * sum(1 - m), and not beyond 1; and the scores by plain runs."""
    pair = paired(model(), model(seed=1), tmp_path)
    pairs = wb.tasks.desiderata("object value", 8, seed=0, count=4)
    base, words = pair.base.load().double(), pair.base.tokenizer()
    ours, theirs = (rows(words, one, answers=True) for one in (pairs.wanted, pairs.sources))
    order = np.random.default_rng(0).permutation(8).tolist()
    units = 4 if component == "head" else 1

    def logits(i: int, mask: torch.Tensor) -> torch.Tensor:
        sites = [Site(kind, layer) for layer in range(3)]
        source = wb.models.run(base, {"input_ids": torch.tensor([theirs[i].ids])}, read=sites)

        def mixed(site: Site):
            def change(full: torch.Tensor) -> torch.Tensor:
                new, keep = full.clone(), mask[site.layer]
                keep = keep[:, None] if component == "head" else keep
                new[:, -1] = keep * full[:, -1] + (1 - keep) * source.captured[site][:, -1]
                return new

            return change

        ids = {"input_ids": torch.tensor([ours[i].ids])}
        return wb.models.run(base, ids, write={s: mixed(s) for s in sites}).logits[0, -1]

    def loss(mask: torch.Tensor) -> float:
        return -float(np.mean([float(logits(i, mask)[ours[i].answer[0]]) for i in order[:4]]))

    whole, slopes = torch.ones(3, units).double(), np.zeros((3, units))
    for place in np.ndindex(3, units):
        less = whole.clone()
        less[place] -= 1e-4
        slopes[place] = (loss(whole) - loss(less)) / 1e-4
    taken = max(1, slopes.size // 4)  # as many slopes as these lie above the penalty
    penalty = float(np.sort(slopes, axis=None)[-taken - 1 : -taken + 1 or None].mean())
    options = {"component": component, "sides": ("base",), "epochs": 1, "batch_size": 4}
    found = wb.patching.mask(pair, pairs, lr=0.6, penalty=penalty, **options)
    assert set(found.table["position"]) == {"-1"}
    learned = found.metric("mask")["value"].to_numpy().reshape(3, units)
    np.testing.assert_allclose(learned, np.where(slopes > penalty, 0.4, 1.0), atol=1e-3)
    assert (slopes > penalty).sum() == taken
    chosen = found.metric("chosen")["value"].to_numpy().reshape(3, units)
    assert (chosen == (slopes > penalty)).all()
    assert found.metric("size")["value"].item() == chosen.sum()
    masks = {"patch": 1 - chosen, "all": np.zeros_like(chosen), "none": np.ones_like(chosen)}
    for arm, mask in masks.items():
        said = [logits(i, torch.from_numpy(mask)) for i in order[4:]]
        right = [ours[i].answer[0] for i in order[4:]]
        target = np.mean([float(one[token]) for one, token in zip(said, right, strict=True)])
        score = np.mean(
            [int(one.argmax()) == token for one, token in zip(said, right, strict=True)]
        )
        for metric, expected in (("target_logit", target), ("score", score)):
            got = found.metric(metric).set_index("arm")
            assert got.loc[arm, "value"] == pytest.approx(expected, abs=1e-4), (arm, metric)
            assert (got["n"] == 4).all()


def test_masks_over_mlps_and_neurons(tmp_path):
    """Where the MLPs are silent no mask is learned; shapes are those of the model."""
    pair = paired(copier(), copier(), tmp_path)
    pairs = wb.tasks.desiderata("object value", 10, seed=0, count=4)
    mlp = wb.patching.mask(pair, pairs, component="mlp", sides=("tuned",))
    assert len(mlp.metric("mask")) == 3
    assert mlp.metric("chosen")["value"].sum() == 0
    neuron = wb.patching.mask(pair, pairs, component="neuron", sides=("base",), epochs=1)
    assert len(neuron.metric("mask")) == 3 * 48


def test_bad_input_is_one_sentence(pair):
    prompts, other = said(), said(turn=1)
    with pytest.raises(WorkbenchError, match="part q, k or v"):
        wb.patching.path(pair, prompts, corrupted=other, receivers=[MOVER], part="z")  # pyright: ignore
    with pytest.raises(WorkbenchError, match="layers 0 to 2"):
        wb.patching.path(pair, prompts, corrupted=other, receivers=[(7, 0)])
    with pytest.raises(WorkbenchError, match="No head is before"):
        wb.patching.path(pair, prompts, corrupted=other, receivers=[(0, 0)])
    with pytest.raises(WorkbenchError, match="at least 8"):
        wb.patching.circuit(pair, boxes(4))
    with pytest.raises(WorkbenchError, match="at least 8"):
        wb.patching.mask(pair, wb.tasks.desiderata("positional", 4, seed=0, count=4))
    with pytest.raises(WorkbenchError, match=r"\(2, 1\) is not before"):
        wb.patching.path(
            pair, prompts, corrupted=other, receivers=[(1, 0)], senders=[(0, 1), (2, 1)]
        )
    for receivers in ("heads", []):
        with pytest.raises(WorkbenchError, match=r'xpected receiver.* "logits"'):
            wb.patching.path(pair, prompts, corrupted=other, receivers=receivers)  # pyright: ignore
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
