"""What the numbers of a config may be. They are read before there is anything to compare them with: a config that asks
for a billion layers would take all memory just to list their names."""

from collections.abc import Mapping
from typing import Any

from .errors import FormatError

_WIDTH = 2**20

# name: (the most it may be, whether there may be a list of it, one for each level)
_COUNTS: dict[str, tuple[int, bool]] = {
    "attention_head_dim": (_WIDTH, True),
    "block_out_channels": (_WIDTH, True),
    "cross_attention_dim": (_WIDTH, False),
    "decoder_block_out_channels": (_WIDTH, True),
    "encoder_block_out_channels": (_WIDTH, True),
    "hidden_size": (_WIDTH, False),
    "in_channels": (_WIDTH, False),
    "intermediate_size": (_WIDTH, False),
    "latent_channels": (_WIDTH, False),
    "layers_per_block": (32, True),
    "max_position_embeddings": (_WIDTH, False),
    "norm_num_groups": (_WIDTH, False),
    "num_attention_heads": (_WIDTH, True),
    "num_decoder_blocks": (32, True),
    "num_encoder_blocks": (32, True),
    "num_hidden_layers": (128, False),
    "out_channels": (_WIDTH, False),
    "sample_size": (16384, True),
    "transformer_layers_per_block": (32, True),
    "vocab_size": (2**24, False),
}
_LEVELS = 8
_LISTS = ("down_block_types", "up_block_types")


def check_numbers(config: Mapping[str, Any], what: str) -> None:
    """Raise FormatError, calling the config `what`, where one of its numbers cannot be meant. None stands for what is
    left out."""
    for name, (most, several) in _COUNTS.items():
        value = config.get(name)
        if value is None:
            continue
        numbers = value if several and isinstance(value, list | tuple) else [value]
        if not 1 <= len(numbers) <= _LEVELS or not all(_is_count(number, most) for number in numbers):
            expected = f"a whole number from 1 to {most:,}" + (f", or up to {_LEVELS} of them" if several else "")
            raise _wrong(what, name, value, expected)
    for name in _LISTS:
        value = config.get(name, [""])
        if not isinstance(value, list | tuple) or not 1 <= len(value) <= _LEVELS:
            raise _wrong(what, name, value, f"a list of 1 to {_LEVELS} kinds of blocks")


def _is_count(number: Any, most: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= most


def _wrong(what: str, name: str, value: Any, expected: str) -> FormatError:
    # Of a list of a million only the beginning is put into words.
    shown = repr(value[:3] if isinstance(value, list | tuple | str) else value)[:60]
    count = f" ({len(value):,} of them)" if isinstance(value, list | tuple) and len(value) > 3 else ""
    return FormatError(
        f"The {what} says {name} = {shown}{count}", expected, "Get the config from where the weights came."
    )
