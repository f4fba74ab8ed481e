"""Configs whose entries mean something: each names a file, code, a kernel, a size or a setting that
a library would follow. What a file may hold by its format, and must not lead to."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

Leads = Mapping[str, Sequence[Any]]

PLACES = (
    "second.safetensors", "model.safetensors", "../other/model.safetensors", "/etc/passwd", "..",
    "", "~", ".", "a\x00b", "evil/repo", "evil/repo@main", "evil/repo--evil.C", "evil.py",
    "http://127.0.0.1:9/x", "hf://evil/x", "file:///etc/passwd", "C:\\x", "second.bin",
)  # fmt: skip
CODE = (
    {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForCausalLM": "evil.M"},
    {"AutoTokenizer": ["evil.T", "evil.T"]}, ["evil.T", "evil.T"], ["evil.T", None], "evil.C", {},
    {"AutoConfig": "evil/repo--evil.C"}, {"AutoModelForCausalLM": None}, {"AutoConfig": ["evil.C"]},
)  # fmt: skip
METHODS = (
    "gptq", "awq", "bitsandbytes", "bitsandbytes_4bit", "fp8", "mxfp4", "torchao", "hqq", "quanto",
    "compressed-tensors", "gguf", "eetq", "aqlm", "higgs", "spqr", "vptq", "bitnet", "auto-round",
    "fbgemm_fp8", "fouroversix", "metal", "evil",
)  # fmt: skip
PACKED = (
    *({"quant_method": name} for name in METHODS), {"load_in_4bit": True}, {"load_in_8bit": True},
    {}, [], "gptq", 3, {"quant_method": ["gptq"]}, {"quant_method": "gptq", "dequantize": True},
)  # fmt: skip
SIZES = (0, 1, -1, 2, 3, 31, 33, 64, 10_000, 2**31, 10**9, 2**63, 10**30, 1e308, 0.5, float("nan"))
WRONG = (None, True, "x", "3", [], [1], {}, {"a": 1}, [["a"]], [None], {"0": [0]}, 7)
KINDS = (
    "gpt2", "bert", "t5", "vit", "dpt", "detr", "timm_wrapper", "timm_backbone", "rag", "mamba",
    "encoder-decoder", "speech-encoder-decoder", "musicgen", "llava", "qwen2", "qwen2_moe",
    "mixtral", "deepseek_v3", "gemma3", "gemma3_text", "mistral", "maskformer", "pegasus", "evil",
    "clip", "idefics3", "llama4", "mllama", "xlnet", "reformer", "jamba", "bart", "whisper",
)  # fmt: skip
PART = (
    {"model_type": "llama", "quantization_config": {"quant_method": "awq"}},
    {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}}, {"model_type": "llama"},
    {"model_type": "timm_backbone", "backbone": "resnet50", "use_pretrained_backbone": True},
    {"transformers_weights": "second.safetensors"}, {"_attn_implementation": "evil/kernel"},
    {"hidden_size": 2**31}, [{"auto_map": {"AutoConfig": "evil.C"}}], *WRONG,
)  # fmt: skip
KERNELS = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "paged|sdpa",
    "evil/kernel",
    "evil/kernel@main:f",
    "kernels-community/flash-attn",
    "evil",
    *WRONG,
)
TYPES = (
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "float8_e4m3fn",
    "int8",
    "complex64",
    "auto",
    "torch.float16",
    "os.system",
    "",
    {"": "float16"},
    {"text_config": "float16"},
    *WRONG,
)
CLASSES = (
    "T", "evil.T", "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend",
    "PythonBackend", "LlamaTokenizer", "LlamaTokenizerFast", "BertTokenizer", "T5Tokenizer",
    "GPT2Tokenizer", "MistralCommonBackend", "RagTokenizer", "CodeLlamaTokenizer", "AutoTokenizer",
    "BertJapaneseTokenizer", "WhisperTokenizer", "TapasTokenizer", "os.system", "", *WRONG,
)  # fmt: skip
ROTARY = (
    {"type": "linear", "factor": 1e308}, {"rope_type": "dynamic", "factor": -1}, {"rope_type": "x"},
    {"rope_type": "yarn"}, {"rope_type": "longrope", "short_factor": [1], "long_factor": "x"},
    {"rope_type": "llama3", "factor": 0, "low_freq_factor": 0, "high_freq_factor": 0,
     "original_max_position_embeddings": 0},
    {"rope_theta": 0, "rope_type": "default"}, {"full_attention": {"rope_type": "default"}}, *WRONG,
)  # fmt: skip

CONFIG: Leads = {
    "auto_map": (*CODE, *WRONG),
    "transformers_weights": (*PLACES, *WRONG),
    "configuration_files": (["config.4.0.0.json"], ["../other/config.json"], *WRONG),
    "quantization_config": (*PACKED, *WRONG),
    "compression_config": PACKED,
    "fusion_config": ({"patch_embeddings": True}, {"evil": {}}, *WRONG),
    "text_config": PART,
    "vision_config": PART,
    "backbone_config": PART,
    "decoder": PART,
    "backbone": ("resnet50", *PLACES),
    "use_pretrained_backbone": WRONG,
    "use_timm_backbone": WRONG,
    "timm_backbone": PLACES,
    "model_type": (*KINDS, *WRONG),
    "architectures": (["M"], ["LlamaForSequenceClassification"], ["os.system"], *WRONG),
    "torch_dtype": TYPES,
    "dtype": TYPES,
    "attn_implementation": KERNELS,
    "_attn_implementation": KERNELS,
    "_experts_implementation": KERNELS,
    "rope_scaling": ROTARY,
    "rope_parameters": ROTARY,
    "layer_types": (["full_attention", "sliding_attention"], ["linear_attention"] * 2, *WRONG),
    "tokenizer_class": CLASSES,
    "_name_or_path": PLACES,
    "name_or_path": PLACES,
    "_commit_hash": PLACES,
    "base_model_tp_plan": ({"layers.*": "colwise"}, *WRONG),
    "distributed_config": ({"tp_size": 2}, *WRONG),
    "per_layer_config": ({"0": {"hidden_size": 2**31}}, [{}], *WRONG),
    "pruned_heads": ({"0": [0, 1, 2, 3]}, {"0": [10**9]}, *WRONG),
    "hidden_act": ("gelu", "evil", "os.system", *WRONG),
    "is_decoder": WRONG,
    "is_encoder_decoder": WRONG,
    "tie_word_embeddings": WRONG,
    "id2label": WRONG,
    "problem_type": ("regression", *WRONG),
    "output_attentions": WRONG,
    "return_dict": WRONG,
    "use_cache": WRONG,
    "num_beams": (100_000, *WRONG),
    "suppress_tokens": WRONG,
    **dict.fromkeys(
        ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size",
         "intermediate_size", "vocab_size", "max_position_embeddings", "head_dim", "num_labels",
         "pad_token_id", "bos_token_id", "eos_token_id", "num_experts", "num_local_experts",
         "sliding_window", "chunk_size_feed_forward", "pretraining_tp", "rms_norm_eps"),
        (*SIZES, *WRONG),
    ),
}  # fmt: skip

SETTINGS: Leads = {
    "num_beams": (100_000, *SIZES), "num_return_sequences": SIZES, "max_length": SIZES,
    "min_new_tokens": SIZES, "temperature": SIZES, "top_k": SIZES, "top_p": SIZES,
    "sequence_bias": ([[[7], 100.0]], {"a": 1}, *WRONG), "suppress_tokens": ([5, 6], *WRONG),
    "watermarking_config": ({"greenlist_ratio": 0.25, "bias": 1e9}, {"evil": 1}, *WRONG),
    "stop_strings": (["a"], "a" * 100, *WRONG), "dola_layers": ("high", [10**9], *WRONG),
    "cache_implementation": ("static", "quantized", "evil", *WRONG), "forced_bos_token_id": SIZES,
    "bad_words_ids": ([[3]], [[10**9]], *WRONG), "guidance_scale": SIZES, "penalty_alpha": SIZES,
    "eos_token_id": ([2, 7], [[2]], *SIZES, *WRONG), "pad_token_id": (*SIZES, *WRONG),
    "custom_generate": PLACES, "assistant_early_exit": SIZES, "compile_config": ({"a": 1}, *WRONG),
    "transformers_version": PLACES, "_from_model_config": WRONG, "do_sample": WRONG,
}  # fmt: skip

WORDS: Leads = {
    "auto_map": (*CODE, *WRONG), "tokenizer_class": CLASSES,
    "added_tokens_decoder": ({"999999999": {"content": "z"}}, {"-1": {"content": "z"}},
                             {"x": {"content": "z"}}, {"5": {"evil": 1}}, {"5": "z"}, *WRONG),
    "extra_special_tokens": ({"image_token": "<i>"}, ["<a>", {"content": "<b>"}], [3], *WRONG),
    "additional_special_tokens": (["<a>"], [3], *WRONG), "model_max_length": (*SIZES, *WRONG),
    "chat_template": ("{{ 9 ** 9 }}", {"default": "x", "tool_use": "y"}, "{% for", *WRONG),
    "padding_side": ("left", "up", *WRONG), "truncation_side": ("up", *WRONG),
    "bos_token": ("zz", {"content": "<s>"}, {"__type": "AddedToken", "content": "q"}, *WRONG),
    "pad_token": ("zz", *WRONG), "unk_token": ("zz", *WRONG), "fix_mistral_regex": WRONG,
    "fast_tokenizer_files": (["tokenizer.4.0.0.json"], PLACES[:3], *WRONG),
    "processor_class": ("P", *WRONG), "legacy": WRONG, "add_bos_token": WRONG, "backend": WRONG,
    "post_processor": WRONG, "split_special_tokens": WRONG, "tokenizer_truncation": WRONG,
    "sp_model_kwargs": ({"model_file": "/etc/passwd"}, *WRONG), "trust_remote_code": WRONG,
    **dict.fromkeys(
        ("tokenizer_file", "vocab_file", "merges_file", "spm_file", "gguf_file", "name_or_path",
         "vocab", "merges", "tokenizer_object", "cache_dir", "subfolder", "revision", "token",
         "special_tokens_map_file", "init_inputs", "local_files_only"),
        (*PLACES, *WRONG),
    ),
}  # fmt: skip

ADAPTER: Leads = {
    "base_model_name_or_path": (*PLACES, *WRONG), "revision": PLACES, "subfolder": PLACES,
    "auto_mapping": ({"base_model_class": "M", "parent_library": "evil"}, *WRONG),
    "megatron_config": ({"a": 1}, *WRONG), "megatron_core": ("evil", "os", *WRONG),
    "peft_type": ("LORA", "lora", "ADALORA", "XLORA", "VERA", "PROMPT_TUNING", "evil", *WRONG),
    "task_type": ("CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS",
                  "FEATURE_EXTRACTION", "evil", *WRONG),
    "init_lora_weights": ("pissa", "pissa_niter_4", "olora", "loftq", "eva", "corda", "gaussian",
                          "orthogonal", "evil", *WRONG),
    "loftq_config": ({"loftq_bits": 4}, *WRONG), "eva_config": ({"rho": 2}, *WRONG),
    "corda_config": ({"cache_file": "/etc/passwd"}, *WRONG), "arrow_config": ({"a": 1}, *WRONG),
    "runtime_config": ({"ephemeral_gpu_offload": True}, *WRONG), "lora_bias": WRONG,
    "target_modules": ("(a+)+$", "all-linear", ["q_proj"], ["evil"], *WRONG),
    "target_parameters": (["mlp.experts.down_proj"], *WRONG), "exclude_modules": ("(a+)+$", *WRONG),
    "layers_to_transform": ([0], 10**9, *WRONG), "layers_pattern": ("(a+)+$", *WRONG),
    "layer_replication": ([[0, 2], [0, 10**9]], *WRONG), "trainable_token_indices": ([1], *WRONG),
    "modules_to_save": (["lm_head"], ["model"], ["evil"], [""], [".*"], *WRONG),
    "bias": ("none", "all", "lora_only", "evil", *WRONG), "use_dora": WRONG, "use_rslora": WRONG,
    "rank_pattern": ({"q_proj": 10**9}, {"(": 3}, {"": 3}, *WRONG), "use_qalora": WRONG,
    "alpha_pattern": ({"q_proj": 1e308}, {".*": 0}, {"": 1}, *WRONG), "fan_in_fan_out": WRONG,
    "r": (*SIZES, *WRONG), "lora_alpha": (*SIZES, *WRONG), "lora_dropout": (*SIZES, *WRONG),
    "alora_invocation_tokens": ([1], *WRONG), "ensure_weight_tying": WRONG,
}  # fmt: skip

INDEX: Leads = {
    "weight_map": ({}, {"a": "b"}, *({"model.norm.weight": place} for place in PLACES), *WRONG),
    "metadata": ({"dtype": "float16"}, {"total_size": -1}, *WRONG),
    "transformers_weights": PLACES,
}

CODE_FILE = b"open('MARKER', 'w').close()\nclass C: pass\nM = T = C\n"


@st.composite
def rewritten(draw: st.DrawFn, content: Mapping[str, Any], leads: Leads) -> bytes:
    """`content` with one to four of its entries such as `leads` has them."""
    found = dict(content)
    for key in draw(st.lists(st.sampled_from(list(leads)), min_size=1, max_size=4, unique=True)):
        found[key] = copy.deepcopy(draw(st.sampled_from(list(leads[key]))))
    return json.dumps(found).encode()
