"""Five small tokenizers of different kinds, trained in the test, and a slow projection of scores between them."""

import functools

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.support import tiny

TEXT = [
    *tiny.TEXT,
    "def f(x):\n\treturn x + 1\r\n",
    "naïve café — 你好，世界。",
    "It has legs and a tail. wings or none",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>"]
CELLS = 840
"""Number of cells per character: up to eight tokens divide it evenly."""


def wrapped(raw):
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    return made


def byte_level():
    """Train a byte-level BPE tokenizer like those of GPT-2, Llama 3 and Qwen."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(TEXT, trainer)
    return wrapped(raw)


def metaspace_bpe():
    """Train a BPE tokenizer like Llama 2's: a mark for every space and one in front, bytes for unknown characters."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [part for text in TEXT for part in text.replace("is", "").split("a")]
    raw.train_from_iterator(words, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    return wrapped(raw)


def unigram():
    """Train a Unigram tokenizer like SentencePiece's, with its normalization (NFKC) and an unknown token."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    raw.train_from_iterator(TEXT, trainer)
    return wrapped(raw)


def wordpiece():
    """Train a WordPiece tokenizer like BERT's: lower case, accents and spaces removed."""
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    raw.train_from_iterator(TEXT, trainer)
    return wrapped(raw)


def characters():
    """Train a tokenizer with one token per character; each unknown character is one unknown token."""
    letters = sorted({letter for text in TEXT for letter in text})
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *letters])}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    return wrapped(raw)


MAKERS = {maker.__name__: maker for maker in (byte_level, metaspace_bpe, unigram, wordpiece, characters)}


@functools.cache
def tokenizer(name):
    return MAKERS[name]()


def divided(offsets, length):
    """Return the cells of the text that each token covers, [tokens, length * CELLS] bool."""
    owned = np.zeros((len(offsets), length * CELLS), dtype=bool)
    for place in range(length):
        covering = [index for index, (start, end) in enumerate(offsets) if start <= place < end]
        for rank, index in enumerate(covering):
            width = CELLS // len(covering)
            owned[index, place * CELLS + rank * width : place * CELLS + (rank + 1) * width] = True
    return owned


def naive_projection(scores, source, target, *, length):
    """Distribute each score equally over the cells of its source token that target tokens cover.

    Args:
        scores: scores of the source tokens.
        source: (offsets, index of the end of turn or None).
        target: the same for the target.
        length: number of characters of the text.

    Returns:
        Scores of the target tokens, float64 [target tokens].
    """
    (given, given_end), (taken, taken_end) = source, target
    result = np.zeros(len(taken))
    cells, owners = divided(given, length), divided(taken, length)
    for index, score in enumerate(scores):
        if given_end is not None and index >= given_end:
            if taken_end is not None:
                result[min(taken_end + index - given_end, len(taken) - 1)] += score
            continue
        shared = (owners & cells[index]).sum(axis=1)
        if shared.sum():
            result += score * shared / shared.sum()
        else:
            place = given[index][0]
            bare = [
                i for i, (start, end) in enumerate(taken) if start == end == place and i < (taken_end or len(taken))
            ]
            own = [i for i, (start, end) in enumerate(given) if start == end == place]
            if given[index][0] == given[index][1] and bare:
                result[bare[min(own.index(index), len(bare) - 1)]] += score
                continue
            wide = [i for i, (start, end) in enumerate(taken) if end > start] or [len(taken) - 1]
            distance = [max(taken[i][0] - given[index][1], given[index][0] - taken[i][1], 0) for i in wide]
            near = [i for i, d in zip(wide, distance, strict=True) if d == min(distance)]
            result[near[0] if given[index][1] > given[index][0] else near[-1]] += score
    return result
