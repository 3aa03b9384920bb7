"""Fuzz the readers of files: each target given bytes made from whole files, without an end or so many times.

    fuzz.py [TARGET ...] [--runs N] [--seed S] [--findings FOLDER] [--atheris]

With --atheris one target is fuzzed by the coverage of our code, where that package is installed; without, bytes are
changed at random, much faster than hypothesis does it in tests/security/test_fuzz.py. Bytes that do what none may do
are kept in the folder of findings; ends with 1 where there are any.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]
sys.path += [str(ROOT / "tests" / "support"), str(ROOT)]


def main() -> int:
    """The targets that the arguments name, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--runs", type=int, default=10_000, help="of each target (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage; one target")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.atheris:
        return _by_coverage(options)
    from fuzz_targets import TARGETS

    found = 0
    for name in options.targets or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            found += _at_random(name, options, Path(folder))
    return 1 if found else 0


def _at_random(name: str, options: argparse.Namespace, folder: Path) -> int:
    """So many runs of a target; how many findings. A corpus grows by what was taken: files that are whole in another
    way."""
    from fuzz_targets import TARGETS, Finding, check, warm

    target, chance = TARGETS[name], random.Random(f"{options.seed} {name}")
    words = [word.encode("latin-1") for word in target.words]
    corpus, began, taken, found = target.seeds(), time.monotonic(), 0, set[str]()
    warm(name, folder)
    for _ in range(options.runs):
        data = _changed(chance, corpus, words)
        try:
            if check(name, data, folder):
                taken += 1
                if len(corpus) < 200 and len(data) < 20_000:
                    corpus.append(data)
        except Finding as finding:
            if str(finding)[:80] not in found:
                found.add(str(finding)[:80])
                _keep(options.findings, name, data, finding)
    seconds = time.monotonic() - began
    print(f"{name:10} {options.runs:9,} runs {seconds:8.1f} s {taken:9,} taken {len(found):3} findings", flush=True)
    return len(found)


def _changed(chance: random.Random, corpus: list[bytes], words: list[bytes]) -> bytes:
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at, kind = chance.randint(0, len(data)), chance.randrange(6)
        if kind == 0 and at < len(data):
            data[at] = chance.randrange(256)
        elif kind == 1 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del data[at : at + chance.randint(1, 30)]
        elif kind == 3:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == 4 and words:
            data[at:at] = chance.choice(words)
        else:
            other = chance.choice(corpus)
            start = chance.randint(0, len(other))
            data[at : at + chance.randint(0, 30)] = other[start : start + chance.randint(1, 60)]
    return bytes(data)


def _keep(findings: Path, name: str, data: bytes, finding: Exception) -> None:
    findings.mkdir(parents=True, exist_ok=True)
    path = findings / f"{name}-{abs(hash(data)) % 10**8:08d}"
    path.write_bytes(data)
    print(f"{path}: {str(finding)[:400]}", flush=True)


def _by_coverage(options: argparse.Namespace) -> int:
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["instaflow_core"]):
        from fuzz_targets import TARGETS, check, warm
    (name,) = options.targets
    folder, corpus = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    for number, data in enumerate(TARGETS[name].seeds()):
        (corpus / str(number)).write_bytes(data)
    warm(name, folder)
    options.findings.mkdir(parents=True, exist_ok=True)
    kept = f"-artifact_prefix={options.findings}/{name}-"
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-runs={options.runs}", f"-seed={options.seed + 1}", "-timeout=20", kept],
        lambda data: check(name, data, folder) and None,
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
