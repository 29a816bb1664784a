"""The demo models' tokenizers, one per family, trained on the generated corpus.

Each is small on purpose: frequent words are one token, rarer nouns split into several, as they
do in a real vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CONTEXT_LENGTH = 128


def byte_level_bpe(corpus: list[str]) -> PreTrainedTokenizerFast:
    """GPT-2 style: byte-level BPE that adds no special token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevelProcessor(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _wrap(
        tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


def sentencepiece_bpe(corpus: list[str]) -> PreTrainedTokenizerFast:
    """Llama style: BPE over words that start with a metaspace, byte fallback, BOS prepended."""
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", *bytes_],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer = _without_added(tokenizer, set(bytes_))
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A",
        pair="<s> $A <s> $B",
        special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
    )
    return _wrap(
        tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        add_bos_token=True,
    )


def word_piece(corpus: list[str]) -> PreTrainedTokenizerFast:
    """BERT style: lower-cased WordPiece inside ``[CLS] ... [SEP]``."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=760,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return _wrap(
        tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


TOKENIZERS: dict[str, Callable[[list[str]], PreTrainedTokenizerFast]] = {
    "demo-gpt2": byte_level_bpe,
    "demo-llama": sentencepiece_bpe,
    "demo-bert": word_piece,
}


def _without_added(tokenizer: Tokenizer, names: set[str]) -> Tokenizer:
    """Keep tokens in the vocabulary but not among the added ones, where text would match them."""
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [
        token for token in spec["added_tokens"] if token["content"] not in names
    ]
    return Tokenizer.from_str(json.dumps(spec))


def _wrap(
    tokenizer: Tokenizer,
    model_input_names: list[str] | None = None,
    **special: str | bool,
) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=model_input_names or ["input_ids", "attention_mask"],
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
        **special,
    )
