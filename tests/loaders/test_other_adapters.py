"""Adapters that mlx-lm and torchtune wrote: the change by hand, and the run of what is merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import workbench as wb
from tests.conftest import HEADS, SMALL, SPECIAL, logits, saved, tiny

RANK, SCALE = 3, 20.0
SHAPES = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (32, 32), "mlp.down_proj": (32, 48)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tiny("llama"), tmp_path / "base")


def factors(seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module -> A (in, r) and B (r, out), of a layer that is not the first."""
    made = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.1.{module}": (
            0.1 * torch.randn(inner, RANK, generator=made),
            0.1 * torch.randn(RANK, out, generator=made),
        )
        for module, (out, inner) in SHAPES.items()
    }


def written(folder: Path, state: dict[str, torch.Tensor], name: str, **config: Any) -> Path:
    folder.mkdir()
    own = {name: tensor.contiguous() for name, tensor in state.items()}
    torch.save(own, folder / name) if name.endswith(".pt") else save_file(own, folder / name)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def mlx(folder: Path, state: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    if state is None:
        state = {
            f"{module}.lora_{part}": factor
            for module, pair in factors().items()
            for part, factor in zip("ab", pair, strict=True)
        }
    config = {
        "fine_tune_type": "lora", "model": "somewhere", "num_layers": 1,
        "lora_parameters": {"rank": RANK, "scale": SCALE, "dropout": 0.0},
    }  # fmt: skip
    return written(folder, state, "adapters.safetensors", **config | changes)


def runs_as_written(pair: wb.CheckpointPair, changes: dict[str, np.ndarray]) -> None:
    """The pair's deltas are these, and its tuned side is the base with them added."""
    assert pair.base.folder is not None
    model: Any = AutoModelForCausalLM.from_pretrained(pair.base.folder).eval()
    for delta in pair.deltas("all"):
        module = delta.site.name.removesuffix(".weight")
        wanted = changes.get(module, np.zeros(tuple(delta.base.shape)))
        np.testing.assert_allclose(delta.change.double(), wanted, atol=1e-6)
        with torch.no_grad():
            model.get_parameter(delta.site.name).add_(torch.from_numpy(wanted).float())
    assert pair.check(run=True).ok
    with pair.models() as sides:
        torch.testing.assert_close(logits(sides.tuned), logits(model), atol=1e-5, rtol=0)


def test_an_adapter_of_mlx_is_scale_times_a_times_b(base: Path, tmp_path: Path):
    pair = wb.load_pair(base, mlx(tmp_path / "a"))
    changes = {
        module: SCALE * (a.double() @ b.double()).numpy().T for module, (a, b) in factors().items()
    }
    assert {delta.factors is not None for delta in pair.deltas() if delta.changed} == {True}
    runs_as_written(pair, changes)


def test_dora_of_mlx_is_rows_of_a_given_length(base: Path, tmp_path: Path):
    state, changes = {}, {}
    weights = dict(tiny("llama").named_parameters())
    for number, (module, (a, b)) in enumerate(factors().items()):
        own = weights[f"{module}.weight"].detach().double().numpy()
        lengths = np.linspace(0.5, 1.5, len(own)) + number
        rows = own + SCALE * (a.double() @ b.double()).numpy().T
        changes[module] = (
            lengths[:, None] * rows / np.linalg.norm(rows, axis=1, keepdims=True) - own
        )
        state |= {f"{module}.lora_a": a, f"{module}.lora_b": b}
        state[f"{module}.m"] = torch.from_numpy(lengths).float()
    runs_as_written(wb.load_pair(base, mlx(tmp_path / "a", state, fine_tune_type="dora")), changes)


def test_an_embedding_of_mlx(base: Path, tmp_path: Path):
    a, b = 0.1 * torch.randn(50, RANK), 0.1 * torch.randn(RANK, 32)
    state = {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}
    pair = wb.load_pair(base, mlx(tmp_path / "a", state))
    runs_as_written(pair, {"model.embed_tokens": SCALE * (a.double() @ b.double()).numpy()})


REFUSED: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor] | None, str]] = {
    "an alpha": ({"lora_parameters": {"rank": 3, "scale": 1.0, "alpha": 16}}, None, "alpha = 16"),
    "no scale": ({"lora_parameters": {"rank": 3}}, None, "a finite scale"),
    "another rank": ({"lora_parameters": {"rank": 4, "scale": 1.0}}, None, "declares rank 4"),
    "no parameters": ({"lora_parameters": None}, None, "lora_parameters with rank and scale"),
    "a full fine-tune": ({"fine_tune_type": "full"}, {"model.norm.weight": torch.ones(32)},
                         "a parameter saved whole"),
    "experts": ({}, {"model.layers.0.mlp.switch_mlp.up_proj.lora_a": torch.ones(2, 3, 32)},
                "a factor of many experts"),
}  # fmt: skip


