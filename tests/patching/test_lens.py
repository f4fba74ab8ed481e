"""The lens is the model's own head at every depth: its last layer is the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

import workbench as wb
from tests.conftest import adapter, nudged
from tests.patching.conftest import boxes, model, paired, planted, silence, write
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import Layout, Site, hooks, merged
from workbench.models.rerun import Rerun
from workbench.patching.lens import depths, lens, rank, seen_through
from workbench.tasks import PromptSet
from workbench.tasks.batching import batch, rows

LAYER = 1
BOTH = "tuned - base"


def by_layer(found, metric: str, side: str) -> torch.Tensor:
    own = found.metric(metric)
    own = own[own["side"] == side].sort_values("layer")
    return torch.tensor(own["value"].to_numpy(float))


def test_the_last_layer_is_the_model(kind):
    """Bit for bit, with whatever scaling and soft caps its head path has."""
    made = model(kind)
    given = batch(rows(shipped.tokenizer(), boxes(), answers=True), range(6), "cpu", 0)
    places = depths(Layout(made))
    run = Rerun(made, given, {place.whole for place in places})
    assert torch.equal(seen_through(run.read(places[-1]), run), run.logits)
    plain = made(**given.inputs).logits[torch.arange(6), given.last]
    torch.testing.assert_close(run.logits[0, :, 0], plain, atol=1e-5, rtol=1e-5)
    first = seen_through(run.read(places[0]), run)
    assert (first - run.logits).abs().max() > 0.01


def test_every_layer_by_hand(tmp_path):
    """Each side's stream through its own norm and head, and the tuned one's through the base's, in
    float64: KL(side || base), ranks, and the best foil."""
    base, tuned = model(), nudged(model(), seed=1)
    pair, plain = paired(base, tuned, tmp_path), boxes(5, count=None)
    # Of a longer answer the first token is scored.
    prompts = PromptSet("longer", tuple(replace(p, target=f"{p.target} cup") for p in plain))
    given = rows(pair.base.tokenizer(), prompts, answers=True)
    found = lens(pair, prompts)
    sides = {"base": (base, base), "tuned": (tuned, tuned), "tuned, base's head": (tuned, base)}
    streams = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(3))]
    seen: dict[str, list] = {side: [] for side in sides}
    for row in given:
        for side, (runs, reads) in sides.items():
            with hooks.capture(runs, streams) as kept:
                runs(input_ids=torch.tensor([row.ids]))
            last = torch.stack([kept[site][0, -1] for site in streams])
            seen[side].append(reads.lm_head(reads.model.norm(last)).double().numpy())
    for side, own in seen.items():
        for depth in range(4):
            measured: dict[str, list] = {m: [] for m in ("log_probability", "logit_difference",
                                                         "rank", "score", "kl")}  # fmt: skip
            for i, row in enumerate(given):
                logits, answer = own[i][depth], row.answer[0]
                log_p, log_q = (log_softmax(x) for x in (logits, seen["base"][i][depth]))
                measured["log_probability"].append(log_p[answer])
                measured["logit_difference"].append(logits[answer] - logits[[*row.foils]].max())
                measured["rank"].append(1 + (logits > logits[answer]).sum())
                measured["score"].append(logits.argmax() == answer)
                measured["kl"].append((np.exp(log_p) * (log_p - log_q)).sum())
            for metric, values in measured.items():
                told = float(np.mean(values))
                if metric != "kl":
                    got = by_layer(found, metric, side)[depth].item()
                    assert got == pytest.approx(told, abs=1e-4), (side, depth, metric)
                    first = [by_layer(found, metric, one)[depth].item() for one in (side, "base")]
                    told = first[0] - first[1]
                if side != "base":
                    got = by_layer(found, metric, f"{side} - base")[depth].item()
                    assert got == pytest.approx(told, abs=1e-4), (side, depth, metric)
    assert by_layer(found, "kl", BOTH).min() > 1e-3


def test_base_against_itself_is_nothing(tmp_path):
    folder = write(model(), tmp_path / "base")
    found = lens(wb.load_pair(folder, folder), boxes())
    for metric in ("log_probability", "logit_difference", "rank", "score", "kl"):
        assert (by_layer(found, metric, BOTH) == 0).all()
    assert len(by_layer(found, "kl", BOTH)) == 4
    assert set(found.metric("log_probability")["side"]) == {"base", "tuned", BOTH}


def test_a_change_shows_from_its_layer_on(tmp_path):
    kl = by_layer(lens(planted(tmp_path, LAYER, "down"), boxes()), "kl", BOTH)
    assert (kl[: LAYER + 1] == 0).all()
    assert (kl[LAYER + 1 :] > 1e-3).all()


def test_silent_blocks_leave_the_embedding(tmp_path):
    """Nothing is added to the stream, so every layer says what the embedding says."""
    pair = paired(silence(model()), model(), tmp_path)
    found = lens(pair, boxes())
    own = by_layer(found, "log_probability", "base")
    torch.testing.assert_close(own, own[:1].expand(4))
    assert by_layer(found, "log_probability", "tuned").std() > 0.01


@pytest.mark.parametrize("part", ["lm_head", "model.norm"])
def test_a_changed_head_does_not_pass_for_a_changed_stream(tmp_path, part):
    base, tuned = model(), model()
    nudged(tuned.get_submodule(part), scale=0.5)
    found = lens(paired(base, tuned, tmp_path), boxes())
    assert (by_layer(found, "kl", BOTH) > 1e-3).all()
    assert (by_layer(found, "kl", "tuned, base's head - base") == 0).all()


def test_a_changed_embedding_is_no_changed_head_unless_they_are_tied(tmp_path):
    for tied in (False, True):
        sides = [model(tie_word_embeddings=tied) for _ in range(2)]
        nudged(sides[1].get_input_embeddings(), scale=0.5)
        found = lens(paired(*sides, tmp_path / str(tied)), boxes(2))
        said = {*found.metric("log_probability")["side"]}
        assert ("tuned, base's head" in said) == tied
    kl = found.metric("kl")
    assert (kl["baseline"] == 0).all()


def test_adapters_also_on_the_head_and_merged_weights_agree(tmp_path):
    folder = write(model(), tmp_path / "base")
    options = {"target_modules": ["q_proj", "down_proj", "lm_head"]}
    lora = wb.load_pair(folder, adapter(model(), tmp_path / "lora", **options))
    full = wb.load_pair(folder, write(merged(lora), tmp_path / "merged"))
    one, other = (lens(pair, boxes()) for pair in (lora, full))
    sides = set(one.metric("log_probability")["side"])
    assert "tuned, base's head" in sides
    assert sides == set(other.metric("log_probability")["side"])
    for side in sides:
        torch.testing.assert_close(
            by_layer(one, "log_probability", side),
            by_layer(other, "log_probability", side),
            atol=1e-4,
            rtol=1e-4,
        )


def test_padding_and_batch_size_change_nothing(tmp_path):
    pair, prompts = planted(tmp_path, LAYER, "o"), boxes(7, count=None)
    one, other = (lens(pair, prompts, batch_size=size) for size in (1, 7))
    assert len({len(row.ids) for row in rows(shipped.tokenizer(), prompts)}) > 1
    for metric in ("log_probability", "logit_difference", "rank", "kl"):
        pair_of = (by_layer(found, metric, BOTH) for found in (one, other))
        torch.testing.assert_close(*pair_of, atol=1e-5, rtol=1e-4)


def test_ranks_and_likeliest_tokens(tmp_path):
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0], [5.0, 5.0, 1.0, 0.0]])
    assert rank(logits, torch.tensor([2, 1])).tolist() == [2.0, 1.0]
    found = lens(planted(tmp_path, LAYER, "o"), boxes(), top=3)
    said = found.metric("top_token")
    assert said["prompt"].nunique() == 3
    assert len(said) == 3 * 2 * 4 * 3  # prompts, sides, depths, tokens
    first = said[said["x"] == 1].set_index(["prompt", "side", "layer"])["value"]
    second = said[said["x"] == 2].set_index(["prompt", "side", "layer"])["value"]
    assert (first >= second).all()
    made = planted(tmp_path / "again", LAYER, "o").base.load()
    prompt = next(iter(boxes()))
    words = shipped.tokenizer()
    best = made(input_ids=torch.tensor([words(prompt.prompt)["input_ids"]])).logits[0, -1].argmax()
    own = said[(said["side"] == "base") & (said["layer"] == 2) & (said["x"] == 1)]
    assert own.loc[own["prompt"] == prompt.id, "token"].item() == words.decode([int(best)])
    assert not lens(planted(tmp_path / "none", LAYER, "o"), boxes(), top=0).has("top_token")
    assert np.isfinite(said["value"]).all()


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(WorkbenchError, match="top to be 0 or more"):
        lens(planted(tmp_path, LAYER, "o"), boxes(), top=-1)
