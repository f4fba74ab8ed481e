"""Packed matrices are the numbers they stand for: by transformers where it unpacks in plain torch,
else one number after the other by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GptOssConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import workbench as wb
from tests.conftest import HEADS, SMALL, SPECIAL, adapter, saved, tiny

Pack = Callable[[str, Tensor], dict[str, Tensor]]
MATRIX = "model.layers.1.mlp.down_proj.weight"  # (32, 48)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tiny("llama"), tmp_path / "base")


def packed(base: Path, folder: Path, pack: Pack, **told: Any) -> Path:
    """The base with every matrix of its blocks packed."""
    shutil.copytree(base, folder)
    state: dict[str, Tensor] = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        state |= pack(name, tensor) if "_proj" in name else {name: tensor}
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": told}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def in_float8(blocks: tuple[int, int], end: str = "_scale_inv") -> Pack:
    """Each block by a scale that makes its largest entry 448, the largest of this float8."""

    def pack(name: str, tensor: Tensor) -> dict[str, Tensor]:
        rows, columns = (-(-size // each) for size, each in zip(tensor.shape, blocks, strict=True))
        whole, scales = torch.empty_like(tensor), torch.empty(rows, columns)
        for row in range(rows):
            for column in range(columns):
                at = (slice(row * blocks[0], (row + 1) * blocks[0]),
                      slice(column * blocks[1], (column + 1) * blocks[1]))  # fmt: skip
                scales[row, column] = tensor[at].abs().max() / 448
                whole[at] = tensor[at] / scales[row, column]
        return {name: whole.to(torch.float8_e4m3fn), name + end: scales}

    return pack


def stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def read(folder: Path, name: str = MATRIX) -> Tensor:
    return wb.Checkpoint.parse(folder).weights()[name]


def test_float8_of_blocks_is_what_transformers_makes_of_it(base: Path, tmp_path: Path):
    blocks = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    folder = packed(base, tmp_path / "q", in_float8((16, 16)), **blocks)
    state = stored(folder)
    oracle: Any = Fp8Dequantize(None)
    wanted = oracle._dequantize_one(state[MATRIX], state[f"{MATRIX}_scale_inv"], torch.float32)
    assert torch.equal(read(folder), wanted)
    torch.testing.assert_close(read(folder), read(base), atol=1e-2, rtol=0.07)  # 3 bits


FORMS: dict[str, tuple[tuple[int, int], str, dict[str, Any]]] = {
    "blocks that end early": ((20, 20), "_scale_inv", {"quant_method": "fp8",
                                                       "weight_block_size": [20, 20]}),
    "a scale for a row": ((1, 99), "_scale", {"quant_method": "compressed-tensors",
                                              "format": "float-quantized"}),
    "a scale for all": ((99, 99), "_scale", {"quant_method": "compressed-tensors"}),
    "rows of fbgemm": ((1, 99), "_scale", {"quant_method": "fbgemm_fp8"}),
}  # fmt: skip


@pytest.mark.parametrize("which", FORMS)
def test_float8_is_times_the_scale_of_its_block(which: str, base: Path, tmp_path: Path):
    (tall, wide), end, told = FORMS[which]
    folder = packed(base, tmp_path / "q", in_float8((tall, wide), end), **told)
    state, found = stored(folder), read(folder).double().numpy()
    numbers, scales = state[MATRIX].double().numpy(), state[MATRIX + end].double().numpy()
    for row in range(32):
        for column in range(48):
            wanted = numbers[row, column] * scales[row // tall, column // wide]
            assert found[row, column] == pytest.approx(wanted, rel=1e-6)


def test_bitsandbytes_8_bits_is_by_rows(base: Path, tmp_path: Path):
    def pack(name: str, tensor: Tensor) -> dict[str, Tensor]:
        most = tensor.abs().amax(1)
        module = name.removesuffix(".weight")
        return {
            name: (tensor / most[:, None] * 127).round().to(torch.int8), f"{module}.SCB": most,
            f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8),
        }  # fmt: skip

    folder = packed(base, tmp_path / "q", pack, quant_method="bitsandbytes", load_in_8bit=True)
    state = stored(folder)
    whole = state[MATRIX].double().numpy()
    scale = state["model.layers.1.mlp.down_proj.SCB"].double().numpy()
    wanted = whole * scale[:, None] / 127
    np.testing.assert_allclose(read(folder).double().numpy(), wanted, rtol=1e-6)
    torch.testing.assert_close(read(folder), read(base), atol=1e-3, rtol=0)


# The table of nf4, as a checkpoint carries it: quantiles of a normal distribution.
NF4 = (-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461,
       0.3379, 0.4407, 0.5626, 0.723, 1.0)  # fmt: skip


def in_4_bits(*, nested: bool, block: int = 64) -> Pack:
    table = torch.tensor(NF4)

    def pack(name: str, tensor: Tensor) -> dict[str, Tensor]:
        flat = tensor.flatten()
        blocks = flat.split(block)
        scales = torch.stack([one.abs().max() for one in blocks])
        index = torch.cat([
            (one[:, None] / scale - table).abs().argmin(1)
            for one, scale in zip(blocks, scales, strict=True)
        ]).to(torch.uint8)  # fmt: skip
        state: dict[str, Any] = {
            "quant_type": "nf4", "blocksize": block, "dtype": "bfloat16",
            "shape": list(tensor.shape),
        }  # fmt: skip
        made = {name: (index[::2] << 4 | index[1::2])[:, None], f"{name}.quant_map": table.clone()}
        if nested:
            levels, mean = torch.linspace(-1, 1, 256), scales.mean()
            own = (scales - mean).abs().max().reshape(1)
            of = ((scales - mean)[:, None] / own - levels).abs().argmin(1)
            made |= {f"{name}.absmax": of.to(torch.uint8), f"{name}.nested_absmax": own,
                     f"{name}.nested_quant_map": levels}  # fmt: skip
            state |= {"nested_blocksize": 256, "nested_dtype": "float32",
                      "nested_offset": float(mean)}  # fmt: skip
        else:
            made[f"{name}.absmax"] = scales
        told = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return made | {f"{name}.quant_state.bitsandbytes__nf4": told}

    return pack


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4_bits_is_a_table_times_the_scale_of_a_block(
    nested: bool, base: Path, tmp_path: Path
):
    told = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = packed(base, tmp_path / "q", in_4_bits(nested=nested), **told)
    state, found = stored(folder), read(folder).double().numpy()
    own = json.loads(bytes(state[f"{MATRIX}.quant_state.bitsandbytes__nf4"].tolist()))
    for place in range(32 * 48):
        byte = int(state[MATRIX].flatten()[place // 2])
        number = NF4[byte % 16 if place % 2 else byte // 16]
        scale = float(state[f"{MATRIX}.absmax"][place // 64])
        if nested:
            scale = float(state[f"{MATRIX}.nested_quant_map"][int(scale)])
            scale = scale * float(state[f"{MATRIX}.nested_absmax"][0]) + own["nested_offset"]
        assert found[place // 48, place % 48] == pytest.approx(number * scale, rel=1e-5, abs=1e-9)


def test_mxfp4_of_experts_is_what_transformers_makes_of_it(tmp_path: Path):
    torch.manual_seed(0)
    options: dict[str, Any] = SMALL | HEADS | SPECIAL
    options |= {"intermediate_size": 32, "num_local_experts": 3, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(GptOssConfig(**options, head_dim=8))
    folder = saved(model, tmp_path / "q")
    state: dict[str, Tensor] = {}
    for name, tensor in stored(folder).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            state[name] = tensor
            continue
        experts, inner, out = tensor.shape
        shape = (experts, out, inner // 32)
        state[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        state[f"{name}_scales"] = torch.randint(118, 132, shape, dtype=torch.uint8)
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    weights = wb.Checkpoint.parse(folder).weights()
    seen = 0
    for name in [n for n in state if n.endswith("_blocks")]:
        own = name.removesuffix("_blocks")
        wanted = convert_moe_packed_tensors(
            state[name], state[f"{own}_scales"], dtype=torch.float32
        )
        for expert in range(3):
            stem, _, leaf = own.rpartition(".")
            found = weights[f"{stem}.{expert}.{leaf}.weight"]
            assert torch.equal(found, wanted[expert].T)  # (out, in)
            seen += 1
    assert seen == 2 * 2 * 3


def test_lora_on_a_base_of_4_bits(base: Path, tmp_path: Path):
    """The change is the adapter's own; what needs the base has it unpacked."""
    told = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = packed(base, tmp_path / "q", in_4_bits(nested=True), **told)
    lora = adapter(tiny("llama"), tmp_path / "lora")
    pair, whole = wb.load_pair(folder, lora), wb.load_pair(base, lora)
    report = pair.check()
    assert report.ok
    assert any("quantised: base is quantised (bitsandbytes)" in note for note in report.notes)
    for delta, other in zip(pair.deltas(), whole.deltas(), strict=True):
        assert torch.equal(delta.change, other.change)
        assert torch.equal(delta.base, read(folder, delta.site.name))
    table = wb.spectral.delta_spectrum(pair)
    own, other = (one.metric("sigma") for one in (table, wb.spectral.delta_spectrum(whole)))
    assert own["value"].tolist() == other["value"].tolist()
    relative = table.metric("relative_norm").set_index(["layer", "component"])["value"]
    delta = pair.delta(next(s for s in pair.sites() if s.name == MATRIX))
    ratio = float(delta.change.norm() / read(folder).norm())
    assert relative[1, "mlp.down_proj"] == pytest.approx(ratio, rel=1e-5)
    assert len(wb.spectral.intruders(pair, k=4, nulls=False).table)
    with pytest.raises(wb.WorkbenchError, match=r"quantised \(bitsandbytes\), which cannot be run"):
        pair.tuned.load()


