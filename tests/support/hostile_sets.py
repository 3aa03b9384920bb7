"""Sets of triplets, files of prompts and checkpoints of trainings that lie."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from instaflow_core.triplets.format import SetInfo
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetWriter

SHAPE = (4, 2, 2)
SHARD = "shard-000001.parquet"

Change = Callable[[Path], None]
"""Makes something in a folder with a sound set a lie."""
Row = tuple[Change, str]


def new_set(folder: Path) -> None:
    """Eight triplets in two shards."""
    info = SetInfo(8, 5, SHAPE, shard_size=4, source={"teacher": "test"})
    SetWriter(Storage(folder), info).write(["a red circle", "a star"], lambda _, noise: noise, 4)


def _said(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "set.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _info(content: str | bytes) -> Change:
    return lambda folder: (
        (folder / "set.json").write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def _shard(content: bytes) -> Change:
    return lambda folder: (folder / SHARD).write_bytes(content) and None


def _cut(length: int) -> Change:
    return lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:length]) and None


def _flipped(folder: Path) -> None:
    """Its numbers written over, its footer as it was."""
    content = bytearray((folder / SHARD).read_bytes())
    content[4:60] = b"\xff" * 56
    (folder / SHARD).write_bytes(content)


def _table(change: Callable[[pa.Table], pa.Table], **options: Any) -> Change:
    def changed(folder: Path) -> None:
        table = change(pq.read_table(folder / SHARD))
        (folder / SHARD).unlink()
        pq.write_table(table, folder / SHARD, **options)

    return changed


def _column(name: str, values: Any) -> Change:
    return _table(lambda table: table.set_column(table.column_names.index(name), name, values))


def _latents(width: int, value: float | None = 0.0, kind: Any = None) -> Any:
    return pa.array([[value] * width] * 4, type=pa.list_(kind or pa.float16(), width))


def _pipe(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def _other_shard(folder: Path) -> None:
    (folder / SHARD).write_bytes((folder / "shard-000000.parquet").read_bytes())


def _extension(table: pa.Table) -> pa.Table:
    """A column of a type that Arrow once made by unpickling what the file says."""
    pickled = b"\x80\x02cos\nmkdir\n(X\x01\x00\x00\x00xtR."
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled}
    field = pa.field("evil", pa.int64(), metadata=metadata)
    return table.append_column(field, pa.array([0] * len(table), pa.int64()))


SETS: dict[str, Row] = {
    "no text": (_info(""), r"set\.json is not JSON"),
    "a page": (_info("<html>"), r"set\.json is not JSON"),
    "a list": (_info("[]"), r"set\.json holds a list"),
    "bytes that are no text": (_info(b"\xff\xfe\x00"), r"set\.json is not JSON"),
    "nested 100,000 deep": (_info("[" * 100_000), r"set\.json is nested too deeply|is not JSON"),
    "two megabytes": (_info(b" " * 2**21 + b"{}"), r"set\.json has 2,097,154 bytes"),
    "an entry missing": (_info('{"count": 8}'), r"set\.json has the entries 'count'"),
    "an entry too many": (_said(evil=1), r"set\.json has the entries .*'evil'"),
    "a set that is a pipe": (_pipe("set.json"), r"set\.json is no file but a other"),
    "10^18 triplets": (_said(count=10**18), "says count = 1000000000000000000"),
    "ten billion triplets": (_said(count=10**10), r"lacks 2499999998 of 2500000000 shards"),
    "minus one triplet": (_said(count=-1), "says count = -1"),
    "no triplets": (_said(count=0), "says count = 0"),
    "half a triplet": (_said(count=0.5), r"says count = 0\.5"),
    "a true count": (_said(count=True), "says count = True"),
    "a count in a text": (_said(count="8"), "says count = '8'"),
    "NaN triplets": (_info('{"count": NaN}'), r"set\.json is not JSON \(NaN"),
    "a seed of 2^64": (_said(seed=2**64), "says seed = 18446744073709551616"),
    "a negative seed": (_said(seed=-1), "says seed = -1"),
    "shards of nothing": (_said(shard_size=0), "says shard_size = 0"),
    "a shard of all": (_said(shard_size=10**9, count=10**9), "too many for one file"),
    "a shape that is a number": (_said(latent_shape=4), "says latent_shape = 4"),
    "a shape of one side": (_said(latent_shape=[4]), r"says latent_shape = \[4\]"),
    "a shape of a negative side": (_said(latent_shape=[4, -2, 2]), "says latent_shape = "),
    "a shape of a million sides": (_said(latent_shape=[1] * 10**5), "says latent_shape = "),
    "a shape that overflows": (_said(latent_shape=[4, 2**62, 2]), "says latent_shape = "),
    "a source that is a list": (_said(source=[]), "says source = "),
    "another shape": (_said(latent_shape=[4, 2, 3]), "has the columns .*16], and not"),
    "another seed": (_said(seed=6), "is of another seed than 6"),
    "other shards": (_said(shard_size=3, count=6), "has 4 rows"),
    "a shard that is empty": (_shard(b""), SHARD),
    "a shard that is a page": (_shard(b"<!DOCTYPE html>" + bytes(100)), SHARD),
    "a shard that is zeros": (_shard(bytes(1000)), SHARD),
    "a shard that is cut": (_cut(300), SHARD),
    "a shard that is cut within its footer": (_cut(-3), SHARD),
    "a shard whose numbers are damaged": (_flipped, SHARD),
    "a shard that is a pipe": (_pipe(SHARD), f"{SHARD} is no file but a other"),
    "a shard that is another": (_other_shard, "has other triplets than 4 to 7"),
    "rows missing": (_table(lambda table: table.slice(0, 3)), "has 3 rows"),
    "rows too many": (_table(lambda table: pa.concat_tables([table, table])), "has 8 rows"),
    "no rows": (_table(lambda table: table.slice(0, 0)), "has 0 rows"),
    "rows in another order": (_table(lambda table: table.take([3, 2, 1, 0])), "has other triplets"),
    "a column missing": (_table(lambda table: table.drop(["text"])), "has the columns index"),
    "a column too many": (_table(lambda table: table.append_column("x", pa.array([1] * 4))), "has the columns"),
    "an extension type with a pickle": (_table(_extension), "has the columns .*evil"),
    "indices in texts": (_column("index", pa.array(list("abcd"))), "has the columns index string"),
    "no indices": (_column("index", pa.array([None] * 4, pa.int64())), "has rows without index"),
    "texts in bytes": (_column("text", pa.array([b"\x80\x02."] * 4)), "text binary"),
    "texts that are null": (_column("text", pa.array([None] * 4, pa.string())), "has rows without text"),
    "latents of another length": (_column("latent", _latents(17)), "has the columns"),
    "latents in float64": (_column("latent", _latents(16, kind=pa.float64())), "has the columns"),
    "latents that are null": (
        _column("latent", pa.array([None] * 4, pa.list_(pa.float16(), 16))),
        "has rows without latent",
    ),
    "latents with a null": (_column("latent", _latents(16, None)), "has latents without some of their numbers"),
    "latents that are NaN": (_column("latent", _latents(16, float("nan"))), "NaN or infinite"),
    "latents that are infinite": (_column("latent", _latents(16, float("inf"))), "NaN or infinite"),
    "a shard of one row to a group": (_table(lambda table: table.slice(0, 3), row_group_size=1), "has 3 rows"),
    "a shard that unpacks to 4 MB of text": (_column("text", pa.array(["a" * 2**20] * 4)), "would unpack to"),
}
"""What a set that lies is told by."""


def _written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


def _parquet(table: Callable[[Path], pa.Table], **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pq.write_table(table(folder), folder / "prompts.parquet", **options)
        return folder / "prompts.parquet"

    return make


def _image(folder: Path) -> pa.Table:
    """A column that the `datasets` library takes for pictures, and opens the paths of."""
    outside = folder.parent / "secret.png"
    outside.write_bytes(b"a secret")
    features = {"info": {"features": {"text": {"_type": "Image"}}}}
    table = pa.table({"text": pa.array([{"bytes": None, "path": str(outside)}])})
    return table.replace_schema_metadata({"huggingface": json.dumps(features)})


PROMPTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an empty text": (_written("prompts.txt", ""), "holds no prompts"),
    "spaces": (_written("prompts.txt", " \n\t\n"), "holds no prompts"),
    "a picture": (_written("prompts.txt", b"\x89PNG\r\n\x1a\n\x00\xff"), "not a text file in UTF-8"),
    "half UTF-16": (_written("prompts.txt", b"\xff\xfea"), "not a text file in UTF-8"),
    "a line of 3 MB": (_written("prompts.txt", "a" * 3 * 2**20), "line 1, is longer than"),
    "a prompt of 100,000 characters": (_written("prompts.txt", "a" * 100_000), "has 100,000 characters"),
    "an empty table": (_written("prompts.csv", ""), "has the columns none at all"),
    "a table without a caption": (_written("prompts.csv", "a,b\n1,2\n"), "has the columns a, b"),
    "a field of 200,000 characters": (_written("prompts.csv", "text\n" + "a" * 200_000), "is damaged, or no .csv"),
    "a quote without an end": (_written("prompts.csv", 'text\n"' + "a\n" * 200_000), "is damaged, or no .csv"),
    "a million columns": (_written("prompts.csv", "a," * 500_000 + "\n1"), "has the columns a, a"),
    "a table in Latin-1": (_written("prompts.csv", b"text\ngr\xfcn\n"), "not a text file in UTF-8"),
    "gzip for a table": (_written("prompts.csv", b"\x1f\x8b\x08\x00" + bytes(20)), "not a text file|columns"),
    "JSON that is none": (_written("prompts.json", "hello"), "is damaged, or no .json file"),
    "JSON cut within": (_written("prompts.json", '[{"text": "a"}, {"te'), "is damaged, or no .json file"),
    "JSON without its end": (_written("prompts.json", '[{"text": "a"}'), "is damaged, or no .json file"),
    "JSON of numbers": (_written("prompts.json", "[1, 2]"), "a row is a int"),
    "JSON nested 100,000 deep": (_written("prompts.jsonl", '{"text":' + "[" * 100_000), "is damaged, or no .jsonl"),
    "JSON of 2 million lists": (_written("prompts.jsonl", '{"text":[' + "[]," * 2_000_000), "is damaged, or no .jsonl"),
    "half a character": (_written("prompts.jsonl", '{"text": "a \\ud800 b"}'), "has half a character"),
    "objects for texts": (_written("prompts.jsonl", '{"text": {"a": 1}}'), "holds dict, not text"),
    "a Parquet file that is none": (_written("prompts.parquet", b"PAR1" + bytes(50)), "is damaged, or no .parquet"),
    "a Parquet file that is empty": (_written("prompts.parquet", b""), "is damaged, or no .parquet"),
    "bytes for texts": (_parquet(lambda _: pa.table({"text": [b"\x80\x02."]})), "holds bytes, not text"),
    "texts that are no UTF-8": (
        _parquet(lambda _: pa.table({"text": pa.array([b"a \xe7"]).view(pa.string())})),
        "is damaged, or no .parquet file",
    ),
    "pictures for texts": (_parquet(_image), "holds dict, not text"),
    "a text of 1 MB in a thousand rows": (
        _parquet(lambda _: pa.table({"text": ["a" * 2**20] * 1000}), compression="zstd"),
        "has 1,048,576 characters",
    ),
}
"""What a file of prompts that lies is told by."""


def _state(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def _hostile_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cos\nmkdir\n(X\x01\x00\x00\x00xtR.")
        archive.writestr("archive/version", b"3\n")


_FORMAT = {"format": 2}
_ALL = _FORMAT | {name: {} for name in ("settings", "origin", "by_time", "trained", "average", "optimizer", "schedule")}

STATES: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (lambda path: path.touch(), "is no checkpoint of a training"),
    "a raw pickle": (lambda path: path.write_bytes(b"\x80\x02cos\nsystem\n.") and None, "is no checkpoint"),
    "a page": (lambda path: path.write_bytes(b"<html>") and None, "is no checkpoint"),
    "a pipe": (lambda path: os.mkfifo(path), "is no checkpoint"),
    "a folder": (Path.mkdir, "is no checkpoint"),
    "a hostile pickle": (_hostile_zip, r"was not run, which asks for os\.mkdir"),
    "a list": (_state([1]), "holds a list"),
    "another format": (_state({"format": 1}), "of another version of this pack"),
    "a format that is a tensor": (_state({"format": torch.zeros(2)}), "of another version of this pack"),
    "nothing but its format": (_state(_FORMAT), "lacks settings, origin"),
    "steps in a text": (_state(_ALL | {"step": "5", "losses": []}), "lacks step"),
}
"""What a `state.pt` that lies is told by."""
