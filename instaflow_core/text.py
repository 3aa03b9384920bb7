"""Stable Diffusion 1's tokenizer and text states, without a download."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TOKENIZER = Path(__file__).parents[1] / "models" / "tokenizer"
"""CLIP's vocabulary and merges, as a folder that transformers and diffusers load."""
MAX_TOKENS = 77


@lru_cache(maxsize=1)
def load_tokenizer() -> Any:
    """CLIP's tokenizer as Stable Diffusion 1 uses it: 49,408 tokens, 77 to a prompt, padded with the end token."""
    # What transformers 4 calls CLIPTokenizer is another implementation, which cuts emoji and Chinese differently; in
    # transformers 5 both names are this one.
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(TOKENIZER, local_files_only=True)


@torch.no_grad()
def encode_prompts(text_encoder: Any, prompts: list[str]) -> Tensor:
    """The text states of the prompts, (B, 77, width): the last hidden state after the final layer norm.

    No attention mask is used, as in Stable Diffusion 1. Longer prompts are cut at 77 tokens.
    """
    tokens = load_tokenizer()(
        prompts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return text_encoder(tokens.to(text_encoder.device), return_dict=True).last_hidden_state
