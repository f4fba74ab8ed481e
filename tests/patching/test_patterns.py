"""Patterns differ where a head was changed, not before it, and not at all from themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import entr

import workbench as wb
from tests.conftest import adapter
from tests.patching.conftest import boxes, model, paired, planted, write
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import Layout, Site, hooks, merged
from workbench.patching.patterns import (
    ALL,
    FIRST,
    LAST,
    entropy,
    most_changed,
    over_queries,
    patterns,
    reach,
)
from workbench.tasks import Prompt, PromptSet
from workbench.tasks.batching import batch, rows

LAYER, HEAD = 1, 2  # of three and four; llama's heads share keys in twos


def heads(found, position: str, metric: str = "tvd", side: str = "tuned - base") -> np.ndarray:
    """(layer, head)."""
    own = found.metric(metric)
    own = own[(own["position"] == position) & (own["side"] == side)]
    return own.pivot_table("value", "layer", "head").to_numpy(float)


def one_query_scaled(folder, kind: str = "llama"):
    base, tuned = model(kind), model(kind)
    layout = Layout(tuned)
    module = layout.module(Site("q", LAYER))
    weight = module.weight.T if kind == "gpt2" else module.weight
    rows_of = torch.zeros_like(weight)
    start = HEAD * layout.d_head * (3 if kind == "gpt_neox" else 1)
    rows_of[start : start + layout.d_head] = 1
    factor = 1 + 5 * rows_of
    module.weight.mul_(factor.T if kind == "gpt2" else factor)
    if module.bias is not None:
        module.bias.mul_(factor[:, 0])
    return paired(base, tuned, folder)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_a_planted_head_is_found(tmp_path, kind):
    found = patterns(one_query_scaled(tmp_path, kind), boxes())
    for position in (LAST, ALL):
        apart = heads(found, position)
        assert (apart[:LAYER] == 0).all()
        assert np.unravel_index(apart.argmax(), apart.shape) == (LAYER, HEAD)
        assert (np.delete(apart[LAYER], HEAD) == 0).all()
        assert (apart[LAYER + 1] > 0).all()
    assert most_changed(found.table) == (LAYER, HEAD)


def test_base_against_itself_is_nothing(tmp_path):
    folder = write(model(), tmp_path / "base")
    found = patterns(wb.load_pair(folder, folder), boxes())
    assert (found.metric("tvd")["value"] == 0).all()
    paid = found.metric("attention")
    assert (paid.loc[paid["side"] == "tuned - base", "value"] == 0).all()
    assert (found.metric("example_tvd")["value"] == 0).all()


def test_by_hand(tmp_path):
    """Against plain attention weights of one prompt after the other, padding nowhere."""
    pair, prompts = one_query_scaled(tmp_path), boxes(4, count=None)
    found = patterns(pair, prompts)
    words = shipped.tokenizer()
    apart: dict[str, list[float]] = {LAST: [], ALL: []}
    paid: dict[tuple[str, str], list[float]] = {}
    focused: dict[tuple[str, str, str], list[float]] = {}
    for row in rows(words, prompts):
        seen = {}
        for side, made in (("base", pair.base.load()), ("tuned", pair.tuned.load())):
            with hooks.capture(made, [Site("pattern", LAYER)]) as kept:
                made(input_ids=torch.tensor([row.ids]))
            seen[side] = kept[Site("pattern", LAYER)][0, HEAD]
            for place, (start, stop) in (row.spans | {FIRST: (0, 1)}).items():
                paid.setdefault((side, place), []).append(float(seen[side][-1, start:stop].sum()))
            p = seen[side].double().numpy()
            back = np.arange(len(p))[:, None] - np.arange(len(p))
            each = {"entropy": entr(p).sum(-1), "reach": (p * back).sum(-1)}
            for metric, own in each.items():
                focused.setdefault((metric, side, LAST), []).append(own[-1])
                focused.setdefault((metric, side, ALL), []).append(own.mean())
        distance = (seen["tuned"] - seen["base"]).abs().sum(-1) / 2
        apart[LAST].append(float(distance[-1]))
        apart[ALL].append(float(distance.mean()))
    for position, values in apart.items():
        assert heads(found, position)[LAYER, HEAD] == pytest.approx(np.mean(values), abs=1e-5)
    for (metric, side, position), values in focused.items():
        own = heads(found, position, metric, side)[LAYER, HEAD]
        assert own == pytest.approx(np.mean(values), abs=1e-5)
        change = heads(found, position, metric)[LAYER, HEAD]
        before = np.mean(focused[metric, "base", position])
        after = np.mean(focused[metric, "tuned", position])
        assert change == pytest.approx(after - before, abs=1e-5)
    rows_of = found.metric("attention")
    rows_of = rows_of[(rows_of["layer"] == LAYER) & (rows_of["head"] == HEAD)]
    told = rows_of.set_index(["side", "position"])
    places = [place for side, place in paid if side == "base"]
    assert {*rows_of["position"]} == {*places} >= {FIRST, "query box"}
    for place in places:
        base, tuned = (np.mean(paid[side, place]) for side in ("base", "tuned"))
        for side, value in (("base", base), ("tuned", tuned), ("tuned - base", tuned - base)):
            assert told.loc[(side, place), "value"] == pytest.approx(value, abs=1e-5)
        assert told.loc[("tuned", place), "baseline"] == pytest.approx(base, abs=1e-5)
        assert told.loc[("tuned - base", place), "baseline"] == 0
        assert np.isnan(told.loc[("base", place), "baseline"])
    own = found.metric("tvd")
    assert (own["n"] == 4).all()
    assert ((own["low"] <= own["value"] + 1e-12) & (own["value"] <= own["high"] + 1e-12)).all()


def test_distances_of_no_common_key_are_one():
    words = shipped.tokenizer()
    inputs = batch(rows(words, boxes(4, count=None)), range(4), "cpu", 0)
    length = inputs.ids.shape[1]
    apart = torch.ones(4, 2, length)
    apart[inputs.mask[:, None].expand(-1, 2, -1) == 0] = 100.0  # padding must not count
    found = over_queries(apart, inputs)
    assert (found[LAST] == 1).all()
    torch.testing.assert_close(found[ALL], torch.ones(4, 2))


def test_adapters_and_merged_weights_agree(tmp_path):
    folder = write(model(), tmp_path / "base")
    lora = wb.load_pair(folder, adapter(model(), tmp_path / "lora"))
    full = wb.load_pair(folder, write(merged(lora), tmp_path / "merged"))
    one, other = (patterns(pair, boxes()) for pair in (lora, full))
    assert heads(one, LAST).max() > 1e-3
    for position in (LAST, ALL):
        np.testing.assert_allclose(heads(one, position), heads(other, position), atol=1e-4)
    for name, array in one.tensors.items():
        np.testing.assert_allclose(array, other.tensors[name], atol=1e-4)


def test_padding_and_batch_size_change_nothing(tmp_path):
    pair, prompts = planted(tmp_path, 0, "o"), boxes(5, count=None)
    one, other = (patterns(pair, prompts, batch_size=size) for size in (1, 5))
    for metric in ("tvd", "attention"):
        sides = (found.metric(metric)["value"].to_numpy() for found in (one, other))
        np.testing.assert_allclose(*sides, atol=1e-5)


def test_examples_hold_whole_patterns(tmp_path):
    found = patterns(one_query_scaled(tmp_path), boxes(), examples=2)
    rows_of = found.metric("example_tvd")
    assert rows_of["prompt"].nunique() == 2
    assert (rows_of["layer"] == LAYER).all()
    assert (rows_of["head"] == HEAD).all()
    count = len(rows_of[rows_of["prompt"] == rows_of["prompt"].iloc[0]])
    for side in ("base", "tuned"):
        whole, last = found.tensors[f"0/{side}/head"], found.tensors[f"0/{side}/last"]
        assert whole.shape == (count, count)
        assert last.shape == (3, 4, count)
        np.testing.assert_allclose(whole.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(last[LAYER, HEAD], whole[-1], atol=1e-6)
        assert (np.triu(whole, 1) == 0).all()
    base, tuned = (found.tensors[f"0/{side}/head"] for side in ("base", "tuned"))
    apart = np.abs(tuned - base).sum(-1) / 2
    np.testing.assert_allclose(rows_of["value"].head(count), apart, atol=1e-5)
    text = "".join(rows_of["token"].head(count))
    assert "box" in text.lower() or "Box" in text
    assert heads(found, FIRST, "attention", "base").shape == (3, 4)


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(WorkbenchError, match="0 or more examples"):
        patterns(planted(tmp_path, 0, "o"), boxes(), examples=-1)


def test_attention_to_places_of_unequal_width_is_their_sum(tmp_path):
    """Whatever the batches, against the patterns themselves."""
    made = []
    for number, thing in enumerate(("apple", "ball card", "dice")):
        span = {"thing": (4, 4 + len(thing))}
        made.append(Prompt(str(number), f"the {thing} . the", " cup", spans=span))
    pair = paired(model(), model(seed=1), tmp_path)
    site, words, wanted = Site("pattern", LAYER), pair.base.tokenizer(), []
    for prompt in made:
        ids = torch.tensor([words(prompt.prompt)["input_ids"]])
        seen = hooks.run(pair.base.load(), {"input_ids": ids}, read=[site]).captured[site]
        wide = len(prompt.prompt.split(" .")[0].split()) - 1
        wanted.append(seen[0, :, -1, 2 : 2 + wide].sum(-1))
    for size in (1, 3):
        found = patterns(pair, PromptSet("wide", tuple(made)), examples=0, batch_size=size)
        told = heads(found, "thing", "attention", "base")[LAYER]
        assert told == pytest.approx(torch.stack(wanted).mean(0).numpy(), abs=1e-5)


def test_entropy_and_reach_by_hand():
    """All on one key, and spread evenly: ln 4 nats; three tokens back at most, 1.5 on average."""
    one, even = torch.zeros(4, 4), torch.zeros(4, 4)
    one[:, 0], even[3] = 1, 0.25
    assert entropy(one).tolist() == [0, 0, 0, 0]
    assert reach(one).tolist() == [0, 1, 2, 3]
    assert float(entropy(even)[3]) == pytest.approx(np.log(4))
    assert float(reach(even)[3]) == pytest.approx(1.5)
