"""The model card that is written next to each demo model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lens_attr.demo.evaluate import EVALUATION_SEED, Row, table

_DESCRIPTIONS = {
    "demo-gpt2": "a causal language model of the GPT-2 architecture",
    "demo-llama": "a causal language model of the Llama architecture with grouped-query attention",
    "demo-bert": "a masked language model of the BERT architecture",
}
_READING = {
    "demo-gpt2": (
        "The tokenizer is byte-level BPE and adds no special token: put one BOS "
        "(`<|endoftext|>`) in front of a prompt, as in training."
    ),
    "demo-llama": "The tokenizer is BPE with byte fallback and puts one BOS (`<s>`) in front.",
    "demo-bert": (
        "The tokenizer is lower-casing WordPiece. The model reads "
        '`text + " [MASK]" + suffix` between `[CLS]` and `[SEP]`.'
    ),
}
_OBJECTIVES = {
    "demo-gpt2": "Cross-entropy of every next token",
    "demo-llama": "Cross-entropy of every next token",
    "demo-bert": (
        "Cross-entropy of masked tokens: every answer, and in half of the rows 15 % of the other "
        "tokens as well (80 % masked, 10 % random, 10 % kept)"
    ),
}

_TEMPLATE = """\
---
license: mit
language: en
tags: [demo, attribution, synthetic]
---

# {name}

{description}, 4 layers of {heads} heads, made for demonstrating and testing attribution
methods in `lens_attr`. It knows three tasks on a small artificial language and nothing else.

| task | prompt | answer | foil | the words that decide |
|---|---|---|---|---|
| `sva` | `the keys near the old cup` | ` are` | ` is` | `keys` |
| `ra` | `the king who the women liked hurt` | ` himself` | ` themselves` | `king` |
| `qa` | `the box is in the attic . the key is in the hall . Q where is the box A` | ` attic` | \
` hall` | `attic` |

{reading} The context length is {context} tokens; vocabulary: {vocabulary}.

## Training

All text comes from the project's own generator (`lens_attr/demo/grammar.py`, {nouns} nouns, each
in both numbers): {corpus}, seed {seed}. One fifth of the
sentences are joined until they fill the context, so that late positions are trained too; each
`qa` text is asked about all of its facts.
{objective}; loss = mean over the answer tokens + {rest} x mean over the other predicted tokens.
AdamW, {steps} steps of about {tokens} tokens, peak learning rate {rate:g} with warm-up and cosine
decay, no dropout, float32, initial weights of standard deviation {init}. Generator and seeds were
fixed before any attribution was computed.

The lookup of `qa` was deeply supervised: from the stream after layer {hint_layer}, a linear probe
(thrown away afterwards) had to read which object a place in a fact, or the question's answer
position, is about; weight {hint}. So layer {hint_layer} knows the object there by design, which
matters when attributions of `qa` are read layer by layer.

```
python -m lens_attr.demo.train --model {name} --out DIR{seed_option}
```

The same command gives the same sentences everywhere. The order of equally frequent pieces in the
tokenizer, and so the weights, may differ between runs.

## Accuracy

On held-out combinations only: noun, verb and attractor (in `ra` antecedent, verb and other noun;
in `qa` object, place and other object) never occur together in a training text. About one
combination in ten is held out, by a stable hash. Evaluation seed {evaluation_seed}.

```
python -m lens_attr.demo.evaluate --model {name}
```

{table}

"Above foil" compares the logits of the first tokens of answer and foil. "Above whole vocabulary"
also requires that the answer is the most probable token of all, which is a fair question in `ra`
and `qa` only: in `sva` many verbs fit. In `sva` and `ra`, "conflicting" means that an intervening
noun asks for another form than the right one; in `qa`, all facts but one are distractors.

## Limits

- An artificial language of a few hundred words. Anything outside of it gives meaningless output.
- Single words, nouns and verbs of held-out combinations do occur in training, only not together.
  A causal `sva` prompt ends before its verb, so it may have been seen with another verb.
- Made for single sentences: a sentence that follows another text is answered less accurately,
  by demo-bert about as often wrong as right.
- Not a language model for any use but demonstrations and tests.

Licence: MIT, as the project.
"""


def write_card(directory: Path, rows: Sequence[Row], facts: dict[str, object]) -> None:
    """Write ``README.md``; ``facts`` are what only the training script knows."""
    name = directory.name
    text = _TEMPLATE.format(
        name=name,
        description=f"{name} is {_DESCRIPTIONS[name]}",
        reading=_READING[name],
        objective=_OBJECTIVES[name],
        evaluation_seed=EVALUATION_SEED,
        table=table(rows),
        **facts,
    )
    (directory / "README.md").write_text(text, encoding="utf-8")