@pytest.mark.parametrize("which", REFUSED)
def test_what_of_mlx_is_refused(which: str, base: Path, tmp_path: Path):
    changes, state, says = REFUSED[which]
    with pytest.raises(wb.WorkbenchError, match=says):
        wb.load_pair(base, mlx(tmp_path / "a", state, **changes))


def torchtune(folder: Path, name: str = "adapter_0.pt") -> Path:
    state = {}
    for module, (a, b) in factors().items():
        stem = module.removeprefix("model.").replace("self_attn.", "attn.")
        stem = stem.replace("mlp.down_proj", "mlp.w2")
        state |= {f"{stem}.lora_a.weight": a.T, f"{stem}.lora_b.weight": b.T}
    return written(folder, state, name, r=RANK, lora_alpha=6, target_modules=["q_proj"])


def halved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads whose rotary pairs are neighbours, as heads whose pairs are half a head apart,
    one row after the other."""
    made, wide = np.empty_like(rows), len(rows) // heads
    for head in range(heads):
        for pair in range(wide // 2):
            for side in range(2):
                to = head * wide + side * wide // 2 + pair
                made[to] = rows[head * wide + 2 * pair + side]
    return made


@pytest.mark.parametrize("name", ["adapter_0.pt", "adapter_0.safetensors", "adapter_model.pt"])
def test_an_adapter_of_torchtune_has_its_heads_in_the_order_of_transformers(
    name: str, base: Path, tmp_path: Path
):
    changes = {}
    for module, (a, b) in factors().items():
        own = (6 / RANK) * (a.double() @ b.double()).numpy().T
        changes[module] = own if "mlp" in module else halved(own, 4)
    runs_as_written(wb.load_pair(base, torchtune(tmp_path / "a", name)), changes)


def test_that_order_keeps_what_rotary_positions_make_of_two_vectors():
    """The scores of torchtune's pairs of neighbours are those of transformers' halves."""
    from workbench.loaders.adapters.other_tools import _order

    order = _order(
        "layers.0.attn.q_proj", {"model_type": "llama", "num_attention_heads": 2}, Path()
    )
    assert order is not None
    query, key = torch.randn(2, 16, 1, dtype=torch.double, generator=torch.manual_seed(0))
    angles = torch.linspace(0.1, 0.9, 4, dtype=torch.double)

    def turned(vector: torch.Tensor, position: int, halves: bool) -> torch.Tensor:
        both = vector.reshape(2, 2, 4) if halves else vector.reshape(2, 4, 2).transpose(1, 2)
        first, second = both[:, 0], both[:, 1]
        cos, sin = torch.cos(angles * position), torch.sin(angles * position)
        return torch.stack([first * cos - second * sin, first * sin + second * cos], 1)

    def score(q: torch.Tensor, k: torch.Tensor, halves: bool) -> torch.Tensor:
        return (turned(q, 7, halves) * turned(k, 2, halves)).sum((1, 2))

    pairs = score(query[:, 0], key[:, 0], halves=False)
    torch.testing.assert_close(score(order(query)[:, 0], order(key)[:, 0], halves=True), pairs)


def test_rows_of_a_base_whose_order_is_its_own(tmp_path: Path):
    """torchtune runs Qwen2 on halves as transformers does; of others it is not known."""
    options: dict[str, Any] = SMALL | HEADS | SPECIAL | {"num_key_value_heads": 4}
    made = AutoModelForCausalLM.from_config(CONFIG_MAPPING["qwen2"](**options))
    changes = {
        module: (6 / RANK) * (a.double() @ b.double()).numpy().T
        for module, (a, b) in factors().items()
    }
    adapter = torchtune(tmp_path / "a")
    runs_as_written(wb.load_pair(saved(made, tmp_path / "qwen2"), adapter), changes)
    phi = tiny("phi3")
    with pytest.raises(wb.WorkbenchError, match="in its own order"):
        wb.load_pair(saved(phi, tmp_path / "phi3"), adapter)
