"""Which hook name plays which role, per backend. The one table of hook names in the project."""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal[
    "embed",
    "pos_embed",
    "type_embed",
    "residual",
    "norm_scale",
    "normalized",
    "q",
    "k",
    "v",
    "scores",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_pre",
    "mlp_up",
    "mlp_post",
    "mlp_out",
    "head_pre",
    "head_post",
    "unembed_in",
    "logits",
]
"""``mlp_pre`` is the gate's pre-activation in a gated MLP and ``mlp_up`` what it multiplies;
``head_pre`` and ``head_post`` lie around the activation of BERT's masked-word head; ``residual``
is the stream before every block and after the last one. ``resid_mid`` is the stream between
attention and MLP (HookedTransformer), ``mlp_in`` the branch into the MLP's norm (Bridge);
``normalized`` is the input of a norm, centred where it centres, over its ``norm_scale``."""

ROLES: tuple[Role, ...] = get_args(Role)

PER_BLOCK: dict[Role, str] = {
    "residual": "hook_resid_pre",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_pre": "mlp.hook_pre",
    "mlp_up": "mlp.hook_pre_linear",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
}
"""Name of a role inside ``blocks.{layer}.``: the same on every backend."""

ONCE: dict[Role, tuple[str, ...]] = {
    "embed": ("embed.hook_embed", "hook_embed"),
    "pos_embed": ("embed.hook_pos_embed", "hook_pos_embed"),
    "type_embed": ("embed.hook_token_type_embed", "token_type_embed.hook_out"),
    "unembed_in": ("unembed.hook_in",),
    "logits": ("unembed.hook_out",),
}
"""Names of a role outside the blocks, the first one present counts (HookedEncoder's come first,
because its ``embed.`` submodule holds all three)."""

BRIDGE_PER_BLOCK: dict[Role, str] = {"mlp_in": "ln2.hook_in"}
"""What the Bridge calls ``hook_resid_mid`` is the branch into the MLP's norm, not the stream."""

BRIDGE_BERT_PER_BLOCK: dict[Role, str] = {"attn_out": "attn.o.hook_out"}
"""On the Bridge ``hook_attn_out`` of BERT lies behind the norm that follows, stream included."""

BRIDGE_ONCE: dict[Role, tuple[str, ...]] = {"pos_embed": ("pos_embed.hook_out",)}
"""On the Bridge ``hook_pos_embed`` of a rotary model is the rotation, not an embedding."""

BRIDGE_BERT_ONCE: dict[Role, tuple[str, ...]] = {
    "embed": ("embed.hook_out",),
    "head_pre": ("mlm_head.hook_out",),
    "head_post": ("ln_final.hook_in",),
}
"""On the Bridge ``hook_embed`` of BERT is the sum after its LayerNorm; the word embedding is
``embed.hook_out``, and the masked-word head's activation lies between two unrelated names."""

NORM_SUFFIXES: dict[Role, str] = {"norm_scale": "hook_scale", "normalized": "hook_normalized"}
"""Last part of the name in every norm, wherever it stands."""

AFTER_LAST_BLOCK = (
    "hook_normalized_resid_post",
    "hook_resid_post",
)
"""The stream after the last block; HookedEncoder's is normalised (post-norm)."""

BRANCHES = {
    "HookedTransformer": ("attn.hook_z", "hook_resid_mid", "ln2.hook_normalized"),
    "TransformerBridge": ("attn.hook_z", "ln2.hook_in"),
}
"""Where the output projection begins in a block, and where the MLP does, if that is present: the
stream that it reads (absent where attention and MLP are parallel), else its normalised input."""

UP_TO_Z = (
    "hook_in",
    "hook_resid_pre",
    "hook_attn_in",
    "hook_q_input",
    "hook_k_input",
    "hook_v_input",
    "ln1.",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.q",
    "attn.k",
    "attn.v",
)
"""How the names in a block begin that lie before its output projection."""

ATTENTION_INPUT = {
    "HookedTransformer": "ln1.hook_normalized",
    "TransformerBridge": "attn.hook_in",
}
"""Behind the norm, so that the stream beside attention keeps its rows."""

NORM_AFTER_ATTENTION = frozenset({"Olmo2ForCausalLM", "Olmo3ForCausalLM"})
"""Their ``ln1`` stands behind attention."""

DELEGATED_ATTENTION = frozenset(
    {"BertForMaskedLM", "GPTJForCausalLM", "GPTNeoForCausalLM", "OPTForCausalLM"}
)
"""On the Bridge these compute attention in Hugging Face code: the pattern fires forward only."""

BRIDGE_ARCHITECTURES = DELEGATED_ATTENTION | frozenset(
    {
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "MistralForCausalLM",
        "Phi3ForCausalLM",
        "GPTNeoXForCausalLM",
    }
)
"""Architectures whose Bridge hook points were verified (tests/test_families.py)."""
