"""Every kind of adapter that peft trains: its change is what peft merges, its run what peft runs.

ADAPTER_KINDS is the table: kind -> what of the workbench applies ("weights", "run"), or the words
by which it is refused. The oracle is peft's own merge_and_unload of the whole model, and its model
before that; nothing here asks the workbench what is right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.peft_types import PeftType
from safetensors.torch import load_file, save_file
from torch import nn

import workbench as wb
from tests.conftest import HEADS, SMALL, SPECIAL, logits, saved, tiny
from tests.loaders.test_experts import EXPERTS
from tests.loaders.test_experts import made as mixture
from tests.models.conftest import decoder, write_base
from tests.skills.conftest import PLACES, asked
from workbench.lab import shipped

WEIGHTS, RUN = "weights", "run"
BOTH = (WEIGHTS, RUN)
PROMPTS = "changes no weight"
ADAPTER_KINDS: dict[str, tuple[str, ...] | str] = {
    "LORA": BOTH, "ADALORA": BOTH, "ADAMSS": BOTH, "BEFT": BOTH, "BOFT": BOTH, "C3A": BOTH,
    "DEFT": BOTH, "DELORA": BOTH, "FOURIERFT": BOTH, "GLORA": BOTH, "GRALORA": BOTH, "HIRA": BOTH,
    "HRA": BOTH, "IA3": BOTH, "LN_TUNING": BOTH, "LOHA": BOTH, "LOKR": BOTH, "MISS": BOTH,
    "OFT": BOTH, "OSF": BOTH, "PEANUT": BOTH, "PSOFT": BOTH, "PVERA": BOTH, "RANDLORA": BOTH,
    "ROAD": BOTH, "SHIRA": BOTH, "SUPERTUNING": BOTH, "TRAINABLE_TOKENS": BOTH, "VBLORA": BOTH,
    "TINYLORA": BOTH, "UNILORA": BOTH, "VERA": BOTH, "WAVEFT": BOTH,
    "FROD": (RUN,), "LILY": (RUN,),
    "PROMPT_TUNING": (RUN,), "PREFIX_TUNING": (RUN,), "P_TUNING": (RUN,), "CPT": (RUN,),
    "CARTRIDGE": (RUN,), "MULTITASK_PROMPT_TUNING": PROMPTS,
    "ADAPTION_PROMPT": "adds attention to trained vectors", "XLORA": "differently for every token",
    "POLY": "mixes adapters by task", "SHADOW": "a second model",
}  # fmt: skip

# What a config needs beside the modules, so that what it makes is small and changes something.
OPTIONS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 3, "init_lora_weights": False},
    "ADALORA": {"init_r": 4, "target_r": 3, "total_step": 10},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "DEFT": {"r": 3},
    "DELORA": {"r": 2},
    "FOURIERFT": {"n_frequency": 20, "scaling": 1.0},
    "GLORA": {"r": 3},
    "GRALORA": {"r": 4},
    "HIRA": {"r": 3},
    "HRA": {"r": 2},
    "LOHA": {"r": 2, "alpha": 3},
    "LOKR": {"r": 2, "alpha": 3},
    "MISS": {"r": 2},
    "OFT": {"r": 0, "oft_block_size": 8},
    "OSF": {"effective_rank": 4},
    "PEANUT": {"r": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {"sparsity": 0.1},
    "TRAINABLE_TOKENS": {"token_indices": [3, 7]},
    "UNILORA": {"r": 2, "theta_d_length": 64},
    "VBLORA": {"r": 2, "num_vectors": 12, "vector_length": 8, "topk": 2},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 20},
}
MODULES = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
NORMS = {"llama": ["input_layernorm"], "gpt2": ["ln_1"]}
EMBEDDING = {"llama": ["embed_tokens"], "gpt2": ["wte"]}
# The kinds that peft 0.21 puts on Conv1D.
CONV1D = ("LORA", "ADALORA", "VERA", "PVERA", "IA3", "FOURIERFT", "RANDLORA", "LN_TUNING",
          "GRALORA", "WAVEFT", "VBLORA", "HIRA", "DEFT", "TRAINABLE_TOKENS", "TINYLORA",
          "UNILORA")  # fmt: skip
# Of which the change is factors, so that no spectrum needs a dense matrix.
FACTORED = ("LORA", "ADALORA", "DELORA", "PVERA", "TINYLORA", "UNILORA", "VBLORA", "VERA")
# Those of virtual tokens change no module at all: test_prompt_adapters.
VIRTUAL = ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "CARTRIDGE")
APPLY = {
    kind: told for kind, told in ADAPTER_KINDS.items()
    if isinstance(told, tuple) and kind not in VIRTUAL
}  # fmt: skip
# float32 sums of 48 terms, of entries up to about 5.
CLOSE: dict[str, Any] = {"atol": 2e-6, "rtol": 1e-6}


def base_model(architecture: str) -> Any:
    """As `tiny`, with biases, where some kinds change them; moved, since they begin at zero."""
    if architecture == "gpt2":
        model = tiny("gpt2")
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config: dict[str, Any] = {**SMALL, **HEADS, **SPECIAL}
        model = LlamaForCausalLM(LlamaConfig(attention_bias=True, mlp_bias=True, **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def config_of(kind: str, architecture: str, **options: Any) -> Any:
    own = OPTIONS.get(kind, {}) | options
    named = {"LN_TUNING": NORMS, "TRAINABLE_TOKENS": EMBEDDING}.get(kind, MODULES)[architecture]
    own.setdefault("target_modules", named)
    if kind == "IA3":
        own.setdefault("feedforward_modules", named[-1:])
    made: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    return made(task_type="CAUSAL_LM", **own)


def trained(kind: str, model: nn.Module, config: Any, *, by: float = 0.1) -> Any:
    """peft's model with every number that training would move moved at random."""
    torch.manual_seed(3)
    made = get_peft_model(model, config)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {name: saved(base_model(name), root / name) for name in MODULES}


