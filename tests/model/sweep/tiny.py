"""A tiny random model of every architecture, from its configuration class alone.

Sizes are made small by name, one table for all; layers are as few as show each kind once (windowed
and full, dense and of experts, attention and recurrent). What an architecture needs besides stands
in ``OWN``. Windows are of 8 tokens, so that short sequences reach beyond them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from srft.model.weight_files import reader_of

WINDOW = 8
CONTEXT = 256
WIDTH = 32

_BY_SIZE: dict[int, tuple[str, ...]] = {
    WIDTH: (
        *("hidden_size", "d_model", "n_embd", "attention_hidden_size", "word_embed_proj_dim"),
        *("embedding_size", "embedding_dim", "emb_dim", "dim_model_base", "lru_width", "hidden_dim"),
        *("input_embedding_size", "output_embedding_size", "index_head_dim_", "mamba_d_ssm"),
        *("backbone_hidden_size", "router_hidden_size", "projection_dim", "output_proj_dims"),
        *("vocab_hidden_size", "pronunciation_embed_dim", "shape_embed_dim", "dim", "embed_dim"),
    ),
    48: (
        *("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff"),
        *("dim_ff", "ffn_hidden_size", "intermediate_size_mlp", "dense_intermediate_size", "d_inner"),
        *("feed_forward_size", "shared_intermediate_size", "vision_intermediate_size"),
    ),
    16: (
        *("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"),
        *("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size", "q_lora_rank"),
        *("kv_lora_rank", "o_lora_rank", "hidden_size_per_layer_input", "laurel_rank"),
        *("prompt_mid_dim", "mamba_chunk_size", "chunk_size", "hc_lowrank", "ple_embed_dim"),
        *("attention_head_dim", "prompt_length", "num_chroma", "num_mel_bins"),
    ),
    8: (
        *("head_dim", "global_head_dim", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"),
        *("swa_head_dim", "swa_v_head_dim", "linear_key_head_dim", "linear_value_head_dim"),
        *("linear_head_dim", "dim_head", "d_head", "kv_channels", "attention_head_size"),
        *("mamba_d_head", "mamba_head_dim", "d_rel", "gated_norm_rank", "adapter_rank"),
        *("index_head_dim", "mamba_dt_rank", "time_step_rank", "patch_size_", "rotary_dim"),
        *("sliding_window", "window_size", "attention_window_size", "local_attention"),
        *("sliding_window_size", "attention_chunk_size", "rel_extent", "keep_window_size"),
        *("floor_scale", "block_size", "local_attn_chunk_length", "lsh_attn_chunk_length"),
        *("block_multiple_of", "head_size", "lightning_head_dim", "num_buckets", "sparse_window"),
    ),
    4: (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
        *("encoder_attention_heads", "attention_heads", "num_encoder_attention_heads"),
        *("num_decoder_attention_heads", "swa_num_attention_heads", "linear_num_value_heads"),
        *("linear_num_heads", "index_n_heads", "num_experts", "n_routed_experts"),
        *("num_local_experts", "moe_num_experts", "mamba_d_state", "state_size", "ssm_state_size"),
        *("index_topk_", "mamba_n_heads", "zero_expert_num", "num_query_groups_", "num_key_heads"),
        *("encoder_layers_", "num_expert_group_", "conv_kernel_size", "index_block_size"),
    ),
    2: (
        *("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads"),
        *("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"),
        *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers"),
        *("encoder_layers", "num_encoder_layers", "num_decoder_layers", "global_num_key_value_heads"),
        *("sliding_window_pattern", "global_attn_every_n_layers", "no_rope_layer_interval"),
        *("n_group", "num_expert_group", "hc_mult", "H_cycles", "index_topk_blocks"),
        *("mamba_n_groups", "n_groups", "altup_num_inputs", "moe_layer_interval", "num_blocks"),
        *("attn_layer_period", "expert_layer_period", "layer_group_size", "_sliding_window_pattern"),
        *("num_layers_per_stack", "depth", "num_codebooks", "n_mamba_heads", "mamba_expand"),
        *("interleave_moe_layer_step", "num_global_layers", "decoder_sparse_step"),
    ),
    1: (
        *("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "topk_group"),
        *("attn_layer_offset", "expert_layer_offset", "num_kv_shared_layers", "max_window_layers"),
        *("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "moe_layer_end_index"),
        *("mamba_ngroups", "num_mem_blocks", "prefix_dense_sliding_window_pattern", "o_groups"),
        *("rescale_every_", "num_nextn_predict_layers_", "first_k_dense"),
    ),
    CONTEXT: (
        *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
        *("model_max_length", "max_target_positions", "original_max_position_embeddings_"),
    ),
}  # fmt: skip
SMALL = {name: size for size, names in _BY_SIZE.items() for name in names}
_VOCABULARIES = (
    "vocab_size",
    "vocab_size_per_layer_input",
    "decoder_vocab_size",
    "unpadded_vocab_size",
)
# Without randomness in what is compared; dropout is a matter of its own.
_OFF = ("dropout", "jitter", "pdrop", "layerdrop")

_PER_LAYER = ("layer_types", "mlp_layer_types", "block_types", "layers_block_type", "indexer_types")

# What else an architecture needs, or shows only so.
_MIXED = ["sliding_attention", "full_attention"]
_MAMBA = ["linear_attention", "full_attention"]
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
        "global_config": {"hidden_size": 64, "head_dim": 16},
    },
    "cohere_compass_text": {
        "layer_types": _MIXED,
        "rope_parameters": {
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
            },
            "full_attention": None,
        },
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 2},
    "dory": {
        "layer_types": 2 * _MIXED,
        "num_hidden_layers": 4,
        "n_input_layers": 1,
        "n_recurrent_layers": 2,
        "n_output_layers": 1,
    },
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "use_sliding_window": True,
    },
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32, "feature_size": 16},
    },
    "dots3_note_text": {
        "per_layer_config": {
            1: {
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "kv_lora_rank": 8,
                "qk_nope_head_dim": 8,
                "head_dim": 16,
            }
        }
    },
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "emu3": {"vocabulary_map": {"<|extra_200|>": 3, "<image>": 4}},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 4,
        }
    },
    "gemma4_unified_assistant": {"text_config": {"num_kv_shared_layers": 0}},
    "mistral4": {"head_dim": 16},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [1],
        "ngram_vocab_size_base": 50,
        "split_ngram_parts": 1,
        "heads_per_ngram": 2,
    },
    "reformer": {
        "axial_pos_embds_dim": (16, 16),
        "axial_pos_shape": (16, 16),
        "attn_layers": ["local", "lsh"],
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 3,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "gemma3n_text": {
        "layer_types": 2 * _MIXED,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": 48,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {"layer_types": 2 * _MIXED, "num_hidden_layers": 4, "num_kv_shared_layers": 2},
    "gemma4_unified_text": {
        "layer_types": 2 * _MIXED,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 0,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": _MAMBA, "mamba_d_head": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid"],
    },
    "zaya": {"num_experts_per_tok": 1},
}
# What a class of configurations needs to say in spite of its own None.
for _kind in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"):
    OWN[_kind] = {"head_dim": 8}
for _kind in ("nemotron",):
    OWN[_kind] = {"num_key_value_heads": 2}
# Positions of three kinds, whose shares of a head are made for large ones.
_THREE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_HALF = {**_THREE, "partial_rotary_factor": 0.5, "mrope_section": [2, 0, 0]}
for _kind in ("qwen2_vl", "qwen2_5_vl", "glm4v", "glm_ocr", "paddleocr_vl", "qwen2_5_omni"):
    OWN[f"{_kind}_text"] = {"rope_parameters": _THREE}
OWN["glm4v_moe_text"] = {"rope_parameters": _HALF}


def architectures() -> list[str]:
    """Every model type that transformers knows as a causal language model."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def multimodal() -> list[str]:
    """Further types, which transformers knows as language models with other parts."""
    return [k for k in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES if k not in architectures()]


