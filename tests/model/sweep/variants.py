"""What model types can be configured to do otherwise than by default: each a row of the sweep too."""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, head tied": ("llama", {"tie_word_embeddings": True}),
    "llama, head apart": ("llama", {"tie_word_embeddings": False}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, one key head": ("llama", {"num_key_value_heads": 1}),
    "llama, linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    ),
    "llama, llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "qwen3, yarn": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen2, windows in some layers": (
        "qwen2",
        {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "gemma2, no caps": (
        "gemma2",
        {"final_logit_softcapping": None, "attn_logit_softcapping": None},
    ),
    "falcon, ALiBi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "falcon, blocks in sequence": (
        "falcon",
        {
            "parallel_attn": False,
            "new_decoder_architecture": False,
            "multi_query": False,
            "num_kv_heads": 4,
        },
    ),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt, clipped": ("mpt", {"attn_config": {"alibi": True, "clip_qkv": 2.0, "qk_ln": False}}),
    "gpt_neox, blocks in sequence": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_bigcode, many key heads": ("gpt_bigcode", {"multi_query": False}),
    "opt, norm after": ("opt", {"do_layer_norm_before": False}),
    "qwen3_moe, one dense layer": ("qwen3_moe", {"mlp_only_layers": [0]}),
    "qwen2_moe, all experts": ("qwen2_moe", {"num_experts_per_tok": 4}),
    "mixtral, window": ("mixtral", {"sliding_window": 8}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.5}),
    "cohere, norms of queries": ("cohere", {"use_qk_norm": True}),
    "phi, norms of queries": ("phi", {"qk_layernorm": True}),
    "bloom, residual after norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "mamba2, one group": ("mamba2", {"n_groups": 1}),
    "mamba, biases": ("mamba", {"use_bias": True}),
}
