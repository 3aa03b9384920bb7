"""One column of a file of data: .csv, .json (a list, or an object a line) or .parquet.

Row by row, so that of a large file no more is in memory than what is asked for, and nothing that a file says of itself
is followed: a library that knows pictures and archives would open whatever a row names.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

Choose = Callable[[list[str]], str]
"""From the names of a table's columns to the one that is meant; ValueError where it is none of them."""

_LONGEST_ROW = 2**20
"""Characters."""


@contextmanager
def open_text(path: Path) -> Iterator[TextIOWrapper]:
    """A text file as Windows may have written it: UTF-8 with or without its mark, or UTF-16 with one.

    Raises ValueError where it is another encoding, also while it is read.
    """
    with path.open("rb") as file:
        encoding = "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        with path.open(encoding=encoding, newline=None) as text:
            yield text
    except UnicodeError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"{path} is not a text file in UTF-8 ({reason}). Save it as UTF-8.") from error


def text_lines(text: TextIOWrapper) -> Iterator[str]:
    """Its lines; ValueError where one is too long to be one."""
    number = 0
    while line := text.readline(_LONGEST_ROW + 1):
        number += 1
        if len(line) > _LONGEST_ROW:
            raise ValueError(
                f"{text.name}, line {number}, is longer than {_LONGEST_ROW:,} characters. It is no prompt."
            )
        yield line


def cells(path: Path, choose: Choose) -> Iterator[Any]:
    """The cells of one column, from the first row on; None where a row has none.

    Raises:
        ValueError: the file is damaged, or not what its name says, or `choose` says so.
    """
    return TABLES[path.suffix.lower()](path, choose)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of parsers as one that names the file."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, ValueError, OSError, csv.Error, RecursionError) as error:
        # What `open_text` puts into words, and what is no damage but a disk that fails.
        in_text = isinstance(error, UnicodeError) and path.suffix.lower() != ".parquet"
        if in_text or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ValueError(
            f"{path} is damaged, or no {path.suffix} file ({reason}). Save it again, or give a text file with one "
            "prompt a line."
        ) from error


def _csv_cells(path: Path, choose: Choose) -> Iterator[str | None]:
    with open_text(path) as text:
        rows = csv.reader(text_lines(text))
        with _reading(path):
            names = next(rows, [])
        place = names.index(choose(names))
        while True:
            with _reading(path):
                row = next(rows, None)
            if row is None:
                return
            if row:
                yield row[place] if place < len(row) else None


def _json_cells(path: Path, choose: Choose) -> Iterator[Any]:
    with open_text(path) as text:
        rows, column = _json_rows(text), ""
        while True:
            with _reading(path):
                row = next(rows, None)
                if row is not None and not isinstance(row, dict):
                    raise ValueError(f"a row is a {type(row).__name__} and no object")
            if row is None:
                return
            column = column or choose(list(row))
            yield row.get(column)


_BETWEEN = re.compile(r"[\s,]*")


def _json_rows(text: TextIOWrapper) -> Iterator[Any]:
    """The values of a list, or those that stand one after another; ValueError where that is no JSON."""
    decoder, held, at, in_list, begun = json.JSONDecoder(), "", 0, False, False
    while True:
        found = _BETWEEN.match(held, at)
        at = found.end() if found else at
        more = ""
        if at < len(held) and not begun:
            begun, in_list = True, held[at] == "["
            at += in_list
            continue
        if at < len(held) and in_list and held[at] == "]":
            return
        if at < len(held):
            try:
                row, end = decoder.raw_decode(held, at)
            except ValueError:
                if len(held) - at > _LONGEST_ROW:
                    raise
                more = text.read(_LONGEST_ROW)
                if not more:
                    raise
            else:
                if end < len(held) or not (more := text.read(_LONGEST_ROW)):
                    at = end
                    if row is None:
                        raise ValueError("a row is null")
                    yield row
                    continue
        else:
            more = text.read(_LONGEST_ROW)
            if not more and in_list:
                raise ValueError("it ends within a list")
            if not more:
                return
        held, at = held[at:] + more, 0


def _parquet_cells(path: Path, choose: Choose) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(path):
        bounds = {"thrift_string_size_limit": 2**24, "thrift_container_size_limit": 2**20}
        schema = pq.read_schema(path)
    column = choose(schema.names)
    with _reading(path):
        # A text that stands in many rows is held once.
        repeated = [column] if schema.field(column).type in (pa.string(), pa.large_string()) else None
        parquet = pq.ParquetFile(path, read_dictionary=repeated, pre_buffer=False, **bounds)
    with parquet:
        batches = parquet.iter_batches(256, columns=[column], use_threads=False)
        while True:
            with _reading(path):
                batch = next(batches, None)
                values = iter(batch.column(0)) if batch is not None and batch.num_columns else None
            if values is None:
                return
            for value in values:
                with _reading(path):
                    cell = value.as_py()
                yield cell


TABLES: dict[str, Callable[[Path, Choose], Iterator[Any]]] = {
    ".csv": _csv_cells,
    ".json": _json_cells,
    ".jsonl": _json_cells,
    ".parquet": _parquet_cells,
}
"""What the names of tables end in, in any case."""
