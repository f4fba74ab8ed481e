"""Every expert is a matrix of its own, however a checkpoint or a model keeps it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

import workbench as wb
from tests.conftest import HEADS, SMALL, SPECIAL, logits, nudged, saved
from tests.skills.test_localize import PLACES, asked
from workbench.lab import shipped
from workbench.loaders import Checkpoint
from workbench.skills.gradients import Teacher

EXPERTS, WIDE, INNER = 4, 32, 24
Config = t.PreTrainedConfig
ABOUT = SMALL | HEADS | SPECIAL | {
    "intermediate_size": INNER, "num_local_experts": EXPERTS, "num_key_value_heads": 2,
}  # fmt: skip
CONFIGS = {
    "mixtral": lambda: t.MixtralConfig(**ABOUT),
    "qwen2_moe": lambda: t.Qwen2MoeConfig(
        **ABOUT, num_experts=EXPERTS, moe_intermediate_size=INNER,
        shared_expert_intermediate_size=16,
    ),
    "gpt_oss": lambda: t.GptOssConfig(**ABOUT, head_dim=8),
    "llama4": lambda: t.Llama4TextConfig(**ABOUT, head_dim=8, intermediate_size_mlp=INNER),
    "granitemoe": lambda: t.GraniteMoeConfig(**ABOUT),
    "jetmoe": lambda: t.JetMoeConfig(
        **SMALL | SPECIAL | {"intermediate_size": INNER}, kv_channels=8, num_key_value_heads=2,
        num_local_experts=EXPERTS,
    ),
}  # fmt: skip
# What an expert's last matrix is called, and whether it runs as (in, out).
LAST = {
    "mixtral": ("mlp.experts.down_proj", False),
    "qwen2_moe": ("mlp.experts.down_proj", False),
    "gpt_oss": ("mlp.experts.down_proj", True),
    "llama4": ("feed_forward.experts.down_proj", True),
    "granitemoe": ("block_sparse_moe.experts.down_proj", False),
    "jetmoe": ("mlp.experts.output_linear", False),
}
RUNNING = {
    name: f"model.layers.1.{place}" for name, (place, _) in LAST.items() if name != "jetmoe"
} | {"jetmoe": "model.layers.1.mlp.output_linear.weight"}


def made(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = t.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Some are made empty, and some too small to choose another expert.
            parameter.normal_(std=0.3)
    return model


def planted(kind: str) -> tuple[nn.Module, list[Tensor]]:
    """The model with a change of rank one in every expert's last matrix of layer 1, and the
    directions it writes in, where that expert writes nothing before."""
    model, turned, outs = made(kind), LAST[kind][1], []
    with torch.no_grad():
        stack = model.get_parameter(RUNNING[kind])
        for expert in range(EXPERTS):
            own = stack[expert].T if turned else stack[expert]
            outs.append(torch.linalg.svd(own).U[:, INNER])
            own += 9.0 * torch.outer(outs[-1], torch.ones(INNER))
    return model, outs


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_expert_has_the_rank_and_the_direction_that_was_planted(kind: str, tmp_path: Path):
    base = saved(made(kind), tmp_path / "base")
    model, outs = planted(kind)
    pair = wb.load_pair(base, saved(model, tmp_path / "tuned"))
    changed = [site for site in pair.sites() if pair.delta(site).changed]
    assert [(s.layer, s.component, s.expert) for s in changed] == [
        (1, LAST[kind][0], expert) for expert in range(EXPERTS)
    ]
    for site, out in zip(changed, outs, strict=True):
        delta = pair.delta(site)
        assert delta.base.shape == (WIDE, INNER)
        left = torch.linalg.svd(delta.change).U[:, 0]
        assert float((left @ out).abs()) == pytest.approx(1, abs=1e-5)
    spectrum = wb.spectral.delta_spectrum(pair).table
    ranks = spectrum[spectrum["metric"].eq("effective_rank") & spectrum["expert"].notna()]
    # That of an expert which did not change is no rank at all.
    assert ranks["value"].notna().sum() == EXPERTS
    assert set(ranks["value"].dropna().round(3)) == {1}
    table = wb.spectral.intruders(pair, k=4, nulls=False).table
    found = table[table["metric"].eq("intruder") & table["component"].eq(LAST[kind][0])]
    counts = found[found["layer"].eq(1)].groupby("expert")["value"].sum()
    assert counts.tolist() == [1] * EXPERTS


def forms(model: nn.Module, home: Path) -> Mapping[str, object]:
    """One model: a matrix per expert, as it runs, both mixed, and in memory."""
    each = saved(model, home / "each")
    running = {n: p.detach().clone() for n, p in model.named_parameters()}
    stored = load_file(each / "model.safetensors")
    own = dict(revert_weight_conversion(model, {n: p for n, p in running.items() if ".0." in n}))
    half = {n: p for n, p in running.items() if ".0." not in n} | {n: stored[n] for n in own}
    folders: dict[str, object] = {"each": each, "memory": model}
    for name, tensors in (("running", running), ("mixed", half)):
        shutil.copytree(each, home / name)
        tensors = {n: p.contiguous() for n, p in tensors.items()}
        save_file(tensors, home / name / "model.safetensors", metadata={"format": "pt"})
        folders[name] = home / name
    return folders


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "granitemoe"])
def test_one_pair_gives_one_table_in_every_form(kind: str, tmp_path: Path):
    bases = forms(made(kind), tmp_path / "bases")
    tuned = forms(nudged(made(kind)), tmp_path / "tuned")
    wanted = wb.spectral.delta_spectrum(wb.load_pair(bases["each"], tuned["each"])).table
    assert wanted["expert"].notna().any()
    order = [*wanted.columns[1:-1]]
    wanted = wanted.drop(columns="member").sort_values(order, ignore_index=True)
    for ours, theirs in (
        ("running", "running"), ("memory", "memory"), ("mixed", "each"), ("each", "memory"),
        ("running", "mixed"),
    ):  # fmt: skip
        pair = wb.load_pair(bases[ours], tuned[theirs])
        found = wb.spectral.delta_spectrum(pair).table.drop(columns="member")
        pd.testing.assert_frame_equal(found.sort_values(order, ignore_index=True), wanted)


@pytest.mark.parametrize("form", ["each", "running", "mixed"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "granitemoe"])
def test_every_form_runs_as_the_model_it_was_saved_from(kind: str, form: str, tmp_path: Path):
    model = made(kind)
    truth = logits(model)
    folder = forms(model, tmp_path)[form]
    try:
        found = logits(Checkpoint.parse(folder).load(dtype=torch.float32))
    except wb.WorkbenchError:
        assert form == "mixed"  # where transformers itself does not read them
        return
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_edit_reaches_every_expert(kind: str, tmp_path: Path):
    """The whole change makes the tuned model; one expert's leaves the others the base's."""
    base, model = saved(made(kind), tmp_path / "base"), nudged(made(kind))
    pair = wb.load_pair(base, saved(model, tmp_path / "tuned"))
    running = Checkpoint.parse(base).load(dtype=torch.float32)
    plain = logits(running)
    with wb.models.edit(pair).on(running) as edited:
        torch.testing.assert_close(logits(edited), logits(model), atol=1e-5, rtol=0)
    one = wb.models.edit(pair, mask=lambda site: site.expert == 1)
    stack, theirs = RUNNING[kind], dict(model.named_parameters())
    with one.on(running) as edited:
        own = dict(edited.named_parameters())[stack]
        assert torch.equal(own[1], theirs[stack][1])
        assert not torch.equal(own[0], theirs[stack][0])
    assert torch.equal(logits(running), plain)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_a_gradient_is_every_experts_own(kind: str, tmp_path: Path):
    """Against autograd on the tensor that holds them all."""
    words = shipped.tokenizer()
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    config.vocab_size = len(words)
    model = t.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    base = saved(model, tmp_path / "base")
    words.save_pretrained(base)
    pair = wb.load_pair(base, saved(nudged(model), tmp_path / "tuned"))
    running = pair.base.load(dtype=torch.float32)
    teacher = Teacher(pair, running, asked(PLACES, "apple", 6), batch_size=4)
    _, found = teacher.gradients(range(6))
    with torch.enable_grad():
        loss = teacher.nats(teacher.rows[:6]) / 6
        stack = running.get_parameter(RUNNING[kind])
        (truth,) = torch.autograd.grad(loss, [stack.requires_grad_()])
    place, turned = LAST[kind]
    for expert in range(EXPERTS):
        own = truth[expert].T if turned else truth[expert]
        name = f"model.layers.1.{place.removesuffix('.down_proj')}.{expert}.down_proj.weight"
        torch.testing.assert_close(found[name], own, atol=1e-6, rtol=1e-4)


def test_an_expert_that_is_offloaded_is_not_edited_in_silence(tmp_path: Path):
    base = saved(made("mixtral"), tmp_path / "base")
    pair = wb.load_pair(base, saved(nudged(made("mixtral")), tmp_path / "tuned"))
    running = pair.base.load({"": "disk"}, torch.float32)
    one = wb.models.edit(pair, mask=lambda site: site.expert == 1)
    with pytest.raises(wb.WorkbenchError, match="which is offloaded"), one.on(running):
        pass
