"""Train the demo models: ``python -m lens_attr.demo.train --model all --out DIR``.

Everything is seeded: the corpus, the tokenizers, the weights and the order of the batches.
"""

# transformers types token ids and configurations as unions of everything they may ever be.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOptionalSubscript=false

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
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

from lens_attr.demo import DEMO_MODELS, TASKS, generate
from lens_attr.demo.card import write_card
from lens_attr.demo.evaluate import evaluate, load, score
from lens_attr.demo.tokenization import CONTEXT_LENGTH, TOKENIZERS
from lens_attr.demo.words import NOUNS
from lens_attr.types import Sample

SEED = 0
THREADS = 2
CORPUS_SIZE = {"sva": 60_000, "ra": 40_000, "qa": 100_000}
TOKENIZER_CORPUS_SIZE = {"sva": 30_000, "ra": 10_000, "qa": 4_000}
JOINED_SHARE = 0.2
JOINED_WORDS = 110
BATCH_TOKENS = 3072
WARMUP_STEPS = 200
REST_WEIGHT = 0.3
HINT_WEIGHT = 0.3
HINT_LAYER = 2
INIT_STD = 0.1
RANDOM_MASK_SHARE = 0.15
IGNORE = -100


@dataclass(frozen=True)
class Recipe:
    """What differs between the models."""

    build: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Document:
    """One row of a batch: one sentence, or several joined so that late positions are trained.

    Attributes:
        ids: the tokens.
        answers: positions of the answers.
        hints: for each position that must know an object of a qa text (a place in a fact, the
            answer of a question), that position and the object's last token.
    """

    ids: list[int]
    answers: list[int]
    hints: list[tuple[int, int]]


