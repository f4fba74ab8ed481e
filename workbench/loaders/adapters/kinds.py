"""What is known of each of peft's types of adapter: a record each.

LoRA and its options are read by formula (`lora`). Of every other kind peft's own layer makes the
tuned matrix of the base's one (`shell`), so that a kind needs no more than a record here. Types are
those of peft 0.21; a record says where its paper is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workbench.errors import WorkbenchError

# (peft's layer, name of the adapter in it) -> (up, down), whose product is the change, (out, in).
LowRank = Callable[[Any, str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Kind:
    """One of peft's types.

    name: as its authors write it. prefix: how the tensors begin that it adds to a module. leaves:
    the parameters of a module that it changes. needs_base: its own numbers are made of the base's
    matrix when it is put on. low_rank: its factors, for a change that does not depend on the base's
    matrix. ordered: the order of the model's modules decides what each is given. unformed: why no
    tuned matrix can be formed although it runs; "" where one can. virtual: it stands in front of a
    text, as tokens that are none of the vocabulary. in_layers: as their keys and values.
    """

    name: str
    prefix: str
    leaves: tuple[str, ...] = ("weight",)
    needs_base: bool = False
    low_rank: LowRank | None = None
    ordered: bool = False
    unformed: str = ""
    virtual: bool = False
    in_layers: bool = False


def _adalora(layer: Any, own: str) -> tuple[Tensor, Tensor]:
    """P and Lambda Q, with the scale that peft divides by the rank before any was pruned."""
    scale = layer.scaling[own] / (layer.ranknum[own] + 1e-5)
    return layer.lora_B[own] * scale, layer.lora_E[own] * layer.lora_A[own]


def _vera(layer: Any, own: str) -> tuple[Tensor, Tensor]:
    """The shared matrices, of which a module has the first rows and columns, scaled."""
    up = layer.vera_B[own][: layer.out_features] * layer.vera_lambda_b[own][:, None]
    return up, layer.vera_lambda_d[own][:, None] * layer.vera_A[own][:, : layer.in_features]


def _pvera(layer: Any, own: str) -> tuple[Tensor, Tensor]:
    """As VeRA, of the first half alone: the second is the spread that only training draws from."""
    up = layer.pvera_B[own][: layer.out_features] * layer.pvera_lambda_b[own][:, None]
    half = len(layer.pvera_lambda_d[own]) // 2
    down = layer.pvera_A[own][:half, : layer.in_features]
    return up, layer.pvera_lambda_d[own][:half, None] * down


def _shared(layer: Any, own: str) -> tuple[Tensor, Tensor]:
    """Factors put together of vectors, or of numbers, that all modules share."""
    down, up = layer._get_lora_matrices(own)
    return up, down


def _tinylora(layer: Any, own: str) -> tuple[Tensor, Tensor]:
    return layer.tinylora_B[own] @ layer._compute_R(own), layer.tinylora_A[own]


def _delora(layer: Any, own: str) -> tuple[Tensor, Tensor]:
    """Factors of unit length, times lambda / r, times the norms of the base's columns."""
    down, up = layer.delora_A[own], layer.delora_B[own]
    lengths = [side.norm(dim=axis).clamp(min=1e-4) for side, axis in ((down, 1), (up, 0))]
    strength = layer.delora_lambda[own] / layer.r[own] / (lengths[0] * lengths[1])
    return up * strength, down * layer.delora_w_norm[own]


def _prompt(name: str, *, in_layers: bool = False) -> Kind:
    """One that puts virtual tokens in front of a text."""
    return Kind(name, "", (), unformed=PROMPT, virtual=True, in_layers=in_layers)


