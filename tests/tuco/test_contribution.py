"""TuCo's ground truths, on tiny models of every architecture, LoRA and full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import workbench as wb
from tests.conftest import adapter
from tests.models.conftest import batch as inputs_of
from tests.models.conftest import write_base, write_member
from tests.tuco.conftest import decoder, mlp_times, pair_of, paired, silence
from workbench.lab import shipped
from workbench.models import Site, hooks
from workbench.tasks.batching import Batch, Row, batch
from workbench.tuco.contribution import (
    contribution,
    decompose,
    measure,
    per_prompt,
    stream_bound,
)
from workbench.tuco.lockstep import lockstep


def prompts(lengths=(9, 6), seed: int = 0) -> list[Row]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Row(str(i), torch.randint(3, 64, (n,), generator=draw).tolist())
        for i, n in enumerate(lengths)
    ]


def one_batch(given: list[Row]) -> Batch:
    return batch(given, range(len(given)), "cpu", 0)


def scores(pair: wb.CheckpointPair, **options: Any) -> dict[str, np.ndarray]:
    with pair.models(**options) as sides:
        sums, _ = decompose(sides, one_batch(prompts()))
        return {name: value.numpy() for name, value in per_prompt(sums).items()}


@pytest.mark.parametrize("how", ["full", "lora"])
def test_the_stream_is_the_embedding_and_both_contributions(kind: str, how: str, tmp_path: Path):
    """x_L = x_0 + sum PTC + sum FTC, and x_L is the tuned model's own."""
    with pair_of(kind, how, tmp_path).models() as sides:
        made = one_batch(prompts())
        sums, final = decompose(sides, made)
        ends = [Site("resid_pre", 0), Site("resid_post", 2)]
        first, last = hooks.run(sides.tuned, made.inputs, read=ends).captured.values()
        assert torch.equal(final, last)
        assert float(sums.ftc.abs().sum()) > 0
        torch.testing.assert_close(first + sums.ptc + sums.ftc, last, atol=1e-4, rtol=1e-4)


def test_a_base_against_itself_contributes_nothing(kind: str, tmp_path: Path):
    base = write_base(kind, tmp_path / "base")
    found = scores(wb.load_pair(base, base))
    for name in ("tuco", "tuco_l2", "tuco_sum", "beta"):
        assert (found[name] == 0).all()
    assert (found["preco"] == 1).all()


def test_an_adapter_of_zeros_contributes_nothing(tmp_path: Path):
    """Its blocks are run twice, and come out the same bit for bit."""
    base = write_base("llama", tmp_path / "base")
    adapter(decoder("llama"), tmp_path / "m", init_lora_weights=True)
    pair = wb.load_pair(base, tmp_path / "m")
    with pair.models() as sides:
        assert sides.changed
    assert (scores(pair)["tuco"] == 0).all()


def test_a_silent_base_leaves_everything_to_fine_tuning(kind: str, tmp_path: Path):
    found = scores(paired(silence(decoder(kind)), decoder(kind), tmp_path))
    for name in ("tuco", "tuco_l2", "tuco_sum"):
        np.testing.assert_allclose(found[name], 1, atol=1e-6)


@pytest.mark.parametrize("factor", [3.0, 0.25, -1.0])
def test_scaled_blocks_have_the_share_of_their_factor(kind: str, factor: float, tmp_path: Path):
    """f_tuned = c f_base: TuCo = |c - 1| / (1 + |c - 1|), in every norm."""
    base = silence(decoder(kind), parts=("o",))
    tuned = mlp_times(silence(decoder(kind), parts=("o",)), factor)
    found = scores(paired(base, tuned, tmp_path))
    expected = abs(factor - 1) / (1 + abs(factor - 1))
    for name in ("tuco", "tuco_l2", "tuco_sum", "beta"):
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)


def biased(*added: dict[int, float]) -> Any:
    """A GPT-2 whose layer l adds the vector with these entries to the stream, whatever it reads."""
    model = silence(decoder("gpt2"))
    for layer, entries in enumerate(added):
        for place, value in entries.items():
            model.transformer.h[layer].mlp.c_proj.bias[place] = value
    return model


