"""The difference lens: a constant difference is found and read, numbers by plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import model, paired, silence
from tests.skills.conftest import APPLE, ENDS, LAYER, NAME, PLACES, WRONG, mute
from workbench.lab import shipped
from workbench.patching import Direction
from workbench.patching.direction import equals
from workbench.patching.mean_difference import component_shares, constant
from workbench.patching.reading import percentiles, repeating
from workbench.stats import halves

QUICK: dict[str, Any] = {"n": 16, "length": 6, "k": 3, "random": 3, "top": 5}
ALWAYS = 5  # a neuron that is on at every token


def quick(more: dict[str, Any]) -> dict[str, Any]:
    return QUICK | more


def texts(n: int = 16) -> list[str]:
    return [prompt.text for prompt in wb.tasks.facts(n, seed=1, split="test")]


def one(result: wb.results.Result, metric: str, **where: object) -> float:
    rows = result.metric(metric)
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, rows
    return float(rows["value"].iloc[0])


def steady(neuron: int, folder: Path) -> wb.CheckpointPair:
    """The tuned model writes APPLE wherever a neuron is on."""

    def made(value: float) -> Any:
        own = mute()
        mlp = own.model.layers[LAYER].mlp
        mlp.gate_proj.weight[ALWAYS, WRONG] = mlp.up_proj.weight[ALWAYS, WRONG] = 0.3
        own.get_parameter(NAME)[APPLE, neuron] += value
        return own

    return paired(made(0), made(8), folder)


def test_a_planted_constant_difference_is_read_and_steers(tmp_path):
    """It is APPLE's axis alone, the same for all texts; every way of reading says so."""
    pair = steady(ALWAYS, tmp_path)
    found = wb.patching.difference(pair, texts(), layer=LAYER, strength=3, **quick({"random": 16}))
    direction = Direction.of(found, pair.name, LAYER)
    np.testing.assert_allclose(np.delete(direction.vector, APPLE), 0, atol=1e-6)
    assert direction.vector[APPLE] > 0.1
    assert Direction.of(found, pair.name, LAYER - 1).norm == 0
    assert one(found, "constant", layer=LAYER) == pytest.approx(1, abs=0.05)
    assert abs(float(found.metric("constant")["baseline"].iloc[0])) < 0.5
    first = found.metric("up")
    first = first[(first["layer"] == LAYER) & (first["x"] == 1) & (first["arm"] == "difference")]
    assert {*first["side"]} == {"lens", "repeat"}
    assert {*first["token"]} == {"apple"}
    assert (first["value"] > first["baseline"]).all()
    where = {"layer": LAYER, "side": "lens"}
    assert one(found, "found", arm="difference", **where) == 1
    assert one(found, "found", arm="beyond random", **where) > 0.2
    assert one(found, "new_words", arm="difference") > 0.9
    assert one(found, "reference_words", arm="difference") > 0.9
    assert one(found, "reference_words", arm="random") < 0.5
    said = found.metric("text").groupby("arm")["text"].first()
    assert said["difference"] == said["tuned"] == "apple " * 5 + "apple"
    named = wb.patching.difference(pair, texts(), prompts=["apple apple"] * 8, **QUICK)
    assert [*named.metric("word").query("arm == 'prompts'")["word"]] == ["apple"]


def test_a_change_that_depends_on_the_text_is_not_constant(tmp_path):
    """The neuron is on behind one word, which half of the texts hold."""
    word = ENDS[PLACES]
    mixed = [f"coin {word if i % 2 else 'coin'} coin coin" for i in range(16)]
    found = wb.patching.difference(steady(PLACES, tmp_path), mixed, layer=LAYER, **QUICK)
    assert 0.2 < one(found, "constant", layer=LAYER) < 0.8
    share = found.metric("component_share").query("layer == @LAYER and rank == 0")["value"]
    assert share.iloc[0] == pytest.approx(1, abs=1e-6)


def test_the_base_against_itself_says_nothing(tmp_path):
    made = model()
    found = wb.patching.difference(paired(made, made, tmp_path), **QUICK)
    own = found.metric("norm")
    assert own.loc[own["arm"] == "difference", "value"].eq(0).all()
    assert found.metric("constant")["value"].isna().all()
    assert not found.has("up")
    assert not found.has("percentile")
    for arm in ("difference", "random", "tuned"):
        assert one(found, "new_words", arm=arm) == 0
    said = found.metric("text")
    assert said.groupby("x")["text"].nunique().eq(1).all()
    assert any("hold the reading against" in note for note in found.provenance.notes)


def test_a_model_that_repeats_says_the_token_whose_state_it_is_given(tmp_path):
    """Nothing but embedding and head, which are one: a state says its own token."""
    base = silence(model(tie_word_embeddings=False))
    embed = base.model.embed_tokens.weight
    embed.copy_(torch.nn.functional.normalize(torch.randn(embed.shape), dim=1))
    base.lm_head.weight.copy_(embed)
    found = wb.patching.difference(paired(base, base, tmp_path), texts(), **QUICK)
    told = found.metric("repeated")
    assert told["value"].eq(1).all()
    assert (told["baseline"] < 0.5).all()
    other = wb.patching.difference(
        paired(model(), model(), tmp_path / "other"), texts(), **QUICK
    ).metric("repeated")
    assert (other["value"] < 0.5).all()


