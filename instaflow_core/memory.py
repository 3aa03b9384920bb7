"""Which errors say that the memory of a device, or of the machine, does not suffice."""

import re

import torch

# Only CUDA and XPU have a class of their own for it; Apple's MPS and the CPU's allocator raise RuntimeError.
_WORDS = re.compile("out of memory|DefaultCPUAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has not enough memory."""
    own_class = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return own_class or (isinstance(error, RuntimeError) and bool(_WORDS.search(str(error))))


def in_short(error: BaseException) -> str:
    """What such an error says of how much was asked for and what is there: torch's own words go on for many sentences,
    and the first two say it."""
    return ". ".join(" ".join(str(error).split()).split(". ")[:2]).rstrip(".") or "nothing is left"
