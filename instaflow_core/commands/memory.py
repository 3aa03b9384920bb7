"""What a command says where its memory does not suffice."""

import argparse

from ..memory import in_short

_SAVINGS = {
    "batch_size": "a smaller --batch-size",
    "accumulate": "a larger --accumulate",
    "size": "a smaller --size",
    "width": "a smaller --width and --height",
    "dtype": "--dtype bf16",
    "precision": "--precision bf16",
    "gradient_checkpointing": "--gradient-checkpointing",
    "optimizer": "--optimizer adamw8bit",
    "method": "--method lora",
}
"""Options by their names in a command's namespace, and what to give for less memory."""


def memory_advice(error: Exception, options: argparse.Namespace) -> str:
    """What was too much, where, and what this command can be given for less, in one line."""
    asked = vars(options)
    where = asked.get("device", "the machine")
    # `triplets` has gone down to one picture at a time by itself.
    savings = ", ".join(words for name, words in _SAVINGS.items() if name in asked and asked.get("tried") != name)
    advice = f"To need less, give {savings}; or" if savings else "To have more,"
    return f"the memory of {where} does not suffice ({in_short(error)}). {advice} end other programs there."
