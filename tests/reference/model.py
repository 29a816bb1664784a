"""An explicit float64 forward pass of GPT-2-like and Llama-like models.

Reads a Hugging Face state dict and config (object or plain dict) and keeps every intermediate.
One sequence, no batch, no padding, causal mask. Anything it does not know it refuses.

Shapes: ``pos`` tokens, ``d`` model width, ``head`` query heads, ``kv`` key/value heads, ``dh`` head
width, ``mlp`` neurons. A linear map is stored so that ``y = x @ weight + bias``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GPT2_TYPES = ("gpt2",)
LLAMA_TYPES = ("llama", "qwen2")


@dataclass(frozen=True)
class Linear:
    weight: Tensor  # [in, out]
    bias: Tensor | None = None  # [out]

    def __call__(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Norm:
    weight: Tensor  # [d]
    bias: Tensor | None
    centred: bool  # True: LayerNorm, False: RMSNorm
    eps: float


@dataclass(frozen=True)
class Layer:
    norm1: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    norm2: Norm
    pre: Linear  # input of the activation: GPT-2's c_fc, Llama's gate_proj
    up: Linear | None  # Llama's up_proj
    down: Linear


@dataclass(frozen=True)
class Model:
    n_heads: int
    n_kv_heads: int
    rope_theta: float | None
    embed: Tensor  # [vocab, d]
    positions: Tensor | None  # [n_ctx, d]
    layers: list[Layer]
    final_norm: Norm
    unembed: Linear

    @property
    def head_dim(self) -> int:
        return self.layers[0].q.weight.shape[1] // self.n_heads

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True)
class NormTrace:
    x: Tensor  # [pos, d] input
    sigma: Tensor  # [pos, 1] sqrt(variance + eps), of the mean square for RMSNorm
    hat: Tensor  # [pos, d] (x - mean) / sigma
    out: Tensor  # [pos, d] weight * hat + bias


@dataclass(frozen=True)
class LayerTrace:
    norm1: NormTrace  # norm1.x is the residual stream before the layer
    q_flat: Tensor  # [head, pos, dh] before rotary
    k_flat: Tensor  # [kv, pos, dh] before rotary
    q: Tensor  # [head, pos, dh]
    k: Tensor  # [kv, pos, dh]
    v: Tensor  # [kv, pos, dh]
    scores: Tensor  # [head, pos, pos], -inf above the diagonal
    pattern: Tensor  # [head, pos, pos]
    z: Tensor  # [head, pos, dh]
    attn_out: Tensor  # [pos, d]
    norm2: NormTrace  # norm2.x is the residual stream between attention and MLP
    pre: Tensor  # [pos, mlp]
    act: Tensor  # [pos, mlp] f(pre)
    up: Tensor | None  # [pos, mlp]
    post: Tensor  # [pos, mlp] act, times up where there is one
    mlp_out: Tensor  # [pos, d]
    resid_post: Tensor  # [pos, d]


@dataclass(frozen=True)
class Trace:
    model: Model
    token_embedding: Tensor  # [pos, d]
    embedding: Tensor  # [pos, d] token plus learned position
    rotation: Tensor | None  # [pos, dh, dh]
    layers: list[LayerTrace]
    final_norm: NormTrace
    logits: Tensor  # [pos, vocab]


def forward(
    state_dict: Mapping[str, Tensor],
    config: Any,
    tokens: Sequence[int] | Tensor,
    *,
    embedding: Tensor | None = None,
    rotary_dtype: torch.dtype = torch.float64,
) -> Trace:
    """Run the model in float64 and keep everything.

    ``embedding`` replaces the sum of token and position embedding (for baselines, or as a leaf).
    ``rotary_dtype`` is the precision in which rotary frequencies are rounded. Hugging Face keeps
    them in float32, an error of 6e-8 that moves relevance by 1e-8 to 1e-7: compare with
    ``torch.float32`` where the frequencies are Hugging Face's own.
    """
    model = read_model(state_dict, config)
    ids = torch.as_tensor(tokens, dtype=torch.long)
    token_embedding = model.embed[ids]
    if embedding is None:
        embedding = token_embedding
        if model.positions is not None:
            embedding = embedding + model.positions[: len(ids)]
    rotation = None
    if model.rope_theta is not None:
        rotation = rotations(len(ids), model.head_dim, model.rope_theta, rotary_dtype)
    x, layers = embedding, []
    for layer in model.layers:
        layers.append(_layer(model, layer, x, rotation))
        x = layers[-1].resid_post
    final = normalise(model.final_norm, x)
    logits = model.unembed(final.out)
    return Trace(model, token_embedding, embedding, rotation, layers, final, logits)


def _layer(model: Model, layer: Layer, x: Tensor, rotation: Tensor | None) -> LayerTrace:
    norm1 = normalise(layer.norm1, x)
    q_flat = split_heads(layer.q(norm1.out), model.n_heads)
    k_flat = split_heads(layer.k(norm1.out), model.n_kv_heads)
    v = split_heads(layer.v(norm1.out), model.n_kv_heads)
    q, k = rotate(q_flat, rotation), rotate(k_flat, rotation)
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    scores, pattern, z = [], [], []
    for head in range(model.n_heads):
        kv = head // model.group
        s = q[head] @ k[kv].T / math.sqrt(model.head_dim)
        scores.append(s.masked_fill(future, -math.inf))
        pattern.append(torch.softmax(scores[-1], dim=-1))
        z.append(pattern[-1] @ v[kv])
    z_all = torch.stack(z)
    attn_out = layer.o(merge_heads(z_all))
    norm2 = normalise(layer.norm2, x + attn_out)
    pre = layer.pre(norm2.out)
    act = silu(pre) if layer.up is not None else gelu_new(pre)
    up = layer.up(norm2.out) if layer.up is not None else None
    post = act if up is None else act * up
    mlp_out = layer.down(post)
    return LayerTrace(
        norm1=norm1,
        q_flat=q_flat,
        k_flat=k_flat,
        q=q,
        k=k,
        v=v,
        scores=torch.stack(scores),
        pattern=torch.stack(pattern),
        z=z_all,
        attn_out=attn_out,
        norm2=norm2,
        pre=pre,
        act=act,
        up=up,
        post=post,
        mlp_out=mlp_out,
        resid_post=norm2.x + mlp_out,
    )


def normalise(norm: Norm, x: Tensor) -> NormTrace:
    centred = x - x.mean(-1, keepdim=True) if norm.centred else x
    sigma = torch.sqrt((centred * centred).mean(-1, keepdim=True) + norm.eps)
    hat = centred / sigma
    out = norm.weight * hat
    return NormTrace(x, sigma, hat, out if norm.bias is None else out + norm.bias)


def gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def gelu_new_derivative(x: Tensor) -> Tensor:
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x**2)


def silu_derivative(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def rotations(n: int, head_dim: int, theta: float, dtype: torch.dtype) -> Tensor:
    """[pos, dh, dh]: the rotary matrix of each position; feature i is paired with i + dh/2."""
    exponent = torch.arange(0, head_dim, 2).to(dtype) / head_dim
    frequency = (1.0 / theta**exponent).double()
    half = head_dim // 2
    matrices = torch.zeros(n, head_dim, head_dim, dtype=torch.float64)
    for t in range(n):
        cos, sin = torch.cos(t * frequency), torch.sin(t * frequency)
        matrices[t, :half, :half] = torch.diag(cos)
        matrices[t, :half, half:] = torch.diag(-sin)
        matrices[t, half:, :half] = torch.diag(sin)
        matrices[t, half:, half:] = torch.diag(cos)
    return matrices


def rotate(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Apply the matrix of each position to x [head, pos, dh]."""
    return x if rotation is None else torch.einsum("tij,htj->hti", rotation, x)