def adapter_of(kind: str, architecture: str, folder: Path, **options: Any) -> Path:
    config = config_of(kind, architecture, **options)
    trained(kind, base_model(architecture), config).save_pretrained(folder)
    return folder


def peft_alone(architecture: str, adapter: Path) -> Any:
    return PeftModel.from_pretrained(base_model(architecture), str(adapter)).eval()


CASES = [("llama", kind) for kind in APPLY] + [("gpt2", kind) for kind in CONV1D]


@pytest.mark.parametrize(("architecture", "kind"), CASES)
def test_a_kind_is_what_peft_merges_and_what_peft_runs(
    architecture: str, kind: str, folders: dict[str, Path], tmp_path: Path
):
    adapter = adapter_of(kind, architecture, tmp_path / "a")
    pair = wb.load_pair(folders[architecture], adapter)
    alone, untouched = peft_alone(architecture, adapter), base_model(architecture)
    before = {name: one.detach().clone() for name, one in untouched.named_parameters()}
    running = logits(alone)
    assert float((running - logits(untouched)).abs().max()) > 1e-4  # the adapter does something
    if WEIGHTS in APPLY[kind]:
        merged = dict(alone.merge_and_unload().named_parameters())
        for delta in pair.deltas("all"):
            name = delta.site.name
            conv = architecture == "gpt2" and merged[name].ndim > 1 and ".h." in name
            wanted = merged[name].detach().double() - before[name].double()
            wanted = wanted.T if conv else wanted
            torch.testing.assert_close(delta.change.double(), wanted, **CLOSE)
            assert delta.changed == bool(wanted.any())
            named = any(module in name for module in MODULES[architecture])
            if name.endswith("weight") and named:
                assert (delta.factors is not None) == (kind in FACTORED)
    with pair.models() as sides:
        torch.testing.assert_close(logits(sides.tuned), running, atol=1e-6, rtol=0)
        torch.testing.assert_close(logits(sides.base), logits(untouched), atol=1e-6, rtol=0)


