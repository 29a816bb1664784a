"""Tiny random models of three families on every backend that is installed."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import lens_attr as la
from lens_attr.graph import backend_class

N_LAYERS, N_HEADS, D_MODEL, N_CTX, VOCAB = 2, 4, 32, 16, 40
PAD, MASK = 3, 4

HAS_HOOKED = backend_class("HookedTransformer") is not None
BACKENDS = ["hooked", "bridge"] if HAS_HOOKED else ["bridge"]
CAUSAL = [f"{family}-{backend}" for family in ("gpt2", "llama") for backend in BACKENDS]
MASKED = [f"bert-{backend}" for backend in BACKENDS]
EVERY = CAUSAL + MASKED
GPT2 = [f"gpt2-{backend}" for backend in BACKENDS]


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Words ``w5`` to ``w39``, split at spaces; BERT's adds [CLS] and [SEP] itself."""
    masked = family == "bert"
    first, last = ("[CLS]", "[SEP]") if masked else ("<s>", "</s>")
    special = {"<unk>": 0, first: 1, last: 2, "<pad>": PAD, "[MASK]": MASK}
    words = {f"w{i}": i for i in range(len(special), VOCAB)}
    core = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"unk_token": "<unk>", "pad_token": "<pad>"}
    if masked:
        core.post_processor = processors.BertProcessing((last, 2), (first, 1))
        named |= {"mask_token": "[MASK]", "cls_token": first, "sep_token": last}
    else:
        named |= {"bos_token": first, "eos_token": last}
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


def hugging_face(family: str) -> PreTrainedModel:
    """The model with random weights, biases and norms included."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": 48,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": N_CTX,
        "pad_token_id": PAD,
    }
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    if family == "gpt2":
        shape = {"n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS}
        context = {"n_positions": N_CTX, "n_ctx": N_CTX}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **shape, **context, **ends))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, **ends, num_key_value_heads=2))
    else:
        model = BertForMaskedLM(BertConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@cache
def directory(family: str) -> Path:
    """A saved copy of the model, removed when the tests end."""
    root = Path(tempfile.mkdtemp(prefix="small_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    hugging_face(family).save_pretrained(root)
    tokenizer(family).save_pretrained(root)
    return root


def fresh(name: str, dtype: str = "float32") -> Any:
    """A model nobody else holds, to spoil: ``"gpt2-hooked"``, ``"llama-bridge"``, ..."""
    family, _, backend = name.partition("-")
    return la.load(directory(family), backend=backend, dtype=dtype, device="cpu")


@cache
def model(name: str, dtype: str = "float32") -> Any:
    """The model that the tests share."""
    return fresh(name, dtype)


def text(name: str, words: str = "w5 w9 w12 w7") -> str:
    """A prompt for this model: for BERT with a mask in it."""
    first, _, rest = words.partition(" ")
    return f"{first} [MASK] {rest}".strip() if name.startswith("bert") else words
