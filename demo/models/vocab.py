"""Tokenizers of the real classes, made on the spot from a short text, without downloads.

The byte pairs are counted here and not by the `tokenizers` trainers, because those break ties in an order that differs
from run to run, and the files are to be the same bytes every time.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTokenizer, T5TokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

#: Longest prompt in tokens, as in every real CLIP text encoder.
CLIP_LENGTH = 77
CLIP_MERGES = 200

TEXT = """
a photo of a red cat on a green chair in a small garden with a blue dog beside it. a drawing of an old house near the
sea at night, the moon and many stars above the water. a portrait of a woman with a yellow hat, soft light, sharp
detail, oil painting on canvas. a knight rides a white horse over the hill toward a castle under a dark sky. a robot
makes tea for two birds in a bright kitchen. low quality, blurry, noise, dark, bad hands, watermark, text. a bowl of
fruit with apples and pears, still life, warm colours, masterpiece, best quality, highly detailed, sunset, forest.
"""


def _words() -> Counter[str]:
    return Counter(TEXT.replace(".", " .").replace(",", " ,").split())


def _merges(count: int) -> list[tuple[str, str]]:
    """The `count` most frequent byte pairs, found one after the other; a tie goes to the lower pair."""
    words = {(*word[:-1], word[-1] + "</w>"): number for word, number in _words().items()}
    found: list[tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, number in words.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += number
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        words = {_merged(symbols, best): number for symbols, number in words.items()}
    return found


def _merged(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def write_clip(folder: Path, pad: str = "<|endoftext|>") -> int:
    """Write a `CLIPTokenizer` to `folder` and return the number of its tokens.

    SDXL's and SD3's second tokenizer pads with "!" where the first pads with the end token.
    """
    alphabet = list(bytes_to_unicode().values())
    merges = _merges(CLIP_MERGES)
    tokens = [*alphabet, *(char + "</w>" for char in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocab, rules = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    rules.write_text("\n".join(lines) + "\n", encoding="utf-8")
    CLIPTokenizer(str(vocab), str(rules), pad_token=pad, model_max_length=CLIP_LENGTH).save_pretrained(str(folder))
    return len(tokens)


def write_t5(folder: Path) -> int:
    """Write a `T5TokenizerFast` (a unigram model) to `folder` and return the number of its tokens."""
    words = _words()
    total = sum(words.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [("▁" + word, math.log(number / total)) for word, number in sorted(words.items())]
    # Single characters make every text expressible; their low score leaves them as the last resort.
    pieces += [(char, -12.0) for char in dict.fromkeys("▁abcdefghijklmnopqrstuvwxyz0123456789.,:;!?-'()<>")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512).save_pretrained(str(folder))
    return len(pieces)