# Kinds whose first numbers are no zero, and what makes one of them.
ZEROED = ("C3A", "FOURIERFT", "UNILORA", "VBLORA")
# Two reflections by one vector, which floats do not undo: within half a unit in the last place.
ROUNDED = {"HRA": 2e-8}


@pytest.mark.parametrize("kind", [kind for kind, told in APPLY.items() if WEIGHTS in told])
def test_an_adapter_of_no_effect_is_the_exact_null(
    kind: str, folders: dict[str, Path], tmp_path: Path
):
    started = {"init_lora_weights": True} if kind == "LORA" else {}
    made = trained(kind, base_model("llama"), config_of(kind, "llama", **started), by=0.0)
    if kind in ZEROED:
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.zero_()
    made.save_pretrained(tmp_path / "a")
    for delta in wb.load_pair(folders["llama"], tmp_path / "a").deltas("all"):
        assert float(delta.change.abs().max()) <= ROUNDED.get(kind, 0.0)
        assert kind in ROUNDED or not delta.changed


def test_every_type_of_peft_stands_in_the_table():
    assert set(ADAPTER_KINDS) == {kind.value for kind in PeftType}


@pytest.mark.parametrize("kind", [k for k, told in ADAPTER_KINDS.items() if isinstance(told, str)])
def test_what_is_refused_says_why(kind: str, folders: dict[str, Path], lora: Path):
    says = ADAPTER_KINDS[kind]
    assert isinstance(says, str)
    reconfigured(lora, peft_type=kind)
    with pytest.raises(wb.WorkbenchError, match=f"{kind}.*{says}"):
        wb.load_pair(folders["llama"], lora)


@pytest.mark.parametrize("kind", [kind for kind, told in APPLY.items() if told == (RUN,)])
def test_what_only_runs_says_that_its_weights_cannot_be_formed(
    kind: str, folders: dict[str, Path], tmp_path: Path
):
    pair = wb.load_pair(folders["llama"], adapter_of(kind, "llama", tmp_path / "a"))
    report = pair.check()
    assert report.ok
    assert report.changes is None
    assert any("Analyses of the weights cannot run" in note for note in pair.limits().notes)
    with pytest.raises(wb.WorkbenchError, match="cannot be computed"):
        wb.spectral.delta_spectrum(pair)


# Kinds some of whose modules have other sizes and strengths, and what is saved whole beside.
PATTERNS: dict[str, tuple[str, dict[str, Any]]] = {
    "ranks and alphas of LoHa": ("LOHA", {"rank_pattern": {"q_proj": 3, "down_proj": 4},
                                          "alpha_pattern": {"v_proj": 9.0}}),
    "ranks and alphas of LoKr": ("LOKR", {"rank_pattern": {"q_proj": 3},
                                          "alpha_pattern": {"q_proj": 9.0}}),
    "lambdas of DeLoRA": ("DELORA", {"rank_pattern": {"q_proj": 3},
                                     "lambda_pattern": {"v_proj": 40}}),
    "frequencies": ("FOURIERFT", {"n_frequency_pattern": {"q_proj": 9}}),
    "frequencies of wavelets": ("WAVEFT", {"n_frequency_pattern": {"q_proj": 9}}),
    "blocks of C3A": ("C3A", {"block_size_pattern": {"q_proj": 4}}),
    "ranks of HiRA": ("HIRA", {"rank_pattern": {"q_proj": 5}}),
    "ranks of OSF": ("OSF", {"rank_pattern": {"q_proj": 6}}),
    "a head beside VeRA": ("VERA", {"modules_to_save": ["lm_head"]}),
    "a head beside norms": ("LN_TUNING", {"modules_to_save": ["lm_head"]}),
    "biases beside OFT": ("OFT", {"bias": "all"}),
    "a mini form of MiSS": ("MISS", {"r": 4, "mini_r": 4, "init_weights": "mini"}),
    "a form of RoAd": ("ROAD", {"variant": "road_4"}),
    "OFT by blocks of another count": ("OFT", {"r": 4, "oft_block_size": 0, "coft": True}),
    "BOFT of two factors": ("BOFT", {"boft_n_butterfly_factor": 2}),
}  # fmt: skip


