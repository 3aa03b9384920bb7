"""What the scanners of node registries look for in a pack's Python and JavaScript, as far as it can be said in a table.

They match more loosely, by words; these look at what is called and imported, so that what is found is really there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CALLS = {
    "code execution": {"eval", "exec", "compile", "__import__", "runpy.run_path", "runpy.run_module"},
    "shell": {"os.system", "os.popen", "os.startfile", "pty.spawn"},
    "import by name": {"importlib.import_module", "importlib.reload"},
    "page opened": {"webbrowser.open"},
}
IMPORTS = {
    "subprocess": {"subprocess", "multiprocessing", "pexpect"},
    "network": {"socket", "ssl", "urllib", "urllib3", "http", "requests", "httpx", "aiohttp", "ftplib", "smtplib",
                "telnetlib", "websocket", "websockets", "paramiko", "huggingface_hub"},
    "pickle": {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"},
    "hidden text": {"base64", "binascii", "codecs", "zlib", "bz2", "lzma"},
    "native code": {"ctypes", "cffi"},
    "installer": {"pip", "ensurepip", "setuptools", "distutils"},
    "input devices": {"pynput", "keyboard", "pyperclip", "pyautogui", "winreg", "getpass"},
}  # fmt: skip
LONG_TEXT = re.compile(r"[A-Za-z0-9+/=]{200,}|(?:\\x[0-9a-f]{2}){30,}")
SCRIPTS = re.compile(r"\beval\(|new Function|innerHTML|insertAdjacentHTML|document\.write|https?://|\bimport\(")

Finding = tuple[str, str]
"""What was found, and in which file."""


def findings(root: Path) -> set[Finding]:
    """What the rules find in the files under a folder."""
    found = set()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".py":
            found |= {(rule, name) for rule in _in_python(path.read_text(encoding="utf-8"))}
        elif path.suffix in (".js", ".html", ".mjs"):
            found |= {("page script", name)} if SCRIPTS.search(path.read_text(encoding="utf-8")) else set()
        elif path.suffix.lower() in (".exe", ".dll", ".so", ".dylib", ".pyc", ".sh", ".bat", ".ps1", ".pkl"):
            found.add(("program", name))
    return found


def _in_python(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            yield from (rule for rule, names in CALLS.items() if called in names)
            if called.startswith(("os.exec", "os.spawn", "os.fork")):
                yield "shell"
            if called.endswith("torch.load") and not _says(node, "weights_only", True):
                yield "pickle"
            if _says(node, "trust_remote_code", True) or _says(node, "shell", True):
                yield "code execution"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            tops = {module.partition(".")[0] for module in modules} if not getattr(node, "level", 0) else set()
            yield from (rule for rule, names in IMPORTS.items() if tops & names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and LONG_TEXT.search(node.value):
            yield "hidden text"


def _says(call: ast.Call, name: str, value: object) -> bool:
    return any(
        word.arg == name and isinstance(word.value, ast.Constant) and word.value.value == value
        for word in call.keywords
    )
