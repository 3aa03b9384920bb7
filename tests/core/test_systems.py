"""What runs in ComfyUI runs on Windows too: nothing in it is there on POSIX systems alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted([ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "instaflow_core").rglob("*.py")])

MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
# Not on Windows at all, or, as links, not for an ordinary user there. chmod, umask, fsync, set_wakeup_fd with a socket,
# SIGINT and SIGTERM are.
MEMBERS = {
    "os": {
        *("chown", "fchmod", "fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getloadavg", "getpgid"),
        *("getuid", "killpg", "link", "mkfifo", "nice", "register_at_fork", "sched_getaffinity", "setsid", "statvfs"),
        *("symlink", "sysconf", "uname", "wait", "waitid", "WEXITSTATUS"),
    },
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2"}
    | {"alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait"},
    "time": {"tzset"},
    "socket": {"AF_UNIX"},
}
METHODS = {"chown", "group", "hardlink_to", "lchmod", "owner", "symlink_to"}  # of pathlib's


def where_it_is_there(tree: ast.AST) -> set[ast.AST]:
    """The imports that are tried, and may fail."""
    tries = (node for node in ast.walk(tree) if isinstance(node, ast.Try))
    caught = (t for t in tries if any(ast.unparse(h.type) == "ImportError" for h in t.handlers if h.type))
    return {node for t in caught for node in t.body}


def posix_only(code: str) -> Iterator[str]:
    """What the code uses that Windows lacks, each with its line."""
    tree = ast.parse(code)
    tried = where_it_is_there(tree)
    for node in ast.walk(tree):
        names: list[str] = []
        if node in tried:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = node.module or ""
            whole = module.split(".")[0] in MODULES
            names = [f"{module}.{a.name}" for a in node.names if whole or a.name in MEMBERS.get(module, ())]
        elif isinstance(node, ast.Attribute):
            of = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in MEMBERS.get(of, ()) or (of not in MEMBERS and node.attr in METHODS):
                names = [f"{of}.{node.attr}"]
        yield from (f"{name} in line {node.lineno}" for name in names)


def test_nothing_shipped_is_there_on_posix_alone() -> None:
    assert len(SHIPPED) > 80
    assert {str(path): found for path in SHIPPED if (found := [*posix_only(path.read_text(encoding="utf-8"))])} == {}


@pytest.mark.parametrize(
    "code",
    ["import fcntl", "from os import fork", "import os\nos.getuid()", "signal.SIGKILL", "Path('a').symlink_to('b')"],
)
def test_the_scan_finds_what_windows_lacks(code: str) -> None:
    assert len([*posix_only(code)]) == 1


def test_every_file_read_or_written_as_text_names_its_encoding() -> None:
    """Windows would take the system's own."""
    unnamed = []
    for path in SHIPPED:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                named = any(keyword.arg == "encoding" for keyword in node.keywords)
                if name in ("read_text", "write_text") and not named:
                    unnamed.append(f"{path}:{node.lineno}")
    assert unnamed == []


def test_the_tests_of_the_core_begin_where_only_posix_modules_are_missing() -> None:
    """What tests/conftest.py imports of scripts/, which for the rest is for Linux and macOS."""
    # The standard library itself takes posix on such a system.
    missing = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(MODULES - {'posix'})})); import comfy_server, devhost"
    )
    subprocess.run([sys.executable, "-c", missing], cwd=ROOT / "scripts", check=True)


@pytest.mark.slow
def test_a_folder_with_spaces_and_other_letters_will_do(tmp_path: Path) -> None:
    out = tmp_path / "My Pictures (1) é" / "a star.png"
    program = [sys.executable, "-m", "instaflow_core", "generate", "--prompt", "a red star", "--device", "cpu"]
    subprocess.run([*program, "--out", str(out)], cwd=ROOT, check=True)
    assert out.is_file()