def in_words(method: str) -> Pack:
    """Numbers of 4 bits, eight in each of int32, as each method lays them; here of no value."""

    def pack(name: str, tensor: Tensor) -> dict[str, Tensor]:
        (out, inner), stem = tensor.shape, name.removesuffix("weight")
        groups = torch.ones(1, out)
        if method == "compressed-tensors":
            return {
                f"{stem}weight_packed": torch.ones(out, inner // 8, dtype=torch.int32),
                f"{stem}weight_scale": torch.ones(out, 1),
                f"{stem}weight_shape": torch.tensor([out, inner]),
            }
        shape = (inner // 8, out) if method == "gptq" else (inner, out // 8)
        zeros = torch.ones(1, out // 8, dtype=torch.int32)
        return {
            f"{stem}qweight": torch.ones(shape, dtype=torch.int32),
            f"{stem}qzeros": zeros, f"{stem}scales": groups,
        }  # fmt: skip

    return pack


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_lora_on_a_base_that_is_not_unpacked(method: str, base: Path, tmp_path: Path):
    """What the adapter adds is as on any base; what takes the base's numbers says why not."""
    folder = packed(base, tmp_path / "q", in_words(method), quant_method=method, bits=4)
    lora = adapter(tiny("llama"), tmp_path / "lora", target_modules=["q_proj", "down_proj"])
    pair, whole = wb.load_pair(folder, lora), wb.load_pair(base, lora)
    report, other = pair.check(), whole.check(run=False)
    assert report.ok
    assert any("in a form that cannot be read" in note for note in report.notes)
    assert report.changes is not None
    assert other.changes is not None
    own, theirs = (r.set_index("name")["norm"] for r in (report.changes, other.changes))
    np.testing.assert_allclose(own, theirs[own.index])
    table, wanted = (wb.spectral.delta_spectrum(p) for p in (pair, whole))
    for metric in ("norm", "sigma", "effective_rank"):
        one, another = (
            t.metric(metric).sort_values(["layer", "component"]) for t in (table, wanted)
        )
        np.testing.assert_array_equal(one["value"], another["value"])
    relative = table.metric("relative_norm").dropna(subset=["layer"])
    assert relative[relative["component"].str.contains("_proj")]["value"].isna().all()
    with pytest.raises(wb.WorkbenchError, match=rf"quantised \({method}\)"):
        wb.spectral.intruders(pair, k=4, nulls=False)
    with pytest.raises(wb.WorkbenchError, match=r"which cannot be run here"):
        pair.tuned.load()
    with pytest.raises(wb.WorkbenchError, match=rf"quantised \({method}\).*dequantize\(\)"):
        wb.load_pair(base, folder)


@pytest.mark.parametrize("method", ["hqq", "quanto", "evil"])
def test_a_form_that_is_not_read_is_told(method: str, base: Path, tmp_path: Path):
    folder = packed(base, tmp_path / "q", in_words("gptq"), quant_method=method, bits=4)
    lora = adapter(tiny("llama"), tmp_path / "lora")
    for one, other in ((base, folder), (folder, lora)):
        with pytest.raises(wb.WorkbenchError, match=rf"quantised \({method}\).*dequantize\(\)"):
            wb.load_pair(one, other)


def damaged(state: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    name = f"{MATRIX}.quant_state.bitsandbytes__nf4"
    own = json.loads(bytes(state[name].tolist())) | changes
    return state | {name: torch.tensor(list(json.dumps(own).encode()), dtype=torch.uint8)}


CLAIMS: dict[str, dict[str, Any]] = {
    "a shape of billions": {"shape": [2**31, 2**31]},
    "another shape": {"shape": [48, 33]},
    "no shape": {"shape": None},
    "blocks of nothing": {"blocksize": 0},
    "larger blocks": {"blocksize": 128},
    "a mean of text": {"nested_offset": "x"},
}


@pytest.mark.parametrize("which", CLAIMS)
def test_claims_of_4_bits_that_are_not_stored(which: str, base: Path, tmp_path: Path):
    told = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = packed(base, tmp_path / "q", in_4_bits(nested=True), **told)
    save_file(damaged(stored(folder), **CLAIMS[which]), folder / "model.safetensors")
    with pytest.raises(wb.WorkbenchError, match=r"packed in 4 bits.*download"):
        wb.load_pair(base, folder)


def test_scales_that_fit_no_blocks(base: Path, tmp_path: Path):
    folder = packed(base, tmp_path / "q", in_float8((16, 16)), quant_method="fp8")
    state = stored(folder)
    state[f"{MATRIX}_scale_inv"] = torch.ones(7, 9)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(wb.WorkbenchError, match="divide it into no equal blocks"):
        read(folder)
