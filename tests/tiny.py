"""Tiny random models of every supported family, on every backend that is installed.

    model = tiny.model("llama", "bridge")            # float32, shared by all tests: do not spoil
    model = tiny.model("llama", "bridge", EXACT)     # float64 with Hugging Face's casts lifted
    model = tiny.fresh("llama", "bridge")            # your own, to spoil

Every weight is random, biases and norms included, and the directories carry the names of other
families, so that nothing can be right by accident.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from precision import Float64Throughout
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

import lens_attr as la
from lens_attr.graph import backend_class

VOCAB, PAD, MASK = 60, 3, 4
N_LAYERS, N_HEADS = 2, 4
EXACT = "exact"
"""As a dtype: float64 throughout, see `precision`."""

BACKENDS = ["bridge"] if backend_class("HookedTransformer") is None else ["hooked", "bridge"]

_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": 64,
}
_GROUPED = _SIZES | _SPECIAL | {"num_key_value_heads": 2}
_WIDE = _GROUPED | {"head_dim": 8}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "n_positions": 64,
    "n_ctx": 64,
}
_NEO = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_layers": N_LAYERS,
    "num_heads": N_HEADS,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
    "max_position_embeddings": 64,
}
_OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": 64,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT2 | _SPECIAL),
    "llama": ("Llama", _GROUPED),
    "qwen2": ("Qwen2", _GROUPED),
    "qwen3": ("Qwen3", _WIDE),
    "gemma2": ("Gemma2", _WIDE | {"query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3Text", _WIDE | {"query_pre_attn_scalar": 8}),
    "mistral": ("Mistral", _GROUPED | {"sliding_window": 5}),
    "phi3": ("Phi3", _GROUPED),
    "neox": ("GPTNeoX", _SIZES | _SPECIAL | {"rotary_pct": 0.25}),
    "bert": ("Bert", _SIZES | {"pad_token_id": PAD}),
    "gptj": ("GPTJ", _GPT2 | _SPECIAL | {"rotary_dim": 4}),
    "neo": ("GPTNeo", _NEO | _SPECIAL),
    "opt": ("OPT", _OPT | _SPECIAL),
    "mixtral": ("Mixtral", _GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "stablelm": ("StableLm", _GROUPED),
}
"""Name of the Hugging Face configuration class (without ``Config``), and its settings."""

FAMILIES = [
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "mistral",
    "phi3",
    "neox",
    "bert",
]
DELEGATED = ["gptj", "neo", "opt"]
"""On the Bridge their attention runs in Hugging Face code, outside the hooks."""


def on_backends(families: list[str], backends: list[str] = BACKENDS) -> list[tuple[str, str]]:
    return [(family, backend) for family in families for backend in backends]


def case_id(value: Any) -> str | None:
    return "-".join(value) if isinstance(value, tuple) else None


# ------------------------------------------------------------------------------- the models


def hugging_face_config(family: str) -> PretrainedConfig:
    name, settings = CONFIGS[family]
    return getattr(transformers, f"{name}Config")(**settings)


def randomised(config: PretrainedConfig) -> PreTrainedModel:
    """A model in which no weight is at its neutral value."""
    auto = transformers.AutoModelForCausalLM
    if config.model_type == "bert":
        auto = transformers.AutoModelForMaskedLM
    model = auto.from_config(config, attn_implementation="eager")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """Words ``w5`` to ``w59``, split at spaces."""
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": PAD, "[MASK]": MASK}
    words = {f"w{i}": i for i in range(len(special), VOCAB)}
    core = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="[MASK]",
        cls_token="<s>",
        sep_token="</s>",
    )


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="lens_attr_tests_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def directory(family: str, edit: Callable[[PreTrainedModel], None] | None = None) -> Path:
    """A saved model, changed by ``edit`` first; its name speaks of three other families."""
    model = randomised(hugging_face_config(family))
    if edit is not None:
        edit(model)
    path = Path(tempfile.mkdtemp(prefix="llama-bert-gemma-3-1b-", dir=_root()))
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def hugging_face(family: str, dtype: str = "float32") -> PreTrainedModel:
    """The original of the saved model."""
    masked = family == "bert"
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": _torch_dtype(dtype), "attn_implementation": "eager"}
    with precision(dtype):
        return auto.from_pretrained(directory(family), **options).eval()


def fresh(family: str, backend: str, dtype: str = "float32", edit: Any = None) -> Any:
    """A model that no other test holds."""
    with precision(dtype):
        return la.load(directory(family, edit), backend, _torch_dtype(dtype), "cpu")


@cache
def model(family: str, backend: str, dtype: str = "float32") -> Any:
    """The model that all tests share."""
    return fresh(family, backend, dtype)


def _torch_dtype(dtype: str) -> torch.dtype:
    return torch.float64 if dtype == EXACT else getattr(torch, dtype)


def precision(dtype: str) -> AbstractContextManager[Any]:
    """The context in which a model of this dtype must be loaded and run."""
    return Float64Throughout() if dtype == EXACT else nullcontext()


# ------------------------------------------------------------------- what the tests explain


def token_ids(family: str, rows: int = 1, length: int = 7) -> Tensor:
    """Different words in every row; for BERT with one mask."""
    columns = torch.arange(length)[None] * 5 + torch.arange(rows)[:, None] * 11
    ids = 5 + columns % (VOCAB - 5)
    if family == "bert":
        ids[:, length // 2] = MASK
    return ids


TARGET = la.LogitDiff(12, 13)


def explain(model: Any, method: Any, ids: Tensor, **options: Any) -> la.Relevance:
    """`la.attribute` of `TARGET`, by default of the token embeddings, in the model's precision."""
    lifted = next(iter(model.parameters())).dtype == torch.float64
    with precision(EXACT if lifted else "float32"):
        return la.attribute(model, ids, **{"target": TARGET, "method": method} | options)


def error(got: Tensor, want: Tensor) -> float:
    """Largest absolute error over largest absolute value."""
    return float((got - want).abs().max() / want.abs().max())