@pytest.mark.parametrize("which", PATTERNS)
def test_options_of_a_kind_are_what_peft_merges(
    which: str, folders: dict[str, Path], tmp_path: Path
):
    kind, options = PATTERNS[which]
    adapter = adapter_of(kind, "llama", tmp_path / "a", **options)
    alone = peft_alone("llama", adapter)
    running, whole = logits(alone), alone.merge_and_unload().named_parameters()
    # Of LN tuning peft leaves what else was saved in its wrapper.
    merged = {name.replace(".modules_to_save.default.", "."): one for name, one in whole}
    pair = wb.load_pair(folders["llama"], adapter)
    for delta in pair.deltas("all"):
        torch.testing.assert_close(delta.tuned.float(), merged[delta.site.name].detach(), **CLOSE)
    with pair.models() as sides:
        torch.testing.assert_close(logits(sides.tuned), running, atol=1e-6, rtol=0)
        untouched = logits(base_model("llama"))
        torch.testing.assert_close(logits(sides.base), untouched, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "end"),
    [("HIRA", "embed_tokens"), ("OFT", "embed_tokens"), ("VERA", "lm_head"), ("LOHA", "lm_head")],
)
def test_an_embedding_and_a_head_are_changed_too(
    kind: str, end: str, folders: dict[str, Path], tmp_path: Path
):
    adapter = adapter_of(kind, "llama", tmp_path / "a", target_modules=["q_proj", end])
    merged = dict(peft_alone("llama", adapter).merge_and_unload().named_parameters())
    pair = wb.load_pair(folders["llama"], adapter)
    for delta in pair.deltas("all"):
        torch.testing.assert_close(delta.tuned.float(), merged[delta.site.name].detach(), **CLOSE)
    assert any(end in d.site.name and d.changed for d in pair.deltas("all"))


@pytest.mark.parametrize("kind", ["VERA", "PVERA", "RANDLORA", "TINYLORA"])
def test_what_is_drawn_anew_by_a_seed_is_what_peft_draws(
    kind: str, folders: dict[str, Path], tmp_path: Path
):
    """Projections that were not saved: of sizes, and in an order, that all modules decide."""
    adapter = adapter_of(kind, "llama", tmp_path / "a", save_projection=False)
    merged = dict(peft_alone("llama", adapter).merge_and_unload().named_parameters())
    changed = 0
    for delta in wb.load_pair(folders["llama"], adapter).deltas("all"):
        changed += delta.changed
        torch.testing.assert_close(delta.tuned.float(), merged[delta.site.name].detach(), **CLOSE)
    assert changed == 6


