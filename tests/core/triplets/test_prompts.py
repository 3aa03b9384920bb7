"""Prompts from files as people have them: every kind, missing captions, other systems' encodings."""

import json
import re
import socket

import pandas
import pytest

from instaflow_core.triplets.prompts import lines, read_prompts, with_empty


def test_prompts_come_from_any_column(tmp_path):
    (tmp_path / "data.csv").write_text("caption,other\none,1\ntwo,2\n")
    assert read_prompts(str(tmp_path / "data.csv"), 5) == ["one", "two"]
    assert read_prompts(str(tmp_path / "data.csv:other"), 1) == ["1"]
    with pytest.raises(ValueError, match="has the columns caption, other, and none is third"):
        read_prompts(str(tmp_path / "data.csv:third"), 1)
    with pytest.raises(ValueError, match="There is no file"):
        read_prompts(str(tmp_path / "none.csv:third"), 1)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(str(tmp_path / "empty.txt"), 1)


def test_rows_without_a_text_are_left_out_and_counted(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("id,text\n1,a red circle\n2,\n3,a blue star\n")
    assert read_prompts(str(tmp_path / "a.csv"), 5) == ["a red circle", "a blue star"]
    assert "a.csv: 1 rows have no text and were left out" in capsys.readouterr().err
    rows = [{"text": "one"}, {"text": None}, {"text": "  "}, {"text": "two"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_prompts(str(tmp_path / "b.jsonl"), 2) == ["one", "two"]
    assert "b.jsonl: 2 rows" in capsys.readouterr().err


def test_of_several_captions_the_first_counts_and_what_is_no_text_is_refused(tmp_path):
    rows = [{"text": ["a cat", "one cat"], "more": {"a": 1}}, {"text": ["a dog"], "more": {"a": 2}}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert read_prompts(str(path), 5) == ["a cat", "a dog"]
    with pytest.raises(ValueError, match=r"The column of .*a.jsonl:more holds dict, not text"):
        read_prompts(f"{path}:more", 5)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_files_as_windows_writes_them(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("ein roter Kreis\r\n\r\nгрün\r\n".encode(encoding))
    assert read_prompts(str(tmp_path / "a.txt"), 5) == ["ein roter Kreis", "грün"]


def test_another_encoding_is_refused_with_advice(tmp_path):
    (tmp_path / "a.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(ValueError, match="is not a text file in UTF-8"):
        read_prompts(str(tmp_path / "a.txt"), 5)


def test_a_drive_letter_is_no_dataset_and_the_rest_no_column():
    for source in (r"C:\my prompts\none.csv", r"C:\my prompts\none.csv:caption", "D:none.csv"):
        with pytest.raises(ValueError, match=f"There is no file {re.escape(source.removesuffix(':caption'))}\\."):
            read_prompts(source, 1)


def test_only_line_ends_end_a_prompt():
    assert lines("one\u2028still\x0cone\r\ntwo\rthree\n") == ["one\u2028still\x0cone", "two", "three"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_a_file_of_data_asks_no_other_machine(tmp_path, kind, monkeypatch):
    """Neither for its format nor to be counted."""
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *name, **_: asked.append(name) or [])
    frame = pandas.DataFrame({"text": ["one", "two"]})
    path = tmp_path / f"a.{kind}"
    if kind in ("json", "jsonl"):
        frame.to_json(path, orient="records", lines=kind == "jsonl")
    else:
        getattr(frame, f"to_{kind}")(path)
    assert read_prompts(str(path), 5) == ["one", "two"]
    assert not asked


def test_names_with_brackets_and_in_capitals(tmp_path):
    folder = tmp_path / "data [v2]"
    folder.mkdir()
    (folder / "C.CSV").write_text("text\none\n")
    assert read_prompts(str(folder / "C.CSV"), 5) == ["one"]


@pytest.mark.parametrize("prompts", [["a", "b", "c"], list("abcdefghij")])
def test_a_share_of_the_prompts_is_empty_and_none_of_the_others_is_passed_over(prompts):
    made = with_empty(prompts, 100, 0.1)
    assert [i for i, prompt in enumerate(made) if not prompt] == list(range(9, 100, 10))
    assert [prompt for prompt in made if prompt] == [prompts[i % len(prompts)] for i in range(90)]