def test_every_number_by_plain_torch(tmp_path):
    base, tuned = model(), nudged(model(), seed=1)
    pair, given, layer, k = paired(base, tuned, tmp_path), texts(), 1, 3
    words = pair.base.tokenizer()
    found = wb.patching.difference(
        pair, given, prompts=["apple apple", "coin apple"] * 4, layer=layer, batch_size=5, **QUICK
    )
    coded = [words(text)["input_ids"][: k + 1] for text in given]

    def hidden(made: Any) -> np.ndarray:
        with torch.no_grad():
            out = made(torch.tensor(coded), output_hidden_states=True).hidden_states
        return out[layer + 1][:, 1:].double().numpy()

    states = hidden(base)
    change = hidden(tuned) - states
    pick, report = halves(len(given), layer)
    mean = change[pick].mean(0)
    told = found.metric("constant").query("layer == @layer").iloc[0]
    top = sum(float((change[i] * mean).sum()) for i in report)
    assert told["value"] == pytest.approx(top / sum((change[i] ** 2).sum() for i in report))
    assert told["n"] == len(report)
    null = []
    for split in range(8):
        parts = halves(len(given), layer + split)
        other = [states[half[:4]] - states[half[4:]] for half in parts]
        top = float((other[1] * other[0].mean(0)).sum())
        null.append(top / np.square(other[1]).sum())
    assert told["baseline"] == pytest.approx(np.mean(null), rel=1e-4)
    assert told["null_high"] == pytest.approx(max(null), rel=1e-4)
    vector = change.mean((0, 1))
    norms = found.metric("norm").query("layer == @layer")
    whole = norms[norms["position"].isna()].set_index("arm")
    assert whole.loc["difference", "value"] == pytest.approx(np.linalg.norm(vector), rel=1e-4)
    size = np.linalg.norm(states, axis=2).mean()
    assert whole["baseline"].iloc[0] == pytest.approx(size, rel=1e-4)
    apart = (states[pick].mean(0) - states[report].mean(0)).mean(0)
    assert whole.loc["base halves", "value"] == pytest.approx(np.linalg.norm(apart), rel=1e-4)
    first = norms[norms["position"] == "1"]["value"].item()
    assert first == pytest.approx(np.linalg.norm(change[:, 0].mean(0)), rel=1e-4)
    spread = (change - change.mean(0)).reshape(-1, change.shape[-1])
    values = np.linalg.eigvalsh(spread.T @ spread)[::-1]
    shares = found.metric("component_share").query("layer == @layer")["value"]
    np.testing.assert_allclose(shares, values[:3] / values.sum(), rtol=1e-4)

    drawn = equals(vector.astype(np.float32), QUICK["random"], layer)
    arms = np.stack([vector, apart * np.linalg.norm(vector) / np.linalg.norm(apart), *drawn])

    def head(made: Any) -> np.ndarray:
        with torch.no_grad():
            logits = made.lm_head(made.model.norm(torch.from_numpy(arms).float())).double()
        return (logits - logits.mean(-1, keepdim=True)).numpy()

    row = repeating(words, [i for own in coded for i in own[1:]]).ids
    with torch.no_grad():
        place = base(torch.tensor([row]), output_hidden_states=True).hidden_states[layer + 1][0, -1]
    said = []
    for arm in arms:
        put = torch.from_numpy(arm / np.linalg.norm(arm)).float() * place.norm()

        def change_last(_m: Any, _a: Any, out: torch.Tensor, put: torch.Tensor = put) -> Any:
            out = out.clone()
            out[0, -1] = put
            return out

        hook = base.model.layers[layer].register_forward_hook(change_last)
        with torch.no_grad():
            said.append(base(torch.tensor([row])).logits[0, -1].double().log_softmax(-1).numpy())
        hook.remove()
    log_p = np.stack(said)
    above = np.concatenate([
        log_p[:2] - log_p[2:].mean(0),
        [own - np.delete(log_p[2:], i, 0).mean(0) for i, own in enumerate(log_p[2:])],
    ])  # fmt: skip
    reads = {"lens": head(base), "lens, tuned head": head(tuned), "repeat": above}
    table = found.metric("word")
    reference = [str(w) for w in table.loc[table["arm"] == "prompts", "word"]]
    tokens = [*dict.fromkeys(words(f" {w}", add_special_tokens=False)["input_ids"][0]
                             for w in reference)]  # fmt: skip
    assert tokens
    for side, scores in reads.items():
        for number, arm in enumerate(("difference", "base halves")):
            for metric, sign in (("up", 1), ("down", -1)):
                own = found.metric(metric).query("layer == @layer and side == @side")
                own = own[own["arm"] == arm]
                best = np.argsort(-sign * scores[number])[: QUICK["top"]]
                assert [*own["token"]] == [words.decode([int(i)]) for i in best]
                np.testing.assert_allclose(own["value"], scores[number][best], atol=1e-4)
                null = sign * (sign * scores[2:]).max(1).mean()
                np.testing.assert_allclose(own["baseline"], null, atol=1e-4)
            own = [np.mean(scores[number] < scores[number][t]) for t in tokens]
            where = {"layer": layer, "side": side, "arm": arm}
            share = np.mean(own) * len(scores[0]) / (len(scores[0]) - 1)
            assert one(found, "percentile", **where) == pytest.approx(share, abs=1e-6)
            best = np.argsort(-scores[number])[: QUICK["top"]]
            assert one(found, "found", **where) == pytest.approx(np.isin(tokens, best).mean())