PROMPT = "it puts virtual tokens in front of a text and changes no weight"
KINDS: Mapping[str, Kind] = {
    "LORA": Kind("LoRA", "lora_"),
    "ADALORA": Kind("AdaLoRA", "lora_", low_rank=_adalora),  # arXiv 2303.10512
    "ADAMSS": Kind("AdaMSS", "adamss_", leaves=("weight", "bias"), needs_base=True),
    "BEFT": Kind("BEFT", "beft_", leaves=("bias",)),  # arXiv 2509.15974
    "BOFT": Kind("BOFT", "boft_"),  # arXiv 2311.06243
    "C3A": Kind("C3A", "c3a_"),  # arXiv 2407.19342
    "CARTRIDGE": _prompt("cartridges", in_layers=True),  # arXiv 2506.06266
    "CPT": _prompt("CPT"),  # arXiv 2410.17222
    "DEFT": Kind("DEFT", "deft_"),
    "DELORA": Kind("DeLoRA", "delora_", low_rank=_delora),  # arXiv 2503.18225
    "FOURIERFT": Kind("FourierFT", "fourierft_"),  # arXiv 2405.03003
    "FROD": Kind("FRoD", "frod_", unformed="it decomposes the matrices of all layers together"),
    "GLORA": Kind("GLoRA", "glora_", leaves=("weight", "bias")),  # arXiv 2306.07967
    "GRALORA": Kind("GraLoRA", "gralora_"),  # arXiv 2505.20355
    "HIRA": Kind("HiRA", "hira_"),
    "HRA": Kind("HRA", "hra_"),  # arXiv 2405.17484
    "IA3": Kind("IA3", "ia3_", leaves=("weight", "bias")),  # arXiv 2205.05638
    "LILY": Kind(
        "Lily", "lily_", unformed="its change depends on the input of a layer"
    ),  # arXiv 2407.09946
    "LN_TUNING": Kind("LN tuning", "ln_tuning_"),  # arXiv 2312.11420
    "LOHA": Kind("LoHa", "hada_"),  # arXiv 2108.06098
    "LOKR": Kind("LoKr", "lokr_"),  # arXiv 2309.14859
    "MISS": Kind("MiSS", "miss_"),  # arXiv 2409.15371
    "OFT": Kind("OFT", "oft_"),  # arXiv 2306.07280
    "OSF": Kind("OSF", "osf_", needs_base=True),  # arXiv 2504.07097
    "P_TUNING": _prompt("p-tuning"),  # arXiv 2103.10385
    "PEANUT": Kind("PEANuT", "peanut_"),  # arXiv 2410.01870
    "PREFIX_TUNING": _prompt("prefix tuning", in_layers=True),  # arXiv 2101.00190
    "PROMPT_TUNING": _prompt("prompt tuning"),  # arXiv 2104.08691
    "PSOFT": Kind("PSOFT", "psoft_", needs_base=True),
    "PVERA": Kind("PVeRA", "pvera_lambda_", low_rank=_pvera),  # arXiv 2512.07703
    "RANDLORA": Kind("RandLoRA", "randlora_"),  # arXiv 2502.00987
    "ROAD": Kind("RoAd", "road_", leaves=("weight", "bias")),  # arXiv 2409.00119
    "SHIRA": Kind("SHiRA", "shira_"),  # arXiv 2406.13175
    "SUPERTUNING": Kind("SuperTuning", "supertuning_", needs_base=True),  # arXiv 2607.09287
    "TINYLORA": Kind("TinyLoRA", "tinylora_", low_rank=_tinylora, ordered=True),  # arXiv 2602.04118
    "TRAINABLE_TOKENS": Kind("trainable tokens", "trainable_tokens_"),
    "UNILORA": Kind("UniLoRA", "unilora_", low_rank=_shared, ordered=True),  # arXiv 2506.00799
    "VBLORA": Kind("VB-LoRA", "vblora_", low_rank=_shared),  # arXiv 2405.15179
    "VERA": Kind("VeRA", "vera_lambda_", low_rank=_vera),  # arXiv 2310.11454
    "WAVEFT": Kind("WaveFT", "waveft_"),
}

MERGE = "Merge it into its base with peft and give the merged folder."
# Type -> (its name, why it is not read, what to do instead).
REFUSED: Mapping[str, tuple[str, str, str]] = {
    "MULTITASK_PROMPT_TUNING": (
        "multitask prompt tuning",
        "it puts other virtual tokens in front of a text for every task, and changes no weight",
        "",
    ),
    "ADAPTION_PROMPT": ("LLaMA-Adapter", "it adds attention to trained vectors", ""),
    "XLORA": (
        "X-LoRA",
        "it mixes adapters differently for every token",
        "Give one of them instead.",
    ),
    "POLY": ("Polytropon", "it mixes adapters by task", "Train a LoRA."),
    "SHADOW": ("ShadowPEFT", "it runs a second model next to the first", ""),
}


def kind_of(config: Mapping[str, Any], where: str) -> str:
    """The type of an adapter that can be read, a key of KINDS.

    config: adapter_config.json. where: the adapter, for the sentence. Raises WorkbenchError for any
    other type, with what to do instead.
    """
    kind = str(config.get("peft_type", "")).upper()
    if kind in KINDS:
        return kind
    if kind in REFUSED:
        name, why, instead = REFUSED[kind]
        instead = instead or (
            "Run it with peft itself; to compare it here, give a fine-tuned model or an adapter of "
            "the weights."
        )
        raise WorkbenchError(f"Adapter {where} is one of {name} ({kind}): {why}. {instead}")
    raise WorkbenchError(
        f"Adapter {where} is of type {kind or 'unknown'}; {', '.join(sorted(KINDS))} can be read. "
        f"{MERGE}"
    )
