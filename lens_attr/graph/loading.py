"""`load`: a TransformerLens model with raw weights, from a hub name, a directory or a demo name."""

from __future__ import annotations

import importlib
import math
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertForPreTraining,
)

from lens_attr.demo import DEMO_MODELS
from lens_attr.errors import (
    InputError,
    LensAttrError,
    UnsupportedModelError,
    did_you_mean,
    give_notice,
)
from lens_attr.graph.model import ModelGraph, backend_class

BackendChoice = Literal["auto", "hooked", "bridge"]

MASKED = "BertForMaskedLM"
GEMMA = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
CONVERSION_TOLERANCE = 1e-3
USE_BRIDGE = "use backend='bridge'."


class _NotHooked(UnsupportedModelError):
    """HookedTransformer cannot hold this model; TransformerBridge may."""

    def __init__(self, reason: str, *, before: str = "", way_out: str = USE_BRIDGE) -> None:
        super().__init__(f"{before}{reason}: {way_out}")
        self.reason = reason


class _NotListed(_NotHooked, InputError):
    """A hub name that transformer-lens 3.9 does not know, so that it never asks the hub."""


def load(
    name: str | Path,
    backend: BackendChoice = "auto",
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Any:
    """Load a model with raw weights: nothing folded, nothing centred, in eval mode.

    Args:
        name: a Hugging Face hub name, a local Hugging Face directory (called anything), or one of
            the shipped ``"demo-gpt2"``, ``"demo-llama"``, ``"demo-bert"``.
        backend: ``"hooked"`` for HookedTransformer / HookedEncoder (transformer-lens 3.9),
            ``"bridge"`` for TransformerBridge; ``"auto"`` takes the first where it exists and can
            hold the model, else the second, with a notice that says why.
        dtype: of the weights, e.g. ``"bfloat16"``.
        device: e.g. ``"cuda"``; default: the GPU if there is one, else the CPU.

    Returns:
        The TransformerLens model object itself, never a wrapper.

    Raises:
        InputError: unknown name, backend or dtype, or a directory that is no model.
        UnsupportedModelError: the backend cannot hold this architecture.
    """
    if backend not in ("auto", "hooked", "bridge"):
        raise InputError(f"unknown backend {backend!r}: use 'auto', 'hooked' or 'bridge'.")
    torch_dtype = _dtype(dtype)
    where = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if backend != "auto":
        return _load_on(backend, name, torch_dtype, where)
    if backend_class("HookedTransformer") is None:
        return _load_on("bridge", name, torch_dtype, where)
    try:
        return _load_on("hooked", name, torch_dtype, where)
    except _NotHooked as refusal:
        model = _load_on("bridge", name, torch_dtype, where)
        give_notice(f"{name} is loaded as a TransformerBridge: {refusal.reason}.")
        return model


def _load_on(
    backend: Literal["hooked", "bridge"], name: str | Path, dtype: torch.dtype, device: str
) -> Any:
    path = _local_path(name)
    try:
        if backend == "bridge":
            model = _load_bridge(path or name, dtype, device)
        elif path is None:
            model = _load_hooked_from_hub(str(name), dtype, device)
        else:
            model = _load_hooked_directory(path, dtype, device)
    except LensAttrError:
        raise
    except Exception as error:
        raise InputError(_cannot_load(name, path, backend, error)) from error
    return model.eval()


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"unknown dtype {dtype!r}: use 'float32', 'bfloat16', 'float64', ...")
    return found


def _local_path(name: str | Path) -> Path | None:
    demo = DEMO_MODELS.get(str(name))
    path = demo or Path(name).expanduser()
    if demo is None and not path.is_dir():
        return None
    if not (path / "config.json").is_file():
        raise InputError(f"{path} holds no config.json: it is not a Hugging Face model directory.")
    return path.resolve()


def _cannot_load(name: str | Path, path: Path | None, backend: str, error: Exception) -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    if path is not None:
        return f"cannot load {path} on backend {backend!r}: {reason[0]}"
    first_sentence = re.split(r"(?<=[.!?])\s", reason[0])[0][:300]
    if isinstance(error, OSError):  # as every error of the hub is
        return f"{_unknown(name)} and the hub said: {first_sentence}"
    return f"cannot load {str(name)!r} on backend {backend!r}: {first_sentence}"