def test_by_hand(tmp_path: Path):
    """PTC = (1, 0, 0), FTC = (0, 2, 0): 2/3, not the sums of absolute entries of the stream."""
    found = scores(paired(biased({0: 1.0}), biased({0: 1.0, 1: 2.0}), tmp_path))
    np.testing.assert_allclose(found["tuco"], 2 / 3, rtol=1e-6)
    # Layers that do not add up: FTC = (3, 0) - (1, 0) + (0, 1) has norms 2 + 1 in sum, 4 + 1 apart.
    tuned = biased({0: 1.0, 5: 3.0}, {5: -1.0}, {6: 1.0})
    found = scores(paired(biased({0: 1.0}), tuned, tmp_path / "b"))
    np.testing.assert_allclose(found["tuco"], 3 / 4, rtol=1e-6)
    np.testing.assert_allclose(found["tuco_sum"], 5 / 6, rtol=1e-6)
    np.testing.assert_allclose(found["tuco_l2"], 5**0.5 / (1 + 5**0.5), rtol=1e-6)
    np.testing.assert_allclose(found["beta"], 3 / 4, rtol=1e-6)


def test_every_row_of_the_table_by_hand(tmp_path: Path):
    """Layer by layer: PTC 1, 2, 0; FTC 3 at entry 5, then -1 there, then 4 at entry 6; so that the
    sums are 3 of 4, then 2 of 5, then 6 of 9. The embeddings differ by a factor, too."""
    base = biased({0: 1.0}, {0: 2.0}, {})
    tuned = biased({0: 1.0, 5: 3.0}, {0: 2.0, 5: -1.0}, {6: 4.0})
    tuned.transformer.wpe.weight *= 1.5
    pair = paired(base, tuned, tmp_path)
    result = contribution(pair, {"g": ["3 4 5 6", "3 4"]})

    def layers(name: str) -> list[float]:
        return result.metric(name).sort_values("layer")["value"].tolist()

    assert layers("layer_ptc") == pytest.approx([1, 2, 0], abs=1e-5)
    assert layers("layer_ftc") == pytest.approx([3, 1, 4], rel=1e-5)
    assert layers("layer_tuco") == pytest.approx([3 / 4, 1 / 3, 1], rel=1e-5)
    assert layers("cumulated") == pytest.approx([3 / 4, 2 / 5, 6 / 9], rel=1e-5)
    by = {name: result.metric(name)["value"].tolist() for name in ("tuco", "preco", "length")}
    assert by["tuco"] == pytest.approx([6 / 9] * 2, rel=1e-5)
    assert by["preco"] == pytest.approx([3 / 9] * 2, rel=1e-5)
    words = pair.base.tokenizer()
    assert by["length"] == [len(words(text).input_ids) for text in ("3 4 5 6", "3 4")]
    for name in ("tuco", "preco", "length", "output_co", "base_loss", "beta", "tuco_l2"):
        (mean,) = result.metric(f"mean:{name}")["value"]
        assert mean == pytest.approx(result.metric(name)["value"].mean(), rel=1e-6), name
    (outside,) = result.metric("invisible").to_dict("records")
    assert (outside["component"], outside["value"]) == ("wpe", pytest.approx(0.5, rel=1e-5))
    # OutputCo and the base's loss by running both alone.
    moved, losses = [], []
    for text in ("3 4 5 6", "3 4"):
        ids = words(text, return_tensors="pt")["input_ids"]
        ends = []
        for model in (base, tuned):
            with torch.inference_mode():
                run = model.transformer(input_ids=ids, output_hidden_states=True)
                # Before the final norm: embeddings, and what the blocks add whatever they read.
                ends.append(run.hidden_states[2][0, -1] + model.transformer.h[2].mlp.c_proj.bias)
        change = (ends[1] - ends[0]).abs().sum()
        moved.append(float(change / (ends[0].abs().sum() + change)))
        with torch.inference_mode():
            losses.append(float(base(input_ids=ids, labels=ids).loss))
    assert result.metric("output_co")["value"].tolist() == pytest.approx(moved, rel=1e-4)
    assert result.metric("base_loss")["value"].tolist() == pytest.approx(losses, rel=1e-4)
    swapped = float(change / (ends[1].abs().sum() + change))
    assert moved[-1] != pytest.approx(swapped, rel=0.01)  # negative control


