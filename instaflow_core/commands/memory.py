"""What a command says where its memory does not suffice."""

import argparse
import re

import torch

_SAVINGS = {
    "batch_size": "a smaller --batch-size",
    "accumulate": "a larger --accumulate",
    "width": "a smaller --width and --height",
    "dtype": "--dtype bf16",
    "precision": "--precision bf16",
    "gradient_checkpointing": "--gradient-checkpointing",
    "optimizer": "--optimizer adamw8bit",
    "method": "--method lora",
}
"""Options by their names in a command's namespace, and what to give for less memory."""

# Only CUDA and XPU have a class of their own for it; Apple's MPS and the CPU's allocator raise RuntimeError.
_WORDS = re.compile("out of memory|DefaultCPUAllocator")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the machine has not enough memory."""
    own_class = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return own_class or (isinstance(error, RuntimeError) and bool(_WORDS.search(str(error))))


def memory_advice(error: Exception, options: argparse.Namespace) -> str:
    """What was too much, where, and what this command can be given for less, in one line."""
    asked = vars(options)
    where = asked.get("device", "the machine")
    savings = ", ".join(words for name, words in _SAVINGS.items() if name in asked)
    advice = f"To need less, give {savings}; or" if savings else "To have more,"
    # torch's own words go on for many sentences; the first two say how much was asked for and what is there.
    said = ". ".join(" ".join(str(error).split()).split(". ")[:2]).rstrip(".")
    return f"the memory of {where} does not suffice ({said or 'nothing is left'}). {advice} end other programs there."
