"""Which weights and which tokenizer these are, as hashes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from lens_attr.graph.model import ModelGraph, shared_name

UNREAD = ("pooler.", "nsp_head.")
"""Weights of HookedEncoder that no logit depends on: they are random each time it is loaded."""


def fingerprint(graph: ModelGraph) -> dict[str, str | None]:
    """SHA-256 of the weights (names, dtypes, shapes, bytes) and of the tokenizer, if any.

    Two loads of the same model have the same.
    """
    return {"weights_sha256": _weights(graph), "tokenizer_sha256": _tokenizer(graph.tokenizer)}


def origin(graph: ModelGraph) -> dict[str, str | None]:
    """What the model (else its tokenizer) was loaded from, and the revision of a hub model.

    As Hugging Face wrote it down, a directory by its own name; None where it is not known, as for a
    model made by hand.
    """
    config = getattr(getattr(graph.model, "original_model", None), "config", None)
    found = getattr(config, "_name_or_path", "") or getattr(graph.tokenizer, "name_or_path", "")
    return {
        "name": shared_name(found or "") or None,
        "revision": getattr(config, "_commit_hash", None),
    }


def _weights(graph: ModelGraph) -> str:
    found = hashlib.sha256()
    read = {k: v for k, v in graph.model.state_dict().items() if not k.startswith(UNREAD)}
    for name, tensor in sorted(read.items()):
        data = tensor.detach().cpu().contiguous()
        found.update(f"{name} {data.dtype} {list(data.shape)}\n".encode())
        found.update(memoryview(data.flatten().view(torch.uint8).numpy()))
    return found.hexdigest()


def _tokenizer(tokenizer: Any) -> str | None:
    if tokenizer is None:
        return None
    fast = getattr(tokenizer, "backend_tokenizer", None)
    said = json.loads(fast.to_str()) if fast is not None else {"vocab": tokenizer.get_vocab()}
    for passing in ("padding", "truncation"):  # of the latest call, not of the tokenizer
        said.pop(passing, None)
    said["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
