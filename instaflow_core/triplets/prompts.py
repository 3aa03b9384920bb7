"""Prompts for triplets, from a file or from a dataset of the Hub."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from .tables import TABLES, cells, open_text, text_lines

COLUMNS = ("text", "caption", "TEXT", "prompt", "Prompt")
"""Columns that are taken for the prompt where none is named."""
_LONGEST = 2**16
"""Characters of a prompt; the text encoder reads the first few hundred."""


def read_prompts(source: str, count: int) -> list[str]:
    """Up to `count` prompts. Rows without a text are left out, and a line on stderr says how many there were.

    Args:
        source: a text file with a prompt a line (empty lines are left out), a data file (.parquet, .csv, .json, .jsonl)
            or a dataset of the Hugging Face Hub. `source:column` names the column; otherwise it is one of COLUMNS. Of
            a column of lists of texts the first one counts.

    Raises:
        ValueError: there is no such file or dataset, no such column, no text in it, or no prompt at all; the file is
            damaged, or a prompt is too long to be one.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() not in TABLES:
        with open_text(path) as text:
            prompts = [_sound(line, source) for line in islice(_stripped(text_lines(text)), max(count, 1))]
    else:
        prompts = [_sound(text, source) for text in islice(_told(_column(source), source), max(count, 1))]
    if not prompts:
        raise ValueError(f"{source} holds no prompts. Give a text file with one prompt a line, or another dataset.")
    return prompts


def _sound(text: str, source: str) -> str:
    if len(text) > _LONGEST:
        raise ValueError(
            f"A prompt of {source} has {len(text):,} characters ({text[:40]!r}…). Give at most {_LONGEST:,}."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"A prompt of {source} has half a character in it ({text[:40]!r}). Save it again.") from error
    return text


def lines(text: str) -> list[str]:
    """The lines of a text that are not empty; only a line feed or a carriage return ends one."""
    return list(_stripped(re.split(r"[\r\n]+", text)))


def _stripped(some: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in some if line.strip())


def with_empty(prompts: Sequence[str], count: int, share: float) -> list[str]:
    """The prompts of `count` triplets: those given, counted round, and between them, evenly, a share of empty ones."""
    turns = iter(range(count))
    empty = (int((i + 1) * share) > int(i * share) for i in range(count))
    return ["" if none else prompts[next(turns) % len(prompts)] for none in empty]


def _told(texts: Iterator[str | None], source: str) -> Iterator[str]:
    """Those that are texts; in the end a line says how many were not."""
    skipped = 0
    try:
        for text in texts:
            if text and text.strip():
                yield text
            else:
                skipped += 1
    finally:
        if skipped:
            print(f"{source}: {skipped} rows have no text and were left out", file=sys.stderr)


def _column(source: str) -> Iterator[str | None]:
    """The texts of a table's or a dataset's column; None where a row has none."""
    name, column = source, ""
    if ":" in source[2:] and not Path(source).expanduser().exists():  # the second character's is a drive's
        name, _, column = source.rpartition(":")
    path = Path(name).expanduser()

    def choose(names: list[str]) -> str:
        chosen = column or next((known for known in COLUMNS if known in names), "")
        if not chosen or chosen not in names:
            listed = ", ".join(map(str, names[:20]))[:500]
            raise ValueError(
                f"{source} has the columns {listed or 'none at all'}, and none is "
                f"{column or ' or '.join(COLUMNS)}. Name one: {name}:COLUMN."
            )
        return chosen

    if path.suffix.lower() in TABLES:
        if not path.is_file():
            raise ValueError(f"There is no file {name}. Check the name, or give a dataset of the Hugging Face Hub.")
        found = cells(path, choose)
    elif path.exists() and not path.is_dir():
        raise ValueError(f"{name} is a pipe or a device. Give a text file with one prompt a line.")
    else:
        found = _hub_cells(name, choose)
    return (_text(value, source) for value in found)


def _hub_cells(name: str, choose: Callable[[list[str]], str]) -> Iterator[Any]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train", streaming=True)
    except Exception as error:  # the hub's library raises its own kinds for "not there", "no network", "gated", …
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name} is neither a file nor a dataset that can be read ({reason}). "
            "Give a text file with one prompt a line, or a dataset's name."
        ) from error
    column = choose(list(next(iter(rows), {})))
    return (row.get(column) for row in rows)


def _text(value: Any, source: str) -> str | None:
    """What a cell says, a list's first text; None where it says nothing."""
    if isinstance(value, list):
        value = next(iter(value), None)
    if isinstance(value, dict | bytes):
        kind = type(value).__name__
        raise ValueError(f"The column of {source} holds {kind}, not text. Name another: {source}:COLUMN.")
    missing = value is None or value != value  # a number that is missing is not a number
    return None if missing else str(value)