def test_contributions_that_cancel_are_its_blind_spot(tmp_path: Path):
    tuned = biased({0: 1.0, 5: 3.0}, {5: -3.0})
    found = scores(paired(biased({0: 1.0}), tuned, tmp_path))
    np.testing.assert_allclose(found["tuco"], 0, atol=1e-6)
    np.testing.assert_allclose(found["tuco_sum"], 6 / 7, rtol=1e-6)
    np.testing.assert_allclose(found["beta"], 3 / 4, rtol=1e-6)


def test_the_bound_holds_where_blocks_are_constant(tmp_path: Path):
    """Constant blocks have Lipschitz constant 0: the streams differ by the sum of FTC."""
    base = biased({0: 1.0, 1: 2.0}, {2: -1.5}, {0: 0.5})
    tuned = biased({0: 1.0, 1: 1.0}, {2: -1.0, 7: 2.0}, {0: 0.5})
    with paired(base, tuned, tmp_path).models() as sides:
        sums, final = decompose(sides, one_batch(prompts()))
        end = Site("resid_post", 2)
        plain = hooks.run(sides.base, one_batch(prompts()).inputs, read=[end]).captured[end]
        beta = float(per_prompt(sums)["beta"][0])
        largest = max(float(ptc[0]) for ptc, _, _ in sums.layers)
    moved = float((final - plain)[0, 0].abs().sum())
    assert moved == pytest.approx(1 + 0.5 + 2)
    assert moved <= stream_bound(beta, 3, largest, 0)
    assert stream_bound(0, 3, largest, 0) == 0
    assert stream_bound(1, 3, largest, 0) == float("inf")


def test_nothing_over_nothing_is_not_a_number(tmp_path: Path):
    found = scores(paired(biased(), biased(), tmp_path))
    assert np.isnan(found["tuco"]).all()


