"""Memory that does not suffice: another try that needs less, or the host's own error with what to lower."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import comfy.model_management

from ...instaflow_core.memory import in_short, is_out_of_memory

FEWER_PICTURES = "Give `latent_image` fewer pictures at once, or smaller ones."
_log = logging.getLogger(__name__)
_Made = TypeVar("_Made")


def computing_device() -> str:
    """Where the host computes, as PyTorch names it."""
    return str(comfy.model_management.get_torch_device())


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Where the memory does not suffice, raise the error at which the host unloads all models, with this advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"The memory does not suffice ({in_short(error)}). {advice}"
        raise comfy.model_management.OOM_EXCEPTION(message) from error


def with_fewer_at_once(parts: Sequence[int], work: Callable[[int], _Made], advice: str) -> _Made:
    """work(parts[0]); where the memory does not suffice, the next number of parts, each of which then needs less.

    Raises:
        OOM_EXCEPTION: it does not suffice for the last number either; with this advice.
    """
    for number in parts[:-1]:
        try:
            return work(number)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _log.warning("The memory does not suffice in %d parts (%s): now in more.", number, in_short(error))
        gc.collect()  # after the error, which holds what the memory is full of
        comfy.model_management.soft_empty_cache()
    with advising(advice):
        return work(parts[-1])