def test_texts_that_were_written_by_plain_torch(tmp_path):
    """With the direction added, drawn by the base's own random numbers; shares counted by hand."""
    base, tuned = model(), nudged(model(), seed=1)
    pair, given, layer = paired(base, tuned, tmp_path), texts(), 1
    found = wb.patching.difference(pair, given, layer=layer, **QUICK)
    words = pair.base.tokenizer()
    vector = torch.from_numpy(Direction.of(found, pair.name, layer).vector)
    size = found.metric("norm").query("layer == @layer")["baseline"].iloc[0]
    hook = base.model.layers[layer].register_forward_hook(
        lambda _m, _a, out: out + vector / vector.norm() * size
    )
    ids = torch.tensor([words(text)["input_ids"][:1] for text in given])
    chances = np.random.default_rng(0).random((len(given), 6))
    for step in range(6):
        with torch.no_grad():
            mass = base(ids).logits[:, -1].double().softmax(-1).cumsum(-1)
        at = torch.from_numpy(chances[:, step : step + 1]).contiguous()
        ids = torch.cat([ids, torch.searchsorted(mass.contiguous(), at, right=True)], 1)
    hook.remove()
    said = found.metric("text").query("arm == 'difference'")["text"]
    assert [*said] == [words.decode(own) for own in ids[:3, 1:]]
    reports = halves(len(given), 0)[1]
    spoken = [w for i in reports for w in words.decode(ids[i, 1:]).split() if w.isalnum()]
    reference = {*found.metric("word").query("arm == 'contrast'")["word"]}
    share = np.mean([word in reference for word in spoken])
    assert one(found, "reference_words", arm="difference") == pytest.approx(share)


def test_constant_is_the_share_of_the_mean_and_nothing_without_one():
    """Differences mu + noise: |mu|^2 over |mu|^2 + the noise's variance; noise alone: 0."""
    draw = np.random.default_rng(0)
    noise = draw.standard_normal((4000, 2, 5))
    pick, report = halves(4000, 0)
    for mean, share in ((0.0, 0.0), (1.0, 0.5)):
        top, bottom = constant(noise + mean, pick, report)
        assert top.sum() / bottom.sum() == pytest.approx(share, abs=0.02)
    top, bottom = constant(np.ones((8, 1, 3)), [0, 1], [2, 3])
    np.testing.assert_array_equal(top, bottom)
    one_way = np.outer([1.0, -1, 2, -2], [3.0, 4]).reshape(2, 2, 2)
    np.testing.assert_allclose(component_shares(one_way), [1, 0, np.nan], atol=1e-12)
    assert np.isnan(component_shares(np.ones((3, 2, 4)))).all()


def test_percentiles_by_hand():
    scores = np.array([[1.0, 5, 2, 2]])
    np.testing.assert_allclose(percentiles(scores, [0, 1, 2]), [[0, 1, 0.5]])


def test_the_prompt_that_repeats_is_the_papers_where_its_words_are_known():
    words = shipped.tokenizer()
    ids = repeating(words, [7, 7, 9, 11, 13]).ids
    assert ids[-7:] == [7, 7, 9, 9, 11, 11, 13]

    class Knows:
        unk_token_id, eos_token_id, bos_token_id = None, 3, None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [*text.encode(), 3]}

    assert bytes(repeating(Knows(), []).ids).decode().endswith("hello->hello\n?")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"k": 0}, "k to be 1"), ({"n": 4}, "n to be 8"), ({"layer": 9}, "no layer 9"),
     ({"random": 1}, "random to be 2"), ({"strength": np.nan}, "strength to be a number"),
     ({"k": 100}, "texts of more than 100 tokens")],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(tmp_path, wrong, said):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.patching.difference(pair, texts(), **quick(wrong))


def test_short_texts_are_left_out_with_a_note(tmp_path):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    found = wb.patching.difference(pair, [*texts(), "the"], **quick({"n": 17}))
    assert any("1 of the first 17 texts are too short" in note for note in found.provenance.notes)
    assert found.metric("norm")["n"].eq(16).all()
