"""Any bytes in place of a file: a value of the right kind, or one of our errors. A few hundred here, a million by
tests/security/fuzz.py; FUZZ_RUNS asks for more of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz_targets import FINDINGS, TARGETS, check, warm
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

_RUNS = int(os.environ.get("FUZZ_RUNS", "150"))


def changed(name: str) -> st.SearchStrategy[bytes]:
    """A whole file with some of its bytes taken out, and others or the words of its kind put in."""
    target = TARGETS[name]
    words = [word.encode("latin-1") for word in target.words] or [b"\x00"]
    put_in = st.one_of(st.binary(max_size=8), st.sampled_from(words))
    edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), put_in), max_size=4)

    def edited(whole: bytes, several: list[tuple[float, int, bytes]]) -> bytes:
        for share, length, new in several:
            at = int(share * len(whole))
            whole = whole[:at] + new + whole[at + length :]
        return whole

    return st.one_of(st.builds(edited, st.sampled_from(target.seeds()), edits), st.binary(max_size=200))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_a_value_or_an_error_of_ours(name: str, tmp_path: Path) -> None:
    warm(name, tmp_path)

    @seed(20)
    @settings(max_examples=_RUNS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changed(name))
    def run(data: bytes) -> None:
        check(name, data, tmp_path)

    run()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("found", sorted(FINDINGS.iterdir()), ids=lambda path: path.name)
def test_what_was_found_once_is_refused(found: Path, tmp_path: Path) -> None:
    name = found.name.partition("-")[0]
    warm(name, tmp_path)
    assert not check(name, found.read_bytes(), tmp_path)
