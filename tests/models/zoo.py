"""A tiny random decoder of every family that transformers knows.

Most families' configs take the same few names; what one needs besides stands in MORE.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from workbench.loaders.auto import auto_class

# Names of sizes, in the words of all families; a config is given those it knows.
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_ctx": 64, "n_inner": 48,
    "d_model": 32, "n_heads": 4, "n_layers": 3, "num_layers": 3, "num_heads": 4, "ffn_dim": 48,
    "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "expand_ratio": 2, "sliding_window": 4, "rotary_dim": 4,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4,
    "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2,
    "top_k": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8,
    "mamba_d_ssm": 64, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8,
    "state_size": 8, "time_step_rank": 4, "chunk_size": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 64,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 600, "laurel_rank": 4,
    "lru_width": 32, "attention_window_size": 8, "is_decoder": True,
}  # fmt: skip
ATTENTION, LINEAR = "full_attention", "linear_attention"
MORE: dict[str, dict[str, Any]] = {
    "afmoe": {"layer_types": ["sliding_attention", ATTENTION, ATTENTION]},
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "dbrx": {"max_seq_len": 64,
             "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
             "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2}},
    "cohere_compass_text": {"layer_types": [ATTENTION] * 3},
    "deepseek_v2": {"first_k_dense_replace": 1},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "dots1": {"first_k_dense_replace": 1, "max_window_layers": 3,
              "layer_types": [ATTENTION] * 3},
    "gemma3": {"sliding_window": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 3,
                     "layer_types": [ATTENTION] * 3},
    "gemma4": {"num_kv_shared_layers": 0},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "glm4_moe": {"first_k_dense_replace": 1},
    "glm4_moe_lite": {"first_k_dense_replace": 1},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4},
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0,
                "embedding_multiplier": 3.0},
    "granitemoe": {"residual_multiplier": 0.5},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"],
                         "shared_intermediate_size": 16, "residual_multiplier": 0.5},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1, "use_mamba_kernels": False,
              "mamba_dt_rank": 4},
    "lfm2": {"layer_types": ["conv", ATTENTION, "conv"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", ATTENTION, "conv"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "nemotron_h": {"hybrid_override_pattern": "M*-"},
    "olmo_hybrid": {"layer_types": [LINEAR, ATTENTION, ATTENTION]},
    "qwen3_5": {"layer_types": [LINEAR, ATTENTION, ATTENTION]},
    "qwen3_5_moe": {"layer_types": [LINEAR, ATTENTION, ATTENTION]},
    "qwen3_5_moe_text": {"layer_types": [LINEAR, ATTENTION, ATTENTION]},
    "qwen3_5_text": {"layer_types": [LINEAR, ATTENTION, ATTENTION]},
    "qwen3_next": {"layer_types": [LINEAR, ATTENTION, ATTENTION], "decoder_sparse_step": 1},
    "reformer": {"is_decoder": True},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
MORE |= dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"), MROPE)
# Sizes of a vision tower, in the words of all families.
SEEN: dict[str, Any] = {
    "hidden_size": 32, "embed_dim": 32, "out_hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "depth": 1, "num_attention_heads": 4, "num_heads": 4, "head_dim": 8,
    "image_size": 28, "patch_size": 14, "projection_dim": 32, "num_position_embeddings": 4,
    "deepstack_visual_indexes": [0], "fullatt_block_indexes": [0],
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "gemma3": {"mm_tokens_per_image": 4}, "internvl": {"image_seq_length": 4},
}  # fmt: skip
# Families that read images too and are no causal language models by name, of those most used.
SEEING = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "mistral3", "llava", "paligemma",
    "smolvlm", "idefics3", "internvl", "glm4v",
)  # fmt: skip
FAMILIES: tuple[str, ...] = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *SEEING)


def config(family: str, **more: Any) -> Any:
    """The config of a tiny model. Raises whatever the family's config does where sizes clash."""
    kind = CONFIG_MAPPING[family]
    whole = kind()
    text = whole.get_text_config()
    known = set(text.to_dict()) | set(getattr(type(text), "attribute_map", {}))
    own = {name: value for name, value in SIZES.items() if name in known}
    if "kv_lora_rank" in known:  # latent attention has a key and a value for every head
        own |= {"num_key_value_heads": 4}
    own |= MORE.get(family, {}) | more
    if text is whole:
        return kind(**own)
    (inner,) = [name for name, value in vars(whole).items() if value is text]
    beside = dict(VISION.get(family, {}))
    if family in (*SEEING, *VISION):
        known = whole.vision_config.to_dict()
        seen = {name: value for name, value in SEEN.items() if name in known}
        if isinstance(known.get("image_size"), list | tuple):
            seen |= {"image_size": [28, 28], "patch_size": [14, 14]}
        beside["vision_config"] = seen
    kept = {inner: own | {"model_type": text.model_type}} if family in SEEING else {inner: own}
    return kind(**kept, **beside)


def small(family: str, **more: Any) -> Any:
    """A random model, eager attention, eval mode, at most some hundred thousand numbers."""
    made = config(family, **more)
    known = made.to_dict()
    with torch.device("meta"):
        size = sum(p.numel() for p in auto_class(known).from_config(made).parameters())
    if size > 3e6:
        raise ValueError(f"{family} has {size:,} parameters at this size")
    torch.manual_seed(0)
    model = auto_class(known).from_config(made, attn_implementation="eager").eval()
    # Norms of ones and biases of zeros would hide what reads them.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