@pytest.mark.parametrize("how", ["full", "lora"])
def test_padding_and_batch_size_change_nothing(kind: str, how: str, tmp_path: Path):
    words = shipped.tokenizer()
    given = prompts((9, 4, 7, 5, 9))
    with pair_of(kind, how, tmp_path).models() as sides:
        tables = [measure(sides, "g", given, words, 5, size, "cpu") for size in (1, 2, 5)]
    for other in tables[1:]:
        np.testing.assert_allclose(tables[0].prompts, other.prompts, rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(tables[0].layers, other.layers, rtol=2e-3, atol=1e-4)
        assert sorted((t["prompt"], t["position"]) for t in tables[0].tokens) == sorted(
            (t["prompt"], t["position"]) for t in other.tokens
        )


def test_a_base_on_disk_gives_the_same(kind: str, tmp_path: Path):
    pair = pair_of(kind, "full", tmp_path)
    held, streamed = scores(pair), scores(pair, base="disk")
    for name in held:
        np.testing.assert_array_equal(held[name], streamed[name])


def test_untouched_blocks_are_not_run_twice(tmp_path: Path):
    base = write_base("llama", tmp_path / "base")
    adapter(decoder("llama"), tmp_path / "m", layers_to_transform=[2], target_modules=["q_proj"])
    with wb.load_pair(base, tmp_path / "m").models() as sides:
        runs = [0, 0, 0]
        for layer in range(3):

            def count(*_: Any, layer: int = layer) -> None:
                runs[layer] += 1

            mlp = sides.layout.block(layer).get_submodule("mlp")
            mlp.register_forward_hook(count)
        decompose(sides, one_batch(prompts()))
    assert runs == [1, 1, 2]


def test_massive_activations_do_not_drown_it_in_bfloat16(tmp_path: Path):
    """With a stream of thousands, block(x) - x is rounding noise in bfloat16; the sublayers' own
    outputs are not."""
    base, tuned = decoder("llama"), mlp_times(decoder("llama"), 1.5)
    for model in (base, tuned):
        model.model.embed_tokens.weight *= 1e4
    pair = paired(base, tuned, tmp_path)
    exact, coarse = scores(pair)["tuco"], scores(pair, dtype=torch.bfloat16)["tuco"]
    np.testing.assert_allclose(coarse, exact, atol=0.05)
    naive = []
    with pair.models(dtype=torch.bfloat16) as sides:

        def visit(step: Any) -> None:
            parts = (step.base.out - step.stream, step.tuned.out - step.base.out)
            naive.append([part.float() for part in parts])

        made = one_batch(prompts())
        with lockstep(sides, visit):
            sides.tuned(**made.inputs, use_cache=False)
        totals = [torch.stack(part).sum(0) for part in zip(*naive, strict=True)]
        ptc, ftc = (t[torch.arange(2), made.last].abs().sum(-1) for t in totals)
    assert float(abs((ftc / (ptc + ftc)).numpy() - exact).max()) > 0.05


def test_a_block_that_does_something_else_adds_what_it_changes(tmp_path: Path):
    """f(x) = block(x) - x also where a block scales the stream, so that its sublayers' outputs are
    not all: x -> 1.1 (x + A + M) adds 0.1 x more, on both sides."""
    pair = pair_of("llama", "lora", tmp_path)
    with pair.models() as sides:
        block: Any = sides.layout.block(0)
        block.register_forward_hook(lambda _module, _args, output: 1.1 * output)
        given = one_batch(prompts())
        steps: list[Any] = []

        def visit(step: Any) -> None:
            steps.append(step)

        with lockstep(sides, visit):
            sides.tuned(**given.inputs, use_cache=False)
        first = steps[0]
        for side in (first.base, first.tuned):
            torch.testing.assert_close(side.added, side.out - first.stream, atol=1e-5, rtol=1e-5)
        assert (first.tuned.out - first.base.out).abs().max() > 1e-3
        plain = steps[1].tuned
        torch.testing.assert_close(plain.added, plain.out - steps[1].stream, atol=1e-5, rtol=1e-5)


def test_one_text_is_not_a_list_of_letters(tmp_path: Path):
    pair = pair_of("llama", "lora", tmp_path)
    for wrong in ("hello there", {"a": "hi"}, {}):
        with pytest.raises(wb.WorkbenchError, match="wrap one text in a list"):
            contribution(pair, wrong)


def test_the_models_are_left_as_they_were(tmp_path: Path):
    with pair_of("llama", "lora", tmp_path).models() as sides:
        before = sides.tuned(**inputs_of(), use_cache=False).logits
        decompose(sides, one_batch(prompts()))
        assert torch.equal(sides.tuned(**inputs_of(), use_cache=False).logits, before)
        assert not any(m._forward_hooks for m in sides.tuned.modules())


def test_a_result_has_groups_layers_tokens_and_what_it_cannot_see(tmp_path: Path):
    base = write_base("gpt2", tmp_path / "base", vocab_size=600)
    pair = wb.load_pair(base, write_member("gpt2", "full", tmp_path / "full", vocab_size=600))
    groups = {"short": ["the apple is"] * 3 + ["the book"], "long": ["the cup is in Box F"] * 4}
    result = contribution(pair, groups, tokens=1)
    table = result.table
    assert set(table["member"]) == {"full"}
    measures = {"tuco", "preco", "output_co", "base_loss", "length", "auc:tuco", "token_tuco"}
    assert measures <= set(table["metric"])
    assert set(result.metric("layer_ftc")["layer"]) == {0, 1, 2}
    mean = result.metric("mean:tuco").set_index("group")["value"]
    own = result.metric("tuco").groupby("group")["value"].mean()
    np.testing.assert_allclose(mean.sort_index(), own.sort_index())
    for name in ("tuco", "output_co"):
        rows = result.metric(name)
        (auc,) = result.metric(f"auc:{name}").query("group == 'short > long'")["value"]
        assert auc == pytest.approx(roc_auc_score(rows["group"] == "short", rows["value"])), name
    tokens = result.metric("token_tuco")
    first = tokens[tokens["group"] == "long"]
    assert [t.strip() for t in first["token"]][1:] == ["the", "cup", "is", "in", "Box", "F"]
    last = first.sort_values("position")["value"].iloc[-1]
    assert last == pytest.approx(result.metric("tuco").query("group == 'long'")["value"].iloc[0])
    assert {"wte", "wpe", "ln_f"} <= set(result.metric("invisible")["component"])
    assert any("as they are stored" in note for note in result.provenance.notes)


def test_a_member_that_changes_the_blocks_alone_is_drawn_as_made(tmp_path: Path):
    """Nothing invisible is an empty part of the table, which leaves its numbers numbers."""
    result = contribution(pair_of("llama", "lora", tmp_path), ["3 4 5 6"])
    assert not result.has("invisible")
    assert result.table["value"].dtype == float
    for drawing, group in wb.figures.drawings(result, [result]):
        drawing.draw(*group)
