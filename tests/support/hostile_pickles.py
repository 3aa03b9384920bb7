"""Pickles that would run something, one of each kind a scanner of pickles knows; none of them was ever meant to be run.

They are put together opcode by opcode, so that no module they name has to be there.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

Make = Callable[[Path, Path], None]
"""Writes a hostile file to the first path; run, it would make something at the second."""


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _call(module: str, name: str, *arguments: str) -> bytes:
    """Opcodes that leave module.name(*arguments) on the stack."""
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(map(_text, arguments)) + b"tR"


# What is called, with which arguments; CANARY and COMMAND stand for a path and a command that makes a file there.
CALLS: tuple[tuple[str, ...], ...] = (
    ("os", "system", "COMMAND"),
    ("posix", "system", "COMMAND"),
    ("nt", "system", "COMMAND"),
    ("os", "popen", "COMMAND"),
    ("os", "mkdir", "CANARY"),
    ("subprocess", "Popen", "COMMAND"),
    ("subprocess", "check_output", "COMMAND"),
    ("commands", "getoutput", "COMMAND"),
    ("builtins", "eval", "__import__('os').mkdir('CANARY')"),
    ("builtins", "exec", "__import__('os').mkdir('CANARY')"),
    ("builtins", "compile", "1", "x", "eval"),
    ("builtins", "getattr", "x", "y"),
    ("builtins", "open", "CANARY", "w"),
    ("builtins", "breakpoint"),
    ("builtins", "__import__", "antigravity"),
    ("__builtin__", "eval", "__import__('os').mkdir('CANARY')"),
    ("__builtin__", "apply", "x"),
    ("numpy.f2py.crackfortran", "getlincoef", "__import__('os').mkdir('CANARY')", "x"),
    ("numpy.f2py.crackfortran", "_eval_length", "__import__('os').mkdir('CANARY')", "x"),
    ("numpy.testing._private.utils", "runstring", "__import__('os').mkdir('CANARY')", "x"),
    ("cloudpickle.cloudpickle", "_make_function", "x"),
    ("cloudpickle.cloudpickle", "_builtin_type", "CodeType"),
    ("cloudpickle.cloudpickle", "subimport", "webbrowser"),
    ("types", "CodeType", "x"),
    ("types", "FunctionType", "x"),
    ("functools", "partial", "x"),
    ("operator", "attrgetter", "system"),
    ("_operator", "methodcaller", "system", "COMMAND"),
    ("operator", "itemgetter", "system"),
    ("ssl", "get_server_certificate", "localhost"),
    ("socket", "create_connection", "localhost"),
    ("runpy", "_run_code", "__import__('os').mkdir('CANARY')"),
    ("runpy", "run_path", "CANARY"),
    ("webbrowser", "open", "http://localhost"),
    ("requests.api", "get", "http://localhost"),
    ("urllib.request", "urlopen", "http://localhost"),
    ("http.client", "HTTPSConnection", "localhost"),
    ("aiohttp.client", "ClientSession"),
    ("asyncio", "run", "x"),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start", "COMMAND"),
    ("ctypes", "CDLL", "libc.so.6"),
    ("shutil", "rmtree", "CANARY"),
    ("sys", "exit", "1"),
    ("pty", "spawn", "COMMAND"),
    ("pdb", "run", "__import__('os').mkdir('CANARY')"),
    ("bdb", "Bdb.run", "__import__('os').mkdir('CANARY')"),
    ("code", "InteractiveInterpreter.runcode", "x"),
    ("cProfile", "run", "__import__('os').mkdir('CANARY')"),
    ("profile", "run", "__import__('os').mkdir('CANARY')"),
    ("timeit", "timeit", "__import__('os').mkdir('CANARY')"),
    ("trace", "Trace.run", "x"),
    ("doctest", "debug_script", "x"),
    ("ensurepip", "_run_pip", "x"),
    ("pip", "main", "install"),
    ("pydoc", "pipepager", "x", "COMMAND"),
    ("pkgutil", "resolve_name", "os:system"),
    ("imaplib", "IMAP4_stream", "COMMAND"),
    ("uuid", "_get_command_stdout", "COMMAND"),
    ("venv", "create", "CANARY"),
    ("distutils.file_util", "write_file", "CANARY", "x"),
    ("logging", "FileHandler", "CANARY"),
    ("_io", "FileIO", "CANARY", "w"),
    ("lib2to3.pgen2.grammar", "Grammar.loads", "x"),
    ("idlelib.run", "Executive.runcode", "x"),
    ("test.support.script_helper", "assert_python_ok", "-c", "1"),
    ("_osx_support", "_read_output", "COMMAND"),
    ("_aix_support", "_read_cmd_output", "COMMAND"),
    ("_pyrepl.pager", "pipe_pager", "x", "COMMAND"),
    ("pickle", "loads", "x"),
    ("_pickle", "Unpickler", "x"),
    ("marshal", "loads", "x"),
    ("importlib", "import_module", "antigravity"),
    ("torch.serialization", "load", "CANARY"),
    ("torch.hub", "load", "someone/something", "x"),
    ("torch.jit", "load", "CANARY"),
    ("torch.jit.unsupported_tensor_ops", "execWrapper", "__import__('os').mkdir('CANARY')", "x", "x"),
    ("torch._inductor.codecache", "compile_file", "x", "x", "COMMAND"),
    ("torch._dynamo.guards", "GuardBuilder.get", "x", "__import__('os').mkdir('CANARY')"),
    ("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression", "x", "1"),
    ("torch.utils._config_module", "ConfigModule.load_config", "x", "x"),
    ("torch.utils.bottleneck.__main__", "run_cprofile", "x", "x"),
    ("torch.utils.collect_env", "run", "COMMAND"),
    ("torch.utils.data.datapipes.utils.decoder", "basichandlers", "pkl", "x"),
    ("torch.storage", "_load_from_bytes", "x"),
    ("__main__", "Net"),
    ("transformers.pipelines", "pipeline", "x"),
)

_FRAME = b"\x95" + (40).to_bytes(8, "little")
_SYSTEM = b"\x8c\x02os\x8c\x05mkdir"


def _forms(canary: str) -> dict[str, bytes]:
    """The ways a pickle has to name and to call something, all for os.mkdir(CANARY)."""
    path = _text(canary)
    return {
        "protocol 2, GLOBAL and REDUCE": b"\x80\x02" + _call("os", "mkdir", canary) + b".",
        "protocol 3": b"\x80\x03" + _call("os", "mkdir", canary) + b".",
        "protocol 4, STACK_GLOBAL": b"\x80\x04" + _FRAME + _SYSTEM + b"\x93(" + path + b"tR.",
        "protocol 5, STACK_GLOBAL": b"\x80\x05" + _SYSTEM + b"\x93(" + path + b"tR.",
        "STACK_GLOBAL out of the memo": b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x940h\x00h\x01\x93(" + path + b"tR.",
        "INST": b"\x80\x02(" + path + b"ios\nmkdir\n.",
        "OBJ": b"\x80\x02(cos\nmkdir\n" + path + b"o.",
        "NEWOBJ": b"\x80\x02cos\nmkdir\n(" + path + b"t\x81.",
        "NEWOBJ_EX": b"\x80\x04cos\nmkdir\n(" + path + b"t}\x92.",
        "BUILD": b"\x80\x02ccollections\nOrderedDict\n)R}(" + _text("__setstate__") + b"cos\nmkdir\nub" + path + b"b.",
        "EXT1": b"\x80\x02\x82\x01(" + path + b"tR.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00(" + path + b"tR.",
        "PERSID": b"\x80\x02P" + canary.encode() + b"\n.",
        "reduce within a list within a dict": b"\x80\x02}(" + _text("x") + b"]" + _call("os", "mkdir", canary) + b"as.",
        "after other pickles": pickle.dumps(1, 2) + b"\x80\x02" + _call("os", "mkdir", canary) + b".",
        "getattr of an allowed class": b"\x80\x02c__builtin__\ngetattr\n(ccollections\nOrderedDict\n"
        + _text("__init__")
        + b"tR.",
        "an allowed function": b"\x80\x02" + _call("torch._utils", "_rebuild_wrapper_subclass", canary) + b".",
        "without its end": b"\x80\x02" + _call("os", "mkdir", canary),
        "bytes that are no opcode": b"\x80\x02\xff\xfe" + _call("os", "mkdir", canary) + b".",
        "invalid bytes in a name": b"\x80\x02cos\xff\nmkdir\n(" + path + b"tR.",
        "a string of 4 GB": b"\x80\x02X\xff\xff\xff\xff" + path + b".",
        "a number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f" + path + b".",
        "a memo of 4 billion": b"\x80\x02Nr\xff\xff\xff\xff.",
        "ten thousand lists in one another": b"\x80\x02" + b"]" * 10000 + b"a" * 9999 + b".",
    }


def _plain(forms_name: str) -> Make:
    return lambda path, canary: path.write_bytes(_forms(str(canary))[forms_name]) and None


def _calling(call: tuple[str, ...], zipped: bool) -> Make:
    def make(path: Path, canary: Path) -> None:
        known = {"CANARY": str(canary), "COMMAND": f"mkdir {canary}"}
        arguments = [known.get(text, text.replace("CANARY", str(canary))) for text in call[2:]]
        content = b"\x80\x02}(" + _text("weight") + _call(call[0], call[1], *arguments) + b"s."
        _zipped(path, {"archive/data.pkl": content}) if zipped else path.write_bytes(content)

    return make


def _zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in {**files, "archive/version": b"3\n", "archive/byteorder": b"little"}.items():
            archive.writestr(name, content)


def _in_text(first: bytes) -> Make:
    """Protocols 0 and 1 have no mark at their beginning."""

    def make(path: Path, canary: Path) -> None:
        path.write_bytes(first + _call("os", "mkdir", str(canary)) + b".")

    return make


def _tar(path: Path, canary: Path) -> None:
    """The format of PyTorch 0.1, whose members were unpacked to wherever their names said."""
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", f"../../../../..{canary}", "storages", "tensors"):
            content = b"\x80\x02" + _call("os", "mkdir", str(canary)) + b"."
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _script(path: Path, canary: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))


def _module(path: Path, canary: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), path)


def _old_module(path: Path, canary: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), path, _use_new_zipfile_serialization=False)


def _zip_in_zip(path: Path, canary: Path) -> None:
    inner = path.with_suffix(".inner")
    _calling(CALLS[0], True)(inner, canary)
    _zipped(path, {"archive/model.zip": inner.read_bytes()})
    inner.unlink()


def _password(path: Path, canary: Path) -> None:
    """An ordinary archive with the bit set that says its files are encrypted."""
    _calling(CALLS[0], True)(path, canary)
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(mark, at + 1)
    path.write_bytes(content)


def _bomb(path: Path, canary: Path) -> None:
    """A pickle of 400 KB that unpacks to 400 MB."""
    content = b"\x80\x02X" + (400 * 2**20).to_bytes(4, "little") + bytes(400 * 2**20) + b"."
    _zipped(path, {"archive/data.pkl": content}, zipfile.ZIP_DEFLATED)


def _directory_only(path: Path, canary: Path) -> None:
    """A zip whose directory says more than there is."""
    _calling(CALLS[0], True)(path, canary)
    content = bytearray(path.read_bytes())
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 16] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)


def _no_directory(path: Path, canary: Path) -> None:
    _calling(CALLS[0], True)(path, canary)
    content = path.read_bytes()
    path.write_bytes(content[: content.find(b"PK\x01\x02")])


def _spread(path: Path, canary: Path) -> None:
    """A tensor of ten billion numbers that are all the same one."""
    torch.save({"weight": torch.zeros(1).expand(10**5, 10**5)}, path)


def _shared(path: Path, canary: Path) -> None:
    """A thousand tensors that are all the same one."""
    weight = torch.zeros(1000, 1000)
    torch.save({f"weight{i}": weight for i in range(1000)}, path)


def _sparse(path: Path, canary: Path) -> None:
    torch.save({"weight": torch.sparse_coo_tensor([[0]], [1.0], (10**12,))}, path)


def _meta(path: Path, canary: Path) -> None:
    torch.save({"weight": torch.empty(10**6, 10**6, device="meta")}, path)


def _itself(path: Path, canary: Path) -> None:
    """A dictionary that holds itself where weights may be nested."""
    content: dict[str, object] = {}
    content["state_dict"] = content
    torch.save(content, path)


def _asks_for(module: str, name: str) -> str:
    where = "" if module in ("builtins", "__builtin__") else rf"{module}\."
    return rf"it was not run, which asks for {where}{name}\b"


PICKLES: dict[str, tuple[Make, str]] = {
    **{
        f"{call[0]}.{call[1]}": (_calling(call, number % 2 == 0), _asks_for(*call[:2]))
        for number, call in enumerate(CALLS)
    },
    **{name: (_plain(name), "was not run|damaged or cut short") for name in _forms("x")},
    "protocol 0": (_in_text(b""), "not a file of weights"),
    "protocol 1": (_in_text(b"("), "not a file of weights"),
    "the tar format of PyTorch 0.1": (_tar, "a tar archive; nothing in it was unpacked"),
    "a TorchScript archive": (_script, r"a TorchScript archive, a program.*torch\.jit\.load"),
    "a whole module": (_module, r"asks for torch\.nn\.modules\.linear\.Linear.*model\.state_dict\(\)"),
    "a whole module in the old format": (_old_module, r"torch\.nn\.modules\.linear\.Linear.*model\.state_dict\(\)"),
    "a zip in a zip": (_zip_in_zip, r"a zip of 3 files and not one of weights.*model\.zip"),
    "a zip with a password": (_password, "a zip with a password"),
    "a zip bomb": (_bomb, "a zip that unpacks to 419,"),
    "a zip whose directory lies": (_directory_only, "a zip whose directory would be"),
    "a zip without its directory": (_no_directory, "a zip without its directory"),
    "a number spread over ten billion": (_spread, "its tensors say to have 40,000,000,000"),
    "a tensor a thousand times": (_shared, "its tensors say to have 4,000,000,000"),
    "a sparse tensor": (_sparse, "a sparse_coo on cpu tensor|damaged"),
    "a tensor that is nowhere": (_meta, "strided on meta tensor|damaged|was not run"),
    "a dictionary that holds itself": (_itself, "holds no named tensors"),
}
