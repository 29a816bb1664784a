"""Accuracy of a demo model on held-out combinations, task by task and attractor by attractor.

Run ``python -m lens_attr.demo.evaluate --model demo-gpt2``. Only plain transformers is used.
"""

# transformers types token ids and configurations as unions of everything they may ever be.
# pyright: reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOptionalSubscript=false

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lens_attr.demo import DEMO_MODELS, TASKS, generate
from lens_attr.types import Sample

EVALUATION_SEED = 1
EVALUATION_SIZE = 4000


@dataclass(frozen=True)
class Score:
    """How one sample came out.

    Attributes:
        margin: logit of the answer's first token minus that of the foil's.
        top: whether the answer's first token has the highest logit of the whole vocabulary.
    """

    margin: float
    top: bool


@dataclass(frozen=True)
class Row:
    """One line of the accuracy table, in the range 0 to 1."""

    task: str
    subset: str
    n: int
    above_foil: float
    top: float


def load(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a directory, ready for inference, and its tokenizer; nothing is downloaded."""
    masked = AutoConfig.from_pretrained(directory).architectures[0].endswith("ForMaskedLM")
    auto_class = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    model = auto_class.from_pretrained(directory, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(directory, local_files_only=True)


def encode(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> tuple[list[int], int]:
    """Token ids of the prompt, and the position at which the answer is predicted.

    A causal prompt starts with exactly one BOS, whether or not the tokenizer adds it.
    """
    if tokenizer.mask_token_id is not None:
        ids = tokenizer(f"{sample.text} {tokenizer.mask_token}{sample.suffix}").input_ids
        return ids, ids.index(tokenizer.mask_token_id)
    ids = tokenizer(sample.text).input_ids
    if ids[0] != tokenizer.bos_token_id:
        ids = [tokenizer.bos_token_id, *ids]
    return ids, len(ids) - 1


def first_token(tokenizer: PreTrainedTokenizerBase, continuation: str) -> int:
    return tokenizer(continuation, add_special_tokens=False).input_ids[0]


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    batch_size: int = 256,
) -> list[Score]:
    """Score samples in order, in right-padded batches."""
    scores: list[Score] = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        logits = _answer_logits(model, tokenizer, batch)
        answers = torch.tensor([first_token(tokenizer, sample.answer) for sample in batch])
        foils = torch.tensor([first_token(tokenizer, sample.foil) for sample in batch])
        rows = torch.arange(len(batch))
        margins = logits[rows, answers] - logits[rows, foils]
        tops = logits.argmax(-1) == answers
        scores += [Score(*pair) for pair in zip(margins.tolist(), tops.tolist(), strict=True)]
    return scores


def _answer_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Sample]
) -> torch.Tensor:
    """Logits ``[sample, vocabulary]`` at the position where each answer is predicted."""
    encoded = [encode(tokenizer, sample) for sample in batch]
    width = max(len(ids) for ids, _ in encoded)
    pad = tokenizer.pad_token_id
    input_ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in encoded])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in encoded])
    logits = model(input_ids=input_ids, attention_mask=mask).logits
    return logits[torch.arange(len(batch)), torch.tensor([position for _, position in encoded])]


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n: int = EVALUATION_SIZE
) -> list[Row]:
    """The accuracy table: every subset is taken from ``n`` fresh held-out samples."""
    return [row for task in TASKS for row in _evaluate_task(model, tokenizer, task, n)]


def _evaluate_task(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: str, n: int
) -> Iterator[Row]:
    draws = [None] if task == "qa" else [None, "none", "pp", "rc", "any"]
    for attractor in draws:
        samples = generate(task, n, EVALUATION_SEED, attractor=attractor)
        scores = score(model, tokenizer, samples)
        for name, keep in _SUBSETS[task, attractor].items():
            kept = [s for s, sample in zip(scores, samples, strict=True) if keep(sample)]
            yield Row(
                task,
                name,
                len(kept),
                above_foil=sum(s.margin > 0 for s in kept) / len(kept),
                top=sum(s.top for s in kept) / len(kept),
            )


def _everything(sample: Sample) -> bool:
    return True


def _tagged(tag: str, value: str) -> Callable[[Sample], bool]:
    return lambda sample: sample.tags[tag] == value


_AGREEMENT_SUBSETS: dict[str | None, dict[str, Callable[[Sample], bool]]] = {
    None: {
        "all": _everything,
        "singular": _tagged("number", "singular"),
        "plural": _tagged("number", "plural"),
    },
    "none": {"no attractor": _everything},
    "pp": {"attractor: pp": _everything},
    "rc": {"attractor: rc": _everything},
    "any": {
        "attractor: any": _everything,
        "attractor: any, conflicting": _tagged("conflict", "yes"),
    },
}
_SUBSETS: dict[tuple[str, str | None], dict[str, Callable[[Sample], bool]]] = {
    **{
        (task, kind): _AGREEMENT_SUBSETS[kind]
        for task in ("sva", "ra")
        for kind in _AGREEMENT_SUBSETS
    },
    ("qa", None): {
        "all": _everything,
        **{f"{count} facts": _tagged("facts", str(count)) for count in (2, 3, 4)},
    },
}


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| task | held-out subset | n | answer above foil | answer above whole vocabulary |",
        "|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row.task} | {row.subset} | {row.n} | {row.above_foil:.2%} | {row.top:.2%} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lens_attr.demo.evaluate", description=__doc__)
    parser.add_argument("--model", choices=[*DEMO_MODELS, "all"], default="all")
    parser.add_argument("--n", type=int, default=EVALUATION_SIZE, help="samples per draw")
    options = parser.parse_args(arguments)
    for name in DEMO_MODELS if options.model == "all" else [options.model]:
        print(f"{name}\n\n{table(evaluate(*load(DEMO_MODELS[name]), n=options.n))}\n")


if __name__ == "__main__":
    main()