def split_heads(x: Tensor, n: int) -> Tensor:
    """[pos, n * dh] to [n, pos, dh]."""
    return x.reshape(len(x), n, -1).transpose(0, 1)


def merge_heads(x: Tensor) -> Tensor:
    """[n, pos, dh] to [pos, n * dh]."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def read_model(state_dict: Mapping[str, Tensor], config: Any) -> Model:
    """The weights of a Hugging Face model in float64, by architecture."""
    settings = dict(config if isinstance(config, Mapping) else config.to_dict())
    weights = {name: w.detach().double() for name, w in state_dict.items()}
    kind = settings.get("model_type")
    if kind in GPT2_TYPES:
        return _read_gpt2(weights, settings)
    if kind in LLAMA_TYPES:
        return _read_llama(weights, settings)
    raise ValueError(f"model_type {kind!r} has no reference implementation")


def _require(settings: Mapping[str, Any], **expected: Any) -> None:
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{name}={settings[name]!r} has no reference implementation")


def _read_gpt2(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Model:
    _require(
        settings,
        activation_function="gelu_new",
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    w = {name.removeprefix("transformer."): value for name, value in weights.items()}

    def norm(name: str) -> Norm:
        eps = settings["layer_norm_epsilon"]
        return Norm(w[f"{name}.weight"], w[f"{name}.bias"], centred=True, eps=eps)

    def linear(name: str) -> Linear:  # Conv1D is stored as [in, out]
        return Linear(w[f"{name}.weight"], w[f"{name}.bias"])

    layers = []
    for i in range(settings["n_layer"]):
        qkv = linear(f"h.{i}.attn.c_attn")
        parts = zip(qkv.weight.chunk(3, dim=1), qkv.bias.chunk(3), strict=True)
        q, k, v = (Linear(weight, bias) for weight, bias in parts)
        layers.append(
            Layer(
                norm(f"h.{i}.ln_1"),
                *(q, k, v),
                linear(f"h.{i}.attn.c_proj"),
                norm(f"h.{i}.ln_2"),
                pre=linear(f"h.{i}.mlp.c_fc"),
                up=None,
                down=linear(f"h.{i}.mlp.c_proj"),
            )
        )
    heads = settings["n_head"]
    unembed = Linear(w.get("lm_head.weight", w["wte.weight"]).T)
    return Model(
        heads, heads, None, w["wte.weight"], w["wpe.weight"], layers, norm("ln_f"), unembed
    )


def _read_llama(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Model:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    _require(settings, hidden_act="silu")
    if rope.get("rope_type", "default") != "default" or settings.get("use_sliding_window"):
        raise ValueError("scaled rotary and sliding windows have no reference implementation")
    w = {name.removeprefix("model."): value for name, value in weights.items()}
    if "lm_head.weight" not in w and not settings.get("tie_word_embeddings"):
        raise ValueError("the unembedding is neither stored nor tied")

    def norm(name: str) -> Norm:
        return Norm(w[f"{name}.weight"], None, centred=False, eps=settings["rms_norm_eps"])

    def linear(name: str) -> Linear:  # nn.Linear is stored as [out, in]
        return Linear(w[f"{name}.weight"].T, w.get(f"{name}.bias"))

    layers = [
        Layer(
            norm(f"layers.{i}.input_layernorm"),
            linear(f"layers.{i}.self_attn.q_proj"),
            linear(f"layers.{i}.self_attn.k_proj"),
            linear(f"layers.{i}.self_attn.v_proj"),
            linear(f"layers.{i}.self_attn.o_proj"),
            norm(f"layers.{i}.post_attention_layernorm"),
            pre=linear(f"layers.{i}.mlp.gate_proj"),
            up=linear(f"layers.{i}.mlp.up_proj"),
            down=linear(f"layers.{i}.mlp.down_proj"),
        )
        for i in range(settings["num_hidden_layers"])
    ]
    embed = w["embed_tokens.weight"]
    heads = settings["num_attention_heads"]
    kv_heads = settings.get("num_key_value_heads") or heads
    theta = rope.get("rope_theta") or settings["rope_theta"]
    unembed = Linear(w.get("lm_head.weight", embed).T)
    return Model(heads, kv_heads, theta, embed, None, layers, norm("norm"), unembed)
