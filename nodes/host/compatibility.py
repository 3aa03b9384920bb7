"""What newer hosts take and older ones do not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def call_supported(function: Callable[..., Any], *args: Any, **newer: Any) -> Any:
    """Call a host function, leaving out the keywords that only newer hosts take."""
    known = inspect.signature(function).parameters
    return function(*args, **{name: value for name, value in newer.items() if name in known})