def tiny_config(kind: str, vocabulary: int, **changes: Any) -> PreTrainedConfig:
    """The small configuration of model type ``kind``; ``changes`` go to its text part."""
    own = {**OWN.get(kind, {}), **changes}
    return CONFIG_MAPPING[kind](**_settings(CONFIG_MAPPING[kind], vocabulary, own))


def _settings(
    kind: type[PreTrainedConfig], vocabulary: int, own: dict[str, Any], whole: bool = True
) -> dict[str, Any]:
    default = kind(**(own if kind.model_type == "gemma4_assistant" else {}))
    known = {**vars(default), **default.to_dict()}
    settings: dict[str, Any] = {}
    for name, value in known.items():
        if name in SMALL and (value is None or type(value) is int):
            if value is not None or name == "sliding_window":
                settings[name] = SMALL[name]
        elif name in _VOCABULARIES:
            settings[name] = vocabulary
        elif any(part in name for part in _OFF) and type(value) is float:
            settings[name] = 0.0
        elif name in ("initializer_range", "init_std"):
            settings[name] = 0.2
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    settings |= {name: token for name, token in ends.items() if whole or name in known}
    if "decoder_start_token_id" in known:
        settings["decoder_start_token_id"] = 0
    if "kv_lora_rank" in known:  # latent attention: every head has keys of its own
        settings["num_key_value_heads"] = SMALL["num_attention_heads"]
    if "is_decoder" in known:
        settings["is_decoder"] = True
    settings |= _layers(known)
    parts = getattr(kind, "sub_configs", None) or {}
    for name in parts:
        held = getattr(default, name, None)
        if isinstance(held, PreTrainedConfig):
            more = {**OWN.get(held.model_type, {}), **own.get(name, {})}
            settings[name] = _settings(type(held), vocabulary, more, False)
            settings[name]["model_type"] = held.model_type
    return {**settings, **{name: value for name, value in own.items() if name not in parts}}


def _layers(known: dict[str, Any]) -> dict[str, Any]:
    """One layer of each kind, two at least."""
    kinds = {
        name: list(dict.fromkeys(known[name]))
        for name in _PER_LAYER
        if isinstance(known.get(name), list | tuple) and known[name]
    }
    if not kinds:
        return {}
    count = max(2, *(len(each) for each in kinds.values()))
    found: dict[str, Any] = {
        name: [each[min(i, len(each) - 1)] for i in range(count)] for name, each in kinds.items()
    }
    for name in ("num_hidden_layers", "n_layers", "num_layers"):
        if name in known:
            found[name] = count
    return found


def tiny_model(kind: str, vocabulary: int, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model, in evaluation mode."""
    torch.manual_seed(seed)
    config = tiny_config(kind, vocabulary, **changes)
    return reader_of(config).from_config(config, dtype=torch.float32).eval()
