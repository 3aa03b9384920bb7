"""Stable Diffusion 1's tokenizer and text states, without a download."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MERGES = Path(__file__).parents[1] / "models" / "tokenizer" / "merges.txt"
MAX_TOKENS = 77


@lru_cache(maxsize=1)
def load_tokenizer() -> Any:
    """CLIP's tokenizer as Stable Diffusion 1 uses it: 49,408 tokens, 77 to a prompt, padded with the end token.

    The whole vocabulary follows from its merges: the 256 bytes, the same ending a word, one token a merge, and the
    two special tokens.
    """
    from transformers import CLIPTokenizer

    lines = MERGES.read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if not line.startswith("#version")]
    bytes_ = _byte_characters()
    words = [*bytes_, *(b + "</w>" for b in bytes_), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=merges,
        pad_token="<|endoftext|>",
        model_max_length=MAX_TOKENS,
    )


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte, in CLIP's order: printable bytes first, then the rest."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


@torch.no_grad()
def encode_prompts(text_encoder: Any, prompts: list[str]) -> Tensor:
    """The text states of the prompts, (B, 77, width): the last hidden state after the final layer norm.

    No attention mask is used, as in Stable Diffusion 1. Longer prompts are cut at 77 tokens.
    """
    tokens = load_tokenizer()(
        prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return text_encoder(tokens.to(text_encoder.device), return_dict=True).last_hidden_state
