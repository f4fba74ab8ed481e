"""What is written is what was edited: transformers and peft run it to the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import workbench as wb
from tests.conftest import adapter, contents, logits, nudged, saved, tiny
from tests.models import zoo
from workbench.edits import Settings, edits, save
from workbench.errors import WorkbenchError
from workbench.loaders.adapters.factors import split
from workbench.models import edit

CLOSE = {"rtol": 0, "atol": 1e-5}


def edited(made: wb.models.Edit) -> torch.Tensor:
    """The logits of the base with an edit, as the analyses run it."""
    model = made.pair.base.load(dtype=torch.float32).eval()
    with made.on(model) as running:
        return logits(running)


def plain(folder: Path) -> torch.Tensor:
    """The logits of a written folder, by transformers or peft alone."""
    if (folder / "adapter_config.json").exists():
        told = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        base = AutoModelForCausalLM.from_pretrained(folder / told, dtype=torch.float32)
        return logits(PeftModel.from_pretrained(base, folder).eval())
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "tied"])
@pytest.mark.parametrize("how", ["alpha", "layers", "movement", "rank"])
def test_whole_weights_run_as_the_edit_does(kind: str, how: str, tmp_path: Path):
    base = saved(tiny(kind), tmp_path / "base")
    pair = wb.load_pair(base, saved(nudged(tiny(kind)), tmp_path / "tuned"))
    made = edits(pair, how)(2 if how == "rank" else 0.5)
    before = contents(tmp_path)
    out = save(made, tmp_path / "out")
    torch.testing.assert_close(plain(out), edited(made), **CLOSE)
    assert not torch.allclose(plain(out), logits(pair.tuned.load()), **CLOSE)
    assert before.items() <= contents(tmp_path).items()
    about = json.loads((out / "edit.json").read_text())
    assert about["form"] == "weights"
    assert about["lost"] == 0  # float32 keeps it


def test_every_expert_is_written_where_it_lies(tmp_path: Path):
    base = saved(zoo.small("mixtral"), tmp_path / "base")
    pair = wb.load_pair(base, saved(nudged(zoo.small("mixtral")), tmp_path / "tuned"))
    made = edit(pair, 0.5)
    torch.testing.assert_close(plain(save(made, tmp_path / "out")), edited(made), **CLOSE)


def test_the_ends_are_the_two_models_bit_for_bit(base: Path, tuned: Path, tmp_path: Path):
    pair = wb.load_pair(base, tuned)
    for strength, side in ((0.0, base), (1.0, tuned)):
        out = save(edits(pair, "alpha")(strength), tmp_path / f"at{strength:g}")
        written, own = (load_file(folder / "model.safetensors") for folder in (out, side))
        assert written.keys() == own.keys()
        assert all(torch.equal(written[name], own[name]) for name in own)


def test_a_lora_stays_a_lora_of_its_own_rank(base: Path, lora: Path, tmp_path: Path):
    pair = wb.load_pair(base, lora)
    made = edits(pair, "alpha")(0.3)
    out = save(made, tmp_path / "out", says={"kind": "alpha", "strength": 0.3})
    torch.testing.assert_close(plain(out), edited(made), **CLOSE)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == pair.tuned.about["rank"]
    about = json.loads((out / "edit.json").read_text())
    assert about["form"] == "adapter"
    assert about["lost"] < 1e-5
    assert "alpha, strength 0.3" in (out / "README.md").read_text()
    again = wb.load_pair(base, out)
    assert again.delta(again.sites()[0]).factors is not None


def test_a_small_change_keeps_its_rank(base: Path, tmp_path: Path):
    """It lies little above what float32 rounds the weights by."""
    folder = adapter(tiny("llama"), tmp_path / "small", r=2, lora_alpha=1e-5)
    pair = wb.load_pair(base, folder)
    assert max(delta.norm / delta.base_norm for delta in pair.deltas() if delta.changed) < 1e-4
    out = save(edits(pair, "alpha")(0.5), tmp_path / "out")
    about = json.loads((out / "edit.json").read_text())
    assert (about["form"], about["rank"]) == ("adapter", 2)
    own = wb.load_pair(base, out)
    for delta in pair.deltas():
        change = own.delta(_site(own, delta.site.name)).change
        torch.testing.assert_close(change, 0.5 * delta.change, rtol=1e-4, atol=1e-12)


def test_intruders_are_reduced_as_peft_reduces_them(base: Path, tmp_path: Path):
    """The same vectors and the same factor, held to the adapter's own rank, as peft does; and with
    all of the change, which has more directions, our own edit."""
    model = tiny("llama")
    folder = adapter(model, tmp_path / "lora", r=2, lora_alpha=40)
    pair = wb.load_pair(base, folder)
    made = edits(pair, "intruders", Settings(k=10, eps=0.5))(0.25)
    edits_of = ((made.tensor(delta.site), delta.tuned) for delta in pair.deltas())
    # There are intruders to reduce.
    assert any(now is not None and not torch.equal(now, was) for now, was in edits_of)
    out = save(made, tmp_path / "out", rank=2)

    theirs: torch.nn.Module = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder
    )
    reduce_intruder_dimension(theirs, top_k=10, threshold_epsilon=0.5, mitigation_lambda=0.25,
                              logging_sink=None)  # fmt: skip
    ours = wb.load_pair(base, out)
    layers = {n: m for n, m in theirs.named_modules() if hasattr(m, "get_delta_weight")}
    for name, layer in layers.items():
        wanted = layer.get_delta_weight("intruder_reduced")
        own = ours.delta(_site(ours, f"{name.removeprefix('base_model.model.')}.weight")).change
        torch.testing.assert_close(own, wanted, rtol=0, atol=1e-5 * float(wanted.norm()))
    torch.testing.assert_close(plain(out), logits(theirs.eval()), **CLOSE)
    whole = save(made, tmp_path / "whole", form="adapter")
    torch.testing.assert_close(plain(whole), edited(made), **CLOSE)
    assert json.loads((whole / "adapter_config.json").read_text())["r"] > 2
    assert len(json.loads((whole / "edit.json").read_text())["models"]) == 1  # of two parts
    assert json.loads((out / "edit.json").read_text())["lost"] > 1e-3


def _site(pair: wb.CheckpointPair, name: str):
    return next(site for site in pair.sites("all") if site.name == name)


def test_the_split_of_a_change_by_hand():
    """diag(4, 1): square roots in each factor; rank 1 loses 1 / sqrt(17) of the norm."""
    factors, lost = split(torch.diag(torch.tensor([4.0, 1.0])))
    torch.testing.assert_close(factors.up.abs(), torch.diag(torch.tensor([2.0, 1.0])))
    torch.testing.assert_close(factors.product, torch.diag(torch.tensor([4.0, 1.0])))
    assert lost == 0
    factors, lost = split(torch.diag(torch.tensor([4.0, 1.0])), 1)
    assert lost == pytest.approx(1 / 17**0.5)
    assert factors.up.shape == (2, 1)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "tied"])
def test_a_lora_is_extracted_of_a_full_fine_tune(kind: str, tmp_path: Path):
    """All directions give the fine-tune itself, norms and biases too, which peft alone runs; a rank
    gives the best approximation of that rank, and says what it lost."""
    base, tuned = tiny(kind), nudged(tiny(kind))
    if base.config.tie_word_embeddings:  # the embedding, which is the head too, stays the base's
        tuned.get_input_embeddings().load_state_dict(base.get_input_embeddings().state_dict())
    pair = wb.load_pair(saved(base, tmp_path / "base"), saved(tuned, tmp_path / "tuned"))
    out = save(edit(pair), tmp_path / "out", form="adapter")
    torch.testing.assert_close(plain(out), logits(pair.tuned.load()), rtol=0, atol=1e-4)
    assert json.loads((out / "edit.json").read_text())["lost"] < 1e-5
    two = save(edit(pair), tmp_path / "two", form="adapter", rank=2)
    own, worst = wb.load_pair(tmp_path / "base", two), 0.0
    assert own.tuned.about["rank"] == 2
    for delta in pair.deltas():
        u, s, v = torch.linalg.svd(delta.change, full_matrices=False)
        found = own.delta(_site(own, delta.site.name))
        torch.testing.assert_close(found.change, (u[:, :2] * s[:2]) @ v[:2], rtol=0, atol=1e-4)
        worst = max(worst, float(s[2:].norm() / s.norm()))
    assert json.loads((two / "edit.json").read_text())["lost"] == pytest.approx(worst, rel=1e-3)


def test_a_rank_alone_asks_for_an_adapter_and_biases_alone_give_none(tmp_path: Path):
    base, tuned = tiny("neox"), tiny("neox")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "mlp" in name and name.endswith(".bias"):
                parameter += 0.1
    folder = saved(base, tmp_path / "base")
    pair = wb.load_pair(folder, saved(tuned, tmp_path / "biases"))
    with pytest.raises(WorkbenchError, match="no matrix of a linear layer"):
        save(edit(pair), tmp_path / "out", form="adapter")
    whole = wb.load_pair(folder, saved(nudged(tiny("neox")), tmp_path / "whole"))
    made = save(edit(whole), tmp_path / "two", rank=2)
    assert json.loads((made / "adapter_config.json").read_text())["r"] == 2


def test_what_no_lora_holds_is_refused(tmp_path: Path):
    for kind, said in (("mixtral", "expert in a stack"), ("tied", "embedding and the head")):
        make = zoo.small if kind == "mixtral" else tiny
        base = saved(make(kind), tmp_path / kind / "base")
        pair = wb.load_pair(base, saved(nudged(make(kind)), tmp_path / kind / "tuned"))
        with pytest.raises(WorkbenchError, match=said):
            save(edit(pair), tmp_path / kind / "out", form="adapter")
        assert not (tmp_path / kind / "out").exists()


def test_what_a_precision_loses_is_told(tmp_path: Path):
    """bfloat16 keeps 8 bits: a change of 1% of entries near 1 loses much of itself, and says so."""
    base = saved(tiny("llama").to(torch.bfloat16), tmp_path / "base")
    pair = wb.load_pair(base, saved(nudged(tiny("llama"), 0.02).to(torch.bfloat16), tmp_path / "t"))
    out = save(edit(pair, 0.5), tmp_path / "out")
    stored = load_file(out / "model.safetensors")
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    lost = json.loads((out / "edit.json").read_text())["lost"]
    worst = 0.0
    for delta in pair.deltas("all"):
        wanted = delta.base.double() + 0.5 * delta.change.double()
        off = (stored[delta.site.name].double() - wanted).norm()
        worst = max(worst, float(off / (0.5 * delta.change.double()).norm()))
    assert lost == pytest.approx(worst, rel=1e-3)
    assert lost > 0.01


def test_what_cannot_be_written_is_refused_before_any_work(base: Path, lora, tuned, tmp_path: Path):
    pair, low = wb.load_pair(base, tuned), wb.load_pair(base, lora)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    refused: tuple[tuple[Any, Path, dict[str, Any], str], ...] = (
        (edit(pair), mine, {}, "does not hold an edited model"),
        (edit(pair), tmp_path / "c", {"form": "gguf"}, 'Expected form "adapter" or "weights"'),
        (edit(low), tmp_path / "d", {"rank": 0}, "rank of at least 1"),
        (edit(wb.load_pair(base, nudged(tiny("llama")))), tmp_path / "e", {}, "in memory"),
    )  # fmt: skip
    for made, out, how, said in refused:
        with pytest.raises(WorkbenchError, match=said):
            save(made, out, **how)
    assert (mine / "thesis.txt").read_text() == "years"
    assert not any((tmp_path / name).exists() for name in "abcde")
