"""Prompts for triplets, from a file or from a 🤗 dataset."""

import glob
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

COLUMNS = ("text", "caption", "TEXT", "prompt", "Prompt")
"""Columns that are taken for the prompt where none is named."""
_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def read_prompts(source: str, count: int) -> list[str]:
    """Up to `count` prompts. Rows without a text are left out, and a line on stderr says how many there were.

    Args:
        source: a text file with a prompt a line (empty lines are left out), a data file (.parquet, .csv, .json, .jsonl)
            or a dataset of the Hugging Face Hub. `source:column` names the column; otherwise it is one of COLUMNS. Of
            a column of lists of texts the first one counts.

    Raises:
        ValueError: there is no such file or dataset, no such column, no text in it, or no prompt at all.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() not in _BUILDERS:
        prompts = lines(_decoded(path))
    else:
        prompts = list(islice(_told(_column(source), source), count))
    if not prompts:
        raise ValueError(f"{source} holds no prompts. Give a text file with one prompt a line, or another dataset.")
    return prompts[:count]


def lines(text: str) -> list[str]:
    """The lines of a text that are not empty; only a line feed or a carriage return ends one."""
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def with_empty(prompts: Sequence[str], count: int, share: float) -> list[str]:
    """The prompts of `count` triplets: those given, counted round, and between them, evenly, a share of empty ones."""
    turns = iter(range(count))
    empty = (int((i + 1) * share) > int(i * share) for i in range(count))
    return ["" if none else prompts[next(turns) % len(prompts)] for none in empty]


def _decoded(path: Path) -> str:
    """A text file as Windows may have written it: UTF-8 with or without its mark, or UTF-16 with one."""
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error.reason}). Save it as UTF-8.") from error


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
    """The texts of a dataset's column; None where a row has none."""
    from datasets import load_dataset

    name, column = source, ""
    if ":" in source[2:] and not Path(source).expanduser().exists():  # the second character's is a drive's
        name, _, column = source.rpartition(":")
    path = Path(name).expanduser()
    if path.suffix.lower() in _BUILDERS:
        if not path.is_file():
            raise ValueError(f"There is no file {name}. Check the name, or give a dataset of the Hugging Face Hub.")
        files = glob.escape(str(path.absolute()))
        rows = load_dataset(_BUILDERS[path.suffix.lower()], data_files=files, split="train", streaming=True)
    else:
        try:
            rows = load_dataset(name, split="train", streaming=True)
        except Exception as error:  # the hub's library raises its own kinds for "not there", "no network", "gated", …
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{name} is neither a file nor a dataset that can be read ({reason}). "
                "Give a text file with one prompt a line, or a dataset's name."
            ) from error
    names = list(next(iter(rows), {}))
    if not column:
        column = next((c for c in COLUMNS if c in names), "")
    if column not in names:
        raise ValueError(
            f"{source} has the columns {', '.join(names) or 'none at all'}, and none is "
            f"{column or ' or '.join(COLUMNS)}. Name one: {name}:COLUMN."
        )
    return (_text(row.get(column), column) for row in rows)


def _text(value: Any, column: str) -> str | None:
    """What a cell says, a list's first text; None where it says nothing."""
    if isinstance(value, list):
        value = next(iter(value), None)
    if isinstance(value, dict | bytes):
        raise ValueError(f"The column {column} holds {type(value).__name__}, not text. Name another: SOURCE:COLUMN.")
    missing = value is None or value != value  # a number that is missing is not a number
    return None if missing else str(value)