def _gpt2(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT_LENGTH,
        n_ctx=CONTEXT_LENGTH,
        n_embd=96,
        n_layer=4,
        n_head=6,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def _llama(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _bert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT_LENGTH,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertForMaskedLM(config)


RECIPES = {
    "demo-gpt2": Recipe(_gpt2, steps=3000, learning_rate=2e-3),
    "demo-llama": Recipe(_llama, steps=3000, learning_rate=2e-3),
    "demo-bert": Recipe(_bert, steps=4500, learning_rate=6e-4),
}


def train(name: str, directory: Path, seed: int = SEED, threads: int = THREADS) -> None:
    """Train one model from nothing and write its whole directory, model card included.

    Args:
        name: which demo model.
        directory: where its files go.
        seed: of the corpus, the tokenizer, the weights and the order of the batches. The demo
            models that ship are those of seed 0.
        threads: of the arithmetic; rounding, and so the weights, depend on it.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    recipe = RECIPES[name]
    tokenizer = TOKENIZERS[name](_tokenizer_corpus(seed))
    model = recipe.build(tokenizer)
    documents = _documents(tokenizer, seed)
    _fit(model, tokenizer, documents, recipe, seed)
    _save(model, tokenizer, directory)
    write_card(directory, evaluate(*load(directory)), _card_facts(recipe, model, tokenizer, seed))


def _tokenizer_corpus(seed: int) -> list[str]:
    """Sentences, and the agreement verbs once more: each of their forms must become one token."""
    samples = {task: generate(task, n, seed, "train") for task, n in TOKENIZER_CORPUS_SIZE.items()}
    sentences = [_sentence(sample) for task in TASKS for sample in samples[task]]
    verbs = [form for sample in samples["sva"] for form in (sample.answer, sample.foil)]
    return sentences + verbs


def _sentence(sample: Sample) -> str:
    return sample.text + sample.answer + sample.suffix


def _documents(tokenizer: PreTrainedTokenizerFast, seed: int) -> list[Document]:
    """The whole training corpus, tokenized and shuffled."""
    samples = [
        sample for task in TASKS for sample in generate(task, CORPUS_SIZE[task], seed, "train")
    ]
    random.Random(seed).shuffle(samples)
    cut = int(JOINED_SHARE * len(samples))
    groups = [*_joined(samples[:cut]), *([sample] for sample in samples[cut:])]
    return [_document(tokenizer, group) for group in groups]


def _joined(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Consecutive samples in groups that about fill the context."""
    group: list[Sample] = []
    words = 0
    for sample in samples:
        group.append(sample)
        words += len(_sentence(sample).split())
        if words >= JOINED_WORDS:
            yield group
            group, words = [], 0


def _document(tokenizer: PreTrainedTokenizerFast, samples: Sequence[Sample]) -> Document:
    """Tokenize joined samples, remembering where each answer is, cut to the context length."""
    start, end = _boundary_tokens(tokenizer)
    ids, answers, hints = [start], [], []
    for sample in itertools.chain.from_iterable(map(_with_follow_ups, samples)):
        space = " " if len(ids) > 1 else ""
        prompt = tokenizer(space + sample.text, add_special_tokens=False)
        sentence = tokenizer(space + _sentence(sample), add_special_tokens=False).input_ids
        answer = len(ids) + len(prompt.input_ids)
        answers.append(answer)
        for place, thing in _object_spans(space + sample.text):
            at = answer if place is None else len(ids) + prompt.char_to_token(place)
            hints.append((at, prompt.input_ids[prompt.char_to_token(thing)]))
        ids += sentence
    ids = [*ids[: CONTEXT_LENGTH - 1], end]
    return Document(
        ids,
        [position for position in answers if position < len(ids) - 1],
        [(position, thing) for position, thing in hints if position < len(ids) - 1],
    )


def _object_spans(text: str) -> Iterator[tuple[int | None, int]]:
    """Last characters of each (place, object) of the facts, and (None, object) of the question."""
    for fact in re.finditer(r"(\w+) is in the (\w+)", text):
        yield fact.end(2) - 1, fact.end(1) - 1
    for question in re.finditer(r"Q where is the (\w+) A$", text):
        yield None, question.end(1) - 1


def _with_follow_ups(sample: Sample) -> list[Sample]:
    """Ask a qa text about its other facts too: lookup is learned sooner from several answers."""
    if sample.task != "qa":
        return [sample]
    asked = sample.text.split()[-2]
    follow_ups = [
        replace(sample, text=f"Q where is the {thing} A", answer=f" {place}")
        for thing, place in re.findall(r"(\w+) is in the (\w+)", sample.text)
        if thing != asked
    ]
    random.Random(sample.text).shuffle(follow_ups)  # the order of the facts would be a shortcut
    return [sample, *follow_ups]


def _boundary_tokens(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    if tokenizer.mask_token_id is None:
        return tokenizer.bos_token_id, tokenizer.eos_token_id
    return tokenizer.cls_token_id, tokenizer.sep_token_id


def _batches(documents: list[Document], rng: random.Random) -> Iterator[list[Document]]:
    """Endless batches of documents of similar length, each of about `BATCH_TOKENS` tokens."""
    while True:
        rng.shuffle(documents)
        batches: list[list[Document]] = []
        batch: list[Document] = []
        for document in sorted(documents, key=lambda document: len(document.ids)):
            if (len(batch) + 1) * len(document.ids) > BATCH_TOKENS:
                batches.append(batch)
                batch = []
            batch.append(document)
        rng.shuffle(batches)
        yield from batches


@dataclass(frozen=True)
class Batch:
    """Model inputs; ``targets`` is what to predict at each position, `IGNORE` for nothing.

    ``hints`` is the object token that an intermediate layer should know there, likewise.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    targets: torch.Tensor
    at_answer: torch.Tensor
    hints: torch.Tensor


def _collate(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> Batch:
    width = max(len(document.ids) for document in documents)
    ids = torch.full((len(documents), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    is_answer = torch.zeros_like(ids, dtype=torch.bool)
    hints = torch.full_like(ids, IGNORE)
    causal = tokenizer.mask_token_id is None
    for row, document in enumerate(documents):
        ids[row, : len(document.ids)] = torch.tensor(document.ids)
        mask[row, : len(document.ids)] = 1
        is_answer[row, document.answers] = True
        for position, thing in document.hints:
            before = causal and position in document.answers  # where the answer is predicted
            hints[row, position - before] = thing
    make = _causal_batch if causal else _masked_batch
    return make(tokenizer, ids, mask, is_answer, hints)


def _causal_batch(
    tokenizer: PreTrainedTokenizerFast,
    ids: torch.Tensor,
    mask: torch.Tensor,
    is_answer: torch.Tensor,
    hints: torch.Tensor,
) -> Batch:
    """Predict every next token."""
    targets = torch.full_like(ids, IGNORE)
    targets[:, :-1] = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORE)
    return Batch(ids, mask, targets, is_answer.roll(-1, dims=1), hints)


def _masked_batch(
    tokenizer: PreTrainedTokenizerFast,
    ids: torch.Tensor,
    mask: torch.Tensor,
    is_answer: torch.Tensor,
    hints: torch.Tensor,
) -> Batch:
    """Mask every answer; in half of the rows, also corrupt other tokens the way BERT does.

    The other half keeps the deciding word readable: a hidden one makes the answer a guess.
    """
    ordinary = (ids >= len(tokenizer.all_special_ids)) & ~is_answer & (mask == 1)
    noisy_row = torch.rand(len(ids), 1) < 0.5
    chosen = ordinary & noisy_row & (torch.rand(ids.shape) < RANDOM_MASK_SHARE)
    targets = ids.masked_fill(~(is_answer | chosen), IGNORE)
    fate = torch.rand(ids.shape)
    inputs = ids.masked_fill(is_answer | (chosen & (fate < 0.8)), tokenizer.mask_token_id)
    random_ids = torch.randint(len(tokenizer), ids.shape)
    inputs = torch.where(chosen & (fate >= 0.9), random_ids, inputs)
    return Batch(inputs, mask, targets, is_answer, hints)


def _fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    documents: list[Document],
    recipe: Recipe,
    seed: int,
) -> None:
    _initialise(model)
    probe = nn.Linear(model.config.hidden_size, len(tokenizer))
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *probe.parameters()],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate_factor(step, recipe.steps)
    )
    batches = _batches(documents, random.Random(seed))
    started = time.perf_counter()
    for step in range(1, recipe.steps + 1):
        batch = _collate(tokenizer, next(batches))
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
        )
        hint = _hint_loss(probe, output.hidden_states[HINT_LAYER], batch)
        loss = _loss(output.logits, batch) + HINT_WEIGHT * hint
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 250 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step} ({seconds:.0f} s): {_progress(model, tokenizer, seed)}", flush=True)


def _initialise(model: PreTrainedModel) -> None:
    """Larger weights than the default 0.02, at which attention takes thousands of steps to form."""
    for weight in model.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=INIT_STD)


def _hint_loss(probe: nn.Linear, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Ask half-way through the model which object a place or a question is about.

    Deep supervision of the qa task: without it the lookup takes tens of thousands of steps to
    appear. The probe is thrown away after training.
    """
    if not bool((batch.hints != IGNORE).any()):
        return hidden.new_zeros(())
    normed = nn.functional.layer_norm(hidden, hidden.shape[-1:])
    logits = probe(normed).flatten(0, 1)
    return cross_entropy(logits, batch.hints.flatten(), ignore_index=IGNORE)


def _rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (steps - WARMUP_STEPS)))


def _loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean over the answers, plus `REST_WEIGHT` times the mean over all other predictions."""
    losses = cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="none"
    ).view_as(batch.targets)
    rest = (batch.targets != IGNORE) & ~batch.at_answer
    return _mean(losses, batch.at_answer) + REST_WEIGHT * _mean(losses, rest)


def _mean(losses: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return (losses * where).sum() / where.sum().clamp(min=1)


def _progress(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> str:
    """Accuracy on unseen sentences of the *training* split; nothing is selected by it."""
    parts = []
    for task in TASKS:
        scores = score(model, tokenizer, generate(task, 256, seed + 1, "train"))
        parts.append(f"{task} {sum(s.margin > 0 for s in scores) / len(scores):.3f}")
    return ", ".join(parts)


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    # The name that transformers 4 and 5 both know.
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _card_facts(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int
) -> dict[str, object]:
    return {
        "heads": model.config.num_attention_heads,
        "init": INIT_STD,
        "hint": HINT_WEIGHT,
        "hint_layer": HINT_LAYER,
        "context": CONTEXT_LENGTH,
        "vocabulary": len(tokenizer),
        "nouns": len(NOUNS),
        "corpus": ", ".join(f"{n:,} `{task}` samples" for task, n in CORPUS_SIZE.items()),
        "seed": seed,
        "seed_option": f" --seed {seed}" if seed else "",
        "rest": REST_WEIGHT,
        "steps": recipe.steps,
        "tokens": BATCH_TOKENS,
        "rate": recipe.learning_rate,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lens_attr.demo.train", description=__doc__)
    parser.add_argument("--model", choices=[*RECIPES, "all"], default="all")
    parser.add_argument("--out", type=Path, default=next(iter(DEMO_MODELS.values())).parent)
    parser.add_argument("--seed", type=int, default=SEED, help="the shipped models have seed 0")
    parser.add_argument("--threads", type=int, default=THREADS, help="of the arithmetic")
    options = parser.parse_args(arguments)
    for name in RECIPES if options.model == "all" else [options.model]:
        print(f"Training {name}", flush=True)
        train(name, options.out / name, options.seed, options.threads)


if __name__ == "__main__":
    main()