def _unknown(name: str | Path) -> str:
    hint = did_you_mean(str(name), DEMO_MODELS)
    return f"cannot load {str(name)!r}: it is no local directory, no demo model ({hint})"


def _load_bridge(name: str | Path, dtype: torch.dtype, device: str) -> Any:
    bridge: Any = backend_class("TransformerBridge")
    model = bridge.boot_transformers(str(name), dtype=dtype, device=device)
    if ModelGraph(model, "TransformerBridge").is_masked_model and model.tokenizer is not None:
        # Booting asks the tokenizer for a BOS, and a BERT's loses [CLS] and [SEP] by that.
        model.tokenizer = AutoTokenizer.from_pretrained(model.tokenizer.name_or_path)
    return model


def _hooked_class(name: Literal["HookedTransformer", "HookedEncoder"]) -> Any:
    cls = backend_class(name)
    if cls is None:
        raise InputError(
            f"{name} was removed in transformer-lens 4: use backend='bridge' (or 'auto'), or "
            "install transformer-lens 3.9."
        )
    return cls


def _load_hooked_from_hub(name: str, dtype: torch.dtype, device: str) -> Any:
    _hooked_class("HookedTransformer")
    official = _official_name(name)
    if _architecture_on_hub(official) == MASKED:
        return _hooked_class("HookedEncoder").from_pretrained(name, dtype=dtype, device=device)
    cls = _hooked_class("HookedTransformer")
    return cls.from_pretrained_no_processing(name, dtype=dtype, device=device)


def _official_name(name: str) -> str:
    """What TransformerLens 3.9 calls a model it lists.

    Raises:
        UnsupportedModelError: it does not list the name, or would run code from the hub.
    """
    loading = importlib.import_module("transformer_lens.loading_from_pretrained")
    try:
        official = loading.get_official_model_name(name)
    except ValueError as error:
        reason = "transformer-lens 3.9 lists no HookedTransformer of that name"
        raise _NotListed(reason, before=f"{_unknown(name)} and ") from error
    # For these TransformerLens sets ``trust_remote_code`` without being asked.
    trusted = (*loading.NEED_REMOTE_CODE_MODELS, "microsoft/phi-1")  # the latter's tokenizer only
    if official.startswith(trusted):
        raise _NotHooked(
            f"transformer-lens 3.9 would run Python code from the hub to load {name}",
            way_out="use backend='bridge', which does not, or download it and give the directory.",
        )
    return official


def _architecture_on_hub(official: str) -> str:
    """The Hugging Face architecture; "?" for models in TransformerLens's own format."""
    try:
        return _architecture(AutoConfig.from_pretrained(official))
    except (OSError, ValueError):  # TransformerLens reads them, or gets the same answer
        return "?"


def _architecture(hf_config: Any) -> str:
    return (hf_config.architectures or ["?"])[0]


def _load_hooked_directory(path: Path, dtype: torch.dtype, device: str) -> Any:
    """HookedTransformer (or HookedEncoder) from a local directory, checked against the original."""
    hf_config = AutoConfig.from_pretrained(path)
    architecture = _architecture(hf_config)
    masked = architecture == MASKED
    cls = _hooked_class("HookedEncoder" if masked else "HookedTransformer")
    auto: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    hf_model = auto.from_pretrained(path, dtype=dtype, attn_implementation="eager").eval()
    loading = importlib.import_module("transformer_lens.loading_from_pretrained")
    with tempfile.TemporaryDirectory(prefix="model_") as neutral:
        _copy_config(path, Path(neutral))
        cfg = (
            _gemma_config(hf_config, architecture, dtype, device)
            if architecture in GEMMA
            else loading.get_pretrained_model_config(
                neutral, hf_cfg=hf_config.to_dict(), dtype=dtype, device=device
            )
        )
        cfg.model_name = path.name
        cfg.n_ctx = min(cfg.n_ctx, getattr(hf_config, "max_position_embeddings", cfg.n_ctx))
        source = _with_pretraining_heads(hf_model) if masked else hf_model
        weights = loading.get_pretrained_state_dict(neutral, cfg, source, dtype=dtype)
    model = cls(cfg, tokenizer=AutoTokenizer.from_pretrained(path), move_to_device=False)
    if masked:
        model.load_state_dict(weights, strict=False)
    else:
        model.load_and_process_state_dict(
            weights,
            fold_ln=False,
            center_writing_weights=False,
            center_unembed=False,
            fold_value_biases=False,
        )
    model = model.to(device).eval()
    hf_model = hf_model.to(torch.device(device))
    _refuse_unfaithful(model, hf_model, path)
    return model


