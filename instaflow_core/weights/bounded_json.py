"""JSON out of files of unknown origin: no deeper, no larger and no other than what is asked for."""

import json
import math
from typing import Any, TypeVar

_MOST_VALUES = 2**18
"""Objects, lists and members; one takes up to 200 bytes of memory, however few it has in the file."""

Kind = TypeVar("Kind", dict[str, Any], list[Any])


def parse(text: str | bytes, kind: type[Kind]) -> Kind:
    """The JSON object or list in a text, UTF-8 where it is bytes.

    Raises ValueError, which says what is wrong and leaves it to the caller to say where: it is no JSON, or has NaN or
    an infinite number in it, is too deeply nested or too large, or is of another kind.
    """
    values = sum(text.count(sign) if isinstance(text, str) else text.count(sign.encode()) for sign in ",[{")
    if values > _MOST_VALUES:
        raise ValueError(f"is too large: about {values:,} values, where at most {_MOST_VALUES:,} can be meant")
    try:
        content = json.loads(text, parse_constant=_number, parse_float=_number)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(content, kind):
        raise ValueError(f"holds a {type(content).__name__}")
    return content


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number")
    return value
