"""Models whose mechanism is known because every weight was set by hand.

Each is a real GPT-2 (loaded as HookedTransformer or Bridge) in which parts of the residual stream
have names. LayerNorm is made nearly linear by a large constant component (``BALLAST``): it scales
everything by the same number, which its gain undoes.
"""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import lens_attr as la

BALLAST = 100.0


class Builder:
    """A GPT-2 of zeros whose stream has named parts, to be wired by hand."""

    def __init__(self, parts: Mapping[str, int], n_layers: int, n_ctx: int, vocab: int) -> None:
        self.at: dict[str, slice] = {}
        width = 0
        for name, size in {**parts, "ballast": 2}.items():
            self.at[name] = slice(width, width + size)
            width += size
        width += width % 2
        self.width, self.d_head = width, width // 2
        config = GPT2Config(
            vocab_size=vocab,
            n_embd=width,
            n_layer=n_layers,
            n_head=2,
            n_positions=n_ctx,
            n_ctx=n_ctx,
            activation_function="relu",
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
            # ballast, -ballast has this standard deviation over the width
            gain = BALLAST * math.sqrt(2 / width)
            norms = [n for b in self.model.transformer.h for n in (b.ln_1, b.ln_2)]
            for norm in [*norms, self.model.transformer.ln_f]:
                norm.weight.fill_(gain)
            start = self.at["ballast"].start
            self.model.transformer.wte.weight[:, start] = BALLAST
            self.model.transformer.wte.weight[:, start + 1] = -BALLAST

    @torch.no_grad()
    def embed(self, part: str, rows: Tensor) -> None:
        """Rows [token, part] or, for the positions, [pos, part]."""
        table = self.model.transformer.wpe if part == "pos" else self.model.transformer.wte
        table.weight[:, self.at[part]] = rows

    @torch.no_grad()
    def unembed(self, part: str, weight: Tensor) -> None:
        """[part, vocab]"""
        self.model.lm_head.weight[:, self.at[part]] = centred(weight).T

    @torch.no_grad()
    def head(
        self,
        layer: int,
        head: int,
        query: tuple[str, Tensor] | None = None,
        key: tuple[str, Tensor] | None = None,
        value: tuple[str, Tensor] | None = None,
        output: tuple[str, Tensor] | None = None,
        query_bias: Tensor | None = None,
    ) -> None:
        """Maps [part, d] for query, key and value, and [d, part] for the output; d <= d_head."""
        attn = self.model.transformer.h[layer].attn
        for i, read in enumerate((query, key, value)):
            columns = slice(i * self.width + head * self.d_head, None)
            if read is not None:
                part, weight = read
                target = attn.c_attn.weight[self.at[part], columns]
                target[:, : weight.shape[1]] = centred(weight)
        if query_bias is not None:
            start = head * self.d_head
            attn.c_attn.bias[start : start + len(query_bias)] = query_bias
        if output is not None:
            part, weight = output
            rows = slice(head * self.d_head, head * self.d_head + len(weight))
            attn.c_proj.weight[rows, self.at[part]] = weight

    @torch.no_grad()
    def neuron(
        self, layer: int, read: tuple[str, Tensor], threshold: float, write: tuple[str, Tensor]
    ) -> None:
        """write += relu(read - threshold), with maps [part]."""
        mlp = self.model.transformer.h[layer].mlp
        mlp.c_fc.weight[self.at[read[0]], 0] = read[1]
        mlp.c_fc.bias[0] = -threshold
        mlp.c_proj.weight[0, self.at[write[0]]] = write[1]

    def load(self, backend: str) -> Any:
        path = Path(tempfile.mkdtemp(prefix="handmade-"))
        atexit.register(shutil.rmtree, path, ignore_errors=True)
        self.model.save_pretrained(path)
        tiny.tokenizer().save_pretrained(path)
        with tiny.precision(tiny.EXACT):
            return la.load(path, backend, torch.float64, "cpu")


def centred(weight: Tensor) -> Tensor:
    """Blind to a constant, which LayerNorm's mean puts on every component alike."""
    return weight - weight.mean(dim=0, keepdim=True)


# -------------------------------------------------------------------------------- induction heads

N_WORDS, N_POS = 10, 8

INDUCTION_CIRCUIT = [
    ("input", "a0.h0<v>"),
    ("a0.h0", "a1.h0<k>"),
    ("input", "a1.h0<q>"),
    ("input", "a1.h0<v>"),
    ("a1.h0", "logits"),
]
"""What carries words. Positions, which the previous-token head's queries and keys read, are the
same in clean and corrupted texts."""


@cache
def induction(backend: str) -> Any:
    """A previous-token head and an induction head, with a noisy head beside each.

    Head 0.0 writes at every position which word stood before. Head 1.0 looks for positions whose
    previous word is the present one, and predicts the word that stands there. Head 0.1 averages
    words into a part that nobody reads, head 1.1 writes there too.
    """
    parts = {"word": N_WORDS, "pos": N_POS, "before": N_WORDS, "next": N_WORDS, "junk": 6}
    b = Builder(parts, 2, N_POS, N_WORDS)
    words, places = torch.eye(N_WORDS), torch.eye(N_POS)
    b.embed("word", words)
    b.embed("pos", places)
    sharp = 10.0 * math.sqrt(b.d_head)
    b.head(0, 0, ("pos", sharp * places.roll(1, dims=0)), ("pos", places), ("word", words),
           ("before", words))  # fmt: skip
    soft = 4.0 * math.sqrt(b.d_head)
    b.head(1, 0, ("word", soft * words), ("before", words), ("word", words), ("next", words))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(N_WORDS, 6, generator=generator)
    for layer in (0, 1):
        b.head(layer, 1, value=("word", noise), output=("junk", 3 * torch.eye(6)))
    b.unembed("next", 6.0 * words)
    return b.load(backend)


INDUCTION_CLEAN = torch.tensor([[5, 1, 2, 6, 7, 8, 1]] * 3)
"""... 1 2 ... 1, so the model says 2."""
INDUCTION_CORRUPTED = torch.tensor(
    [
        [5, 9, 2, 6, 7, 8, 1],  # no 1 before the 2
        [5, 1, 3, 6, 7, 8, 1],  # 3 in its place
        [5, 1, 2, 6, 7, 8, 9],  # the last word is new
    ]
)


# ---------------------------------------------------------------------------------- copying heads

COPY_CIRCUIT = [("input", "a0.h0<v>"), ("a0.h0", "logits")]


@cache
def copying(backend: str) -> Any:
    """Head 0.0 copies the first word to the prediction; the decoy 0.1 attends there as well.

    The decoy reads the same word with the same attention and writes ten times as much, but into a
    part that the prediction does not read.
    """
    b = Builder(
        {"word": N_WORDS, "pos": N_POS, "next": N_WORDS, "junk": N_WORDS}, 1, N_POS, N_WORDS
    )
    words = torch.eye(N_WORDS)
    b.embed("word", words)
    b.embed("pos", torch.eye(N_POS))
    first = torch.zeros(N_POS, 1)
    first[0] = 6.0 * math.sqrt(b.d_head)
    for head, (part, size) in enumerate((("next", 1.0), ("junk", 10.0))):
        b.head(0, head, key=("pos", first), query_bias=torch.ones(1), value=("word", words),
               output=(part, size * words))  # fmt: skip
    b.unembed("next", words)
    return b.load(backend)


# --------------------------------------------------------------------- gates in one attention row

KEY_A, KEY_B, OTHER, ASK = 1, 2, 3, 4
GATES = ("or", "and", "single")


@cache
def gate(kind: str, gap: float, backend: str) -> Any:
    """One head whose last query reads two keys, A and B, with scores ``gap`` above all others.

    ``"or"``: both carry the value 1, so either is enough. ``"and"``: both carry 1, and a ReLU
    lets through only what is above the value that one key alone gives. ``"single"``: only A
    carries a value, and only A's score is raised.
    """
    b = Builder({"word": 5, "value": 2, "out": 2}, 1, 8, 5)
    b.embed("word", torch.eye(5))
    raised, carried = torch.zeros(5, 1), torch.zeros(5, 1)
    both = [KEY_A] if kind == "single" else [KEY_A, KEY_B]
    raised[both], carried[both] = gap * math.sqrt(b.d_head), 1.0
    signed = torch.tensor([1.0, -1.0])  # a number x stands as (x, -x), which LayerNorm keeps
    b.head(0, 0, key=("word", raised), query_bias=torch.ones(1), value=("word", carried),
           output=("value" if kind == "and" else "out", signed[None]))  # fmt: skip
    if kind == "and":
        threshold = and_threshold(gap) - float(carried.mean())  # values are read centred
        b.neuron(0, ("value", signed / 2), threshold, ("out", signed))
    b.unembed("out", signed[:, None] / 2 * torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))
    return b.load(backend)


def and_threshold(gap: float) -> float:
    """Attention on A and B less a little: with either key ablated, less than this is left."""
    raised = 2 * math.exp(gap)
    return 0.98 * raised / (raised + 6)


GATE_IDS = torch.tensor([[OTHER, KEY_A, OTHER, OTHER, KEY_B, OTHER, OTHER, ASK]])