def reconfigured(folder: Path, **changes: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


# What a run of the model multiplies a row of the input by is seen in one matrix by hand.
def test_ia3_scales_outputs_and_of_feed_forward_layers_inputs(
    folders: dict[str, Path], tmp_path: Path
):
    adapter = adapter_of("IA3", "llama", tmp_path / "a")
    stored = load_file(adapter / "adapter_model.safetensors")
    base = dict(base_model("llama").named_parameters())
    for delta in wb.load_pair(folders["llama"], adapter).deltas("all"):
        name = delta.site.name
        own = stored.get(f"base_model.model.{name.rpartition('.')[0]}.ia3_l")
        scale: Any = 1.0 if own is None else own.double().numpy()
        feeds = "down_proj" in name
        if own is not None:
            scale = scale.reshape(1, -1) if feeds else scale.reshape(-1, 1)
        whole = base[name].detach().double().numpy()
        if own is not None and name.endswith("bias"):
            scale = 1.0 if feeds else scale[:, 0]
        np.testing.assert_allclose(delta.tuned.double().numpy(), whole * scale, atol=1e-7)


def test_a_pruned_adalora_keeps_the_strength_it_was_trained_with(
    folders: dict[str, Path], tmp_path: Path
):
    """W0 + alpha / r_init P Lambda Q, of the directions that were kept, by hand."""
    made = trained("ADALORA", base_model("llama"), config_of("ADALORA", "llama"))
    keep = [True, False, True, True]
    layers = [n.removesuffix(".lora_E.default") for n, _ in made.named_parameters() if "_E" in n]
    made.peft_config["default"].rank_pattern = {
        f"{name.removeprefix('base_model.model.')}.lora_E": keep for name in layers
    }
    made.save_pretrained(tmp_path / "a")
    state = {n: p.detach().double() for n, p in made.named_parameters()}
    changes = {d.site.name: d for d in wb.load_pair(folders["llama"], tmp_path / "a").deltas()}
    for name in layers:
        p, q, e = (state[f"{name}.lora_{part}.default"] for part in "BAE")
        alpha = made.peft_config["default"].lora_alpha
        wanted = p[:, keep] @ (e[keep] * q[keep]) * alpha / (4 + 1e-5)
        found = changes[f"{name.removeprefix('base_model.model.')}.weight"]
        assert found.factors is not None
        assert found.factors.up.shape[1] == 3
        torch.testing.assert_close(found.change.double(), wanted, atol=1e-7, rtol=1e-5)


LORA_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "a bias on lora_B": ("llama", {"lora_bias": True}),
    "tokens": ("llama", {"trainable_token_indices": [3, 7, 40]}),
    "tokens by name": ("llama", {"trainable_token_indices": {"embed_tokens": [3], "lm_head": [9]}}),
    "tokens of a tied head": ("tied", {"trainable_token_indices": [3, 7]}),
    "tokens of gpt2": ("gpt2", {"trainable_token_indices": [3, 7], "target_modules": ["c_attn"]}),
}


@pytest.mark.parametrize("which", LORA_OPTIONS)
def test_options_of_lora_are_what_peft_merges(which: str, tmp_path: Path):
    architecture, options = LORA_OPTIONS[which]
    model = (lambda: tiny("tied")) if architecture == "tied" else (lambda: base_model(architecture))
    own = {"r": 3, "init_lora_weights": False, "target_modules": ["q_proj", "down_proj"]}
    config = LoraConfig(task_type="CAUSAL_LM", **(own | options))
    base = saved(model(), tmp_path / "base")
    trained("LORA", model(), config).save_pretrained(tmp_path / "a")
    alone = PeftModel.from_pretrained(model(), str(tmp_path / "a")).eval()
    running, before = logits(alone), dict(model().named_parameters())
    pair = wb.load_pair(base, tmp_path / "a")
    assert pair.check().ok
    merged = dict(alone.merge_and_unload().named_parameters())
    for delta in pair.deltas("all"):
        name = delta.site.name
        wanted = merged[name].detach().double() - before[name].detach().double()
        conv = architecture == "gpt2" and ".h." in name and wanted.ndim > 1
        wanted = wanted.T if conv else wanted
        torch.testing.assert_close(delta.change.double(), wanted, **CLOSE)
    with pair.models() as sides:
        torch.testing.assert_close(logits(sides.tuned), running, atol=1e-6, rtol=0)
        torch.testing.assert_close(logits(sides.base), logits(model().eval()), atol=1e-6, rtol=0)


def test_a_bias_where_the_base_has_none_is_told(tmp_path: Path):
    base = saved(tiny("llama"), tmp_path / "base")
    for kind, options in (("BEFT", {}), ("LORA", {"lora_bias": True})):
        config = config_of(kind, "llama", **options)
        trained(kind, tiny("llama"), config).save_pretrained(tmp_path / kind)
        pair = wb.load_pair(base, tmp_path / kind)
        assert any("a bias that the base does not have" in note for note in pair.limits().notes)
        report = pair.check(run=False)
        assert report.ok
        assert not report.table["remedy"].str.contains("exact null").any()
        alone = PeftModel.from_pretrained(tiny("llama"), str(tmp_path / kind)).eval()
        torch.testing.assert_close(logits(pair.tuned.load()), logits(alone), atol=1e-6, rtol=0)


STACKS = {
    "mixtral": "mlp.experts", "qwen2_moe": "mlp.experts", "gpt_oss": "mlp.experts",
    "llama4": "feed_forward.experts",
}  # fmt: skip


