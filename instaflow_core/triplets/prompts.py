"""Prompts for triplets, from a file or from a 🤗 dataset."""

from itertools import islice
from pathlib import Path
from typing import Any

COLUMNS = ("text", "caption", "TEXT", "prompt", "Prompt")
"""Columns that are taken for the prompt where none is named."""


def read_prompts(source: str, count: int) -> list[str]:
    """Up to `count` prompts.

    Args:
        source: a text file with a prompt a line (empty lines are left out), a data file (.parquet, .csv, .json, .jsonl)
            or a dataset of the Hugging Face Hub. `source:column` names the column; otherwise it is one of COLUMNS.

    Raises:
        ValueError: there is no such file or dataset, no such column, or no prompt in it.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix not in _BUILDERS:
        prompts = lines(path.read_text(encoding="utf-8"))
    else:
        prompts = list(islice(_column(source), count))
    if not prompts:
        raise ValueError(f"{source} holds no prompts. Give a text file with one prompt a line, or another dataset.")
    return prompts[:count]


def lines(text: str) -> list[str]:
    """The lines of a text that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def _column(source: str) -> Any:
    from datasets import load_dataset

    name, column = source, ""
    if ":" in source and not Path(source).expanduser().exists():
        name, _, column = source.rpartition(":")
    path = Path(name).expanduser()
    if path.suffix in _BUILDERS:
        if not path.is_file():
            raise ValueError(f"There is no file {name}. Check the name, or give a dataset of the Hugging Face Hub.")
        rows = load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=True)
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
    return (str(row[column]) for row in rows)
