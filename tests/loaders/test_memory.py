"""A PeftModel in memory: the change is that of what `model(...)` computes, or a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import workbench as wb
from tests.conftest import IDS, adapter, saved, tiny


def config(seed: int = 0, **options) -> LoraConfig:
    torch.manual_seed(seed)
    defaults = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "init_lora_weights": False}
    return LoraConfig(**(defaults | options))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tiny("llama"), tmp_path / "base")


def is_what_runs(base: Path, model: torch.nn.Module) -> None:
    """The change, added to the base's matrices, gives the model's own logits."""
    pair = wb.load_pair(base, model)
    with torch.no_grad():
        wanted = model(IDS).logits
        own = wb.Checkpoint.parse(base).load()
        for delta in pair.deltas("all"):
            own.get_parameter(delta.site.name).copy_(delta.tuned)
        torch.testing.assert_close(own(IDS).logits, wanted, atol=1e-5, rtol=0)
    assert any(delta.changed for delta in pair.deltas())


@pytest.mark.parametrize("names", [("en", "en_v2"), ("en_v2", "en"), ("mlp", "other")])
def test_the_active_one_of_two_adapters_is_read(names: tuple[str, str], base: Path):
    first, second = names
    model = get_peft_model(tiny("llama"), config(0), adapter_name=first)
    model.add_adapter(second, config(1))
    for name in names:
        model.set_adapter(name)
        is_what_runs(base, model)


@pytest.mark.parametrize("name", ["default", "en", "mlp"])
def test_an_adapter_that_transformers_itself_loaded_is_read(name: str, base: Path, tmp_path: Path):
    lora = adapter(tiny("llama"), tmp_path / "lora")
    model = tiny("llama")
    model.load_adapter(str(lora), adapter_name=name)
    is_what_runs(base, model.eval())


def both(model: PeftModel) -> None:
    model.add_adapter("second", config(1))
    model.base_model.set_adapter(["default", "second"])


def rescaled(model: PeftModel) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] *= 2


OTHER = {
    "two active": (both, "one adapter that is active"),
    "merged": (lambda m: m.merge_adapter(), r"unmerge_adapter\(\)"),
    "switched off": (lambda m: m.base_model.disable_adapter_layers(), "switched off"),
    "scaled": (rescaled, "scaled by"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_what_else_a_model_may_run_with_is_told(kind: str, base: Path):
    change, says = OTHER[kind]
    model = get_peft_model(tiny("llama"), config())
    change(model)
    with pytest.raises(wb.WorkbenchError, match=says):
        wb.load_pair(base, model)