@pytest.mark.parametrize("which", ["both", "down"])
@pytest.mark.parametrize("kind", STACKS)
def test_lora_of_a_stack_of_experts_is_each_experts_own(kind: str, which: str, tmp_path: Path):
    """Against the whole weights that peft merges, read as a full fine-tune."""
    leaves = ["gate_up_proj", "down_proj"] if which == "both" else ["down_proj"]
    ranks = {"down_proj": 3} if which == "both" else {}
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj"], init_lora_weights=False,
        target_parameters=[f"{STACKS[kind]}.{leaf}" for leaf in leaves], rank_pattern=ranks,
    )  # fmt: skip
    base = saved(mixture(kind), tmp_path / "base")
    made = trained("LORA", mixture(kind), config, by=0.0)
    made.save_pretrained(tmp_path / "a")
    running, pair = logits(made), wb.load_pair(base, tmp_path / "a")
    torch.testing.assert_close(logits(pair.tuned.load()), running, atol=1e-6, rtol=0)
    full = wb.load_pair(base, saved(made.merge_and_unload(), tmp_path / "merged"))
    experts = 0
    for delta in pair.deltas("all"):
        wanted = full.delta(delta.site).change
        torch.testing.assert_close(delta.change, wanted, atol=2e-6, rtol=1e-6)
        experts += delta.site.expert is not None and delta.factors is not None
        if delta.site.expert is not None and delta.factors is not None:
            down = "down_proj" in delta.site.component
            assert delta.factors.up.shape[1] == (3 if down and ranks else 2)
    kinds = 1 if which == "down" else (2 if kind in ("gpt_oss", "llama4") else 3)
    assert experts == 2 * EXPERTS * kinds


@pytest.mark.parametrize("kind", ["VERA", "IA3", "OFT", "VBLORA", "LN_TUNING", "RANDLORA"])
@pytest.mark.parametrize("name", ["default", "mlp"])
def test_a_model_in_memory_is_read_as_it_was_saved(
    kind: str, name: str, folders: dict[str, Path], tmp_path: Path
):
    config = config_of(kind, "llama")
    torch.manual_seed(3)
    made = get_peft_model(base_model("llama"), config, adapter_name=name)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    found = list(wb.load_pair(folders["llama"], made.eval()).deltas("all"))
    merged = dict(made.merge_and_unload().named_parameters())
    assert {delta.site.name for delta in found} == set(merged)
    assert any(delta.changed for delta in found)
    for delta in found:
        torch.testing.assert_close(delta.tuned.float(), merged[delta.site.name].detach(), **CLOSE)


def test_a_prompt_in_memory_is_told_for_what_it_is(folders: dict[str, Path]):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(wb.WorkbenchError, match=r"prompt tuning.*changes no weight"):
        wb.load_pair(folders["llama"], get_peft_model(base_model("llama"), config))


def test_plain_torch_files_and_half_precision_are_read(folders: dict[str, Path], tmp_path: Path):
    adapter = adapter_of("SHIRA", "llama", tmp_path / "a")  # which has indices beside its numbers
    wanted = {d.site.name: d.change for d in wb.load_pair(folders["llama"], adapter).deltas()}
    state = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(state, adapter / "adapter_model.bin")
    for delta in wb.load_pair(folders["llama"], adapter).deltas():
        assert torch.equal(delta.change, wanted[delta.site.name])
    halved = {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}
    torch.save(halved, adapter / "adapter_model.bin")
    pair = wb.load_pair(folders["llama"], adapter)
    for delta in pair.deltas():
        torch.testing.assert_close(delta.change, wanted[delta.site.name], atol=1e-2, rtol=1e-2)
    assert torch.isfinite(logits(pair.tuned.load())).all()


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a size of a billion": ("VERA", {"r": 10**9}, "more than the"),
    "blocks of a billion": ("OFT", {"oft_block_size": 10**9}, "more than the"),
    "a size that is not stored": ("HRA", {"r": 3}, "does not fit"),
    "an object for a number": ("LOHA", {"alpha": {"evil": {}}}, "not a plain value"),
    "tokens that are none": ("TRAINABLE_TOKENS", {"token_indices": [3]}, "other weights"),
    "a token of another base": ("TRAINABLE_TOKENS", {"token_indices": [3, 99]}, "another base"),
    "a pattern that is none": ("WAVEFT", {"n_frequency_pattern": 10**9}, "not a valid pattern"),
    "a form that peft has not": ("ROAD", {"variant": "road_9"}, "does not describe RoAd"),
    "a word for a number": ("PEANUT", {"depth": "deep"}, "does not describe PEANuT"),
    "replicated layers": ("LORA", {"layer_replication": [[0, 2], [1, 2]]}, "replicated"),
    "a draw at each run": ("PVERA", {"sample_at_inference": True}, "draws a new random change"),
}


