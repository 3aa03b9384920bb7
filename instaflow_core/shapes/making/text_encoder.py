"""Training the built-in text encoder: its last state must tell what the caption says."""

import torch
from torch import Tensor, nn

from ...flow.noise import indexed_generator
from ...text import MAX_TOKENS, load_tokenizer
from ...training.batches import BatchPart
from ..captions import COLORS, PLACES, SHAPES, SIZES, Caption, all_captions
from .anatomy import TEXT_CONFIG

ATTRIBUTES: dict[str, tuple[str | None, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "background": tuple(COLORS),
    "size": (None, *SIZES),
    "place": (None, *PLACES),
}


class CaptionReader(nn.Module):
    """The text encoder with a linear reader for each attribute, at the end token and at every token after it."""

    def __init__(self, text_encoder: nn.Module):
        super().__init__()
        self.text_encoder = text_encoder
        self.readers = nn.ModuleDict(
            {name: nn.Linear(TEXT_CONFIG["hidden_size"], len(values)) for name, values in ATTRIBUTES.items()}
        )

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        states = self.text_encoder(tokens, return_dict=True).last_hidden_state
        return {name: reader(states) for name, reader in self.readers.items()}


class CaptionBatches:
    """(Step, part) -> (tokens (B, 77), attribute indices (B, 5)) of training captions."""

    def __init__(self, batch_size: int, seed: int):
        captions = all_captions(held_out=False)
        self.tokens = load_tokenizer()(
            [str(c) for c in captions], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
        ).input_ids
        self.attributes = torch.tensor([_indices(c) for c in captions])
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, step: int, part: BatchPart) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(self.tokens), (self.batch_size,), generator=indexed_generator(self.seed, step))
        index = index[part.rows(self.batch_size)]
        return self.tokens[index], self.attributes[index]


def reading_loss(reader: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of every attribute, averaged over the end tokens, which pad the caption to 77."""
    tokens, attributes = batch
    ended = (tokens == TEXT_CONFIG["eos_token_id"]).float()
    total = torch.zeros((), device=tokens.device)
    for column, logits in enumerate(reader(tokens).values()):
        target = attributes[:, column, None].expand_as(tokens)
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
        total = total + (loss * ended).sum() / ended.sum()
    return total


def _indices(caption: Caption) -> list[int]:
    return [values.index(getattr(caption, name)) for name, values in ATTRIBUTES.items()]