def _copy_config(path: Path, neutral: Path) -> None:
    """TransformerLens guesses architectures from the directory name, so give it one that says
    nothing; a name such as ``my-llama-gpt2`` would be read as a Llama."""
    if any(word in str(neutral).lower() for word in ("llama", "gemma", "wav2vec2")):
        raise InputError(
            f"the temporary directory {neutral} contains a model family's name, which "
            "transformer-lens 3.9 would take for the architecture: set TMPDIR elsewhere."
        )
    config = Path(shutil.copy(path / "config.json", neutral))
    config.chmod(0o644)


def _with_pretraining_heads(hf_model: Any) -> Any:
    """TransformerLens reads BERT weights off a BertForPreTraining; lend ours its unused heads."""
    config = type(hf_model.config).from_dict(hf_model.config.to_dict())
    pretraining = BertForPreTraining(config).to(hf_model.dtype)
    pretraining.load_state_dict(hf_model.state_dict(), strict=False)
    return pretraining.eval()


def _gemma_config(hf: Any, architecture: str, dtype: torch.dtype, device: str) -> Any:
    """Gemma 2 and 3: transformer-lens 3.9 knows their published sizes only, by name."""
    config_class = importlib.import_module("transformer_lens").HookedTransformerConfig
    gemma3 = architecture == "Gemma3ForCausalLM"
    local = [kind == "sliding_attention" for kind in hf.layer_types]
    rope = hf.rope_parameters
    bases = {kind: (rope.get(kind) or rope).get("rope_theta", 1e4) for kind in set(hf.layer_types)}
    fields: dict[str, Any] = {
        "d_model": hf.hidden_size,
        "d_head": hf.head_dim,
        "n_heads": hf.num_attention_heads,
        "n_key_value_heads": hf.num_key_value_heads,
        "d_mlp": hf.intermediate_size,
        "n_layers": hf.num_hidden_layers,
        "n_ctx": min(hf.max_position_embeddings, 8192),
        "eps": hf.rms_norm_eps,
        "d_vocab": hf.vocab_size,
        "act_fn": hf.hidden_activation,
        "normalization_type": "RMS",
        "positional_embedding_type": "rotary",
        "rotary_dim": hf.head_dim,
        "rotary_base": bases.get("full_attention", next(iter(bases.values()))),
        "attn_scale": math.sqrt(hf.query_pre_attn_scalar),
        "window_size": hf.sliding_window,
        "use_local_attn": True,
        "attn_types": ["local" if is_local else "global" for is_local in local],
        "gated_mlp": True,
        "final_rms": True,
        "use_normalization_before_and_after": True,
        "use_qk_norm": gemma3,
        "original_architecture": architecture,
        "model_name": "gemma",
        "tokenizer_prepends_bos": True,
        "dtype": dtype,
        "device": device,
        "init_weights": False,
    }
    if gemma3:
        fields["rotary_base_local"] = bases.get("sliding_attention")
    if getattr(hf, "attn_logit_softcapping", None):
        fields["attn_scores_soft_cap"] = hf.attn_logit_softcapping
    if getattr(hf, "final_logit_softcapping", None):
        fields["output_logits_soft_cap"] = hf.final_logit_softcapping
    return config_class.from_dict(fields)


@torch.no_grad()
def _refuse_unfaithful(model: Any, hf_model: Any, path: Path) -> None:
    """The converted model must give the original's logits; conversions know common sizes only."""
    length = min(8, model.cfg.n_ctx)
    ids = torch.arange(length, device=next(hf_model.parameters()).device)[None] % model.cfg.d_vocab
    original = hf_model(ids).logits.double()
    gap = (model(ids).double() - original).abs().max() / original.abs().max()
    low_precision = model.cfg.dtype not in (torch.float32, torch.float64)
    if not gap <= (0.1 if low_precision else CONVERSION_TOLERANCE):
        raise _NotHooked(
            f"transformer-lens 3.9 converts {path.name} to a HookedTransformer whose logits are "
            f"off by {float(gap):.0%} (its configuration has something the converter ignores)"
        )