@pytest.mark.parametrize("which", WRONG)
def test_configs_of_other_weights_end_in_a_sentence(
    which: str, folders: dict[str, Path], tmp_path: Path
):
    kind, changes, says = WRONG[which]
    adapter = reconfigured(adapter_of(kind, "llama", tmp_path / "a"), **changes)
    with pytest.raises(wb.WorkbenchError, match=says):
        list(wb.load_pair(folders["llama"], adapter).deltas("all"))
    with pytest.raises(wb.WorkbenchError):
        wb.Checkpoint.parse(f"{folders['llama']}+{adapter}").load()


def test_norms_of_a_wider_base_are_told(folders: dict[str, Path], tmp_path: Path):
    adapter = adapter_of("LN_TUNING", "llama", tmp_path / "a")
    state = load_file(adapter / "adapter_model.safetensors")
    save_file({n: torch.ones(64) for n in state}, adapter / "adapter_model.safetensors")
    with pytest.raises(wb.WorkbenchError, match=r"\(64,\) but the base has \(32,\)"):
        list(wb.load_pair(folders["llama"], adapter).deltas("all"))


def test_a_lost_tensor_is_told_and_not_drawn_at_random(folders: dict[str, Path], tmp_path: Path):
    adapter = adapter_of("LOHA", "llama", tmp_path / "a")
    state = load_file(adapter / "adapter_model.safetensors")
    del state["base_model.model.model.layers.0.self_attn.q_proj.hada_w1_b"]
    save_file(state, adapter / "adapter_model.safetensors")
    with pytest.raises(wb.WorkbenchError, match="hada_w1_b, although other modules have it"):
        list(wb.load_pair(folders["llama"], adapter).deltas())


@pytest.mark.parametrize("kind", ["VERA", "IA3", "OFT"])
def test_the_public_calls_give_what_they_give_of_the_merged_weights(kind: str, tmp_path: Path):
    words = {"vocab_size": len(shipped.tokenizer())}
    base = write_base("llama", tmp_path / "base", **words)
    made = trained(kind, decoder("llama", **words), config_of(kind, "llama"))
    made.save_pretrained(tmp_path / "a")
    whole = made.merge_and_unload()
    pair, full = (wb.load_pair(base, m) for m in (tmp_path / "a", saved(whole, tmp_path / "full")))
    report, other = pair.check(run=True), full.check(run=False)
    assert report.ok
    assert report.table.set_index("item").loc["runs", "status"] == "ok"
    assert report.changes is not None
    assert other.changes is not None
    np.testing.assert_allclose(report.changes["norm"], other.changes["norm"], atol=1e-5)
    task = asked(PLACES, "apple", 12)
    calls: dict[str, Any] = {
        "norm": wb.spectral.delta_spectrum,
        "intruder": lambda p: wb.spectral.intruders(p, k=4, nulls=False),
        "tuco": lambda p: wb.tuco.contribution(p, ["3 4 5 6", "7 8"]),
        "score": lambda p: wb.skills.localize(p, task, sparsity=0.1, epochs=1, random=1),
    }
    for metric, call in calls.items():
        one, other = (call(p).metric(metric) for p in (pair, full))
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(one["value"], other["value"], atol=1e-4)
