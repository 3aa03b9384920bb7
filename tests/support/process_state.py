"""What a process shares with everything that runs in it: read whole, to be compared before and after.

Each entry is a name and something that compares; an object that has no value of its own stands as its identity. What
is compared is kept alive by the snapshot, so that an identity is not given out twice.
"""

from __future__ import annotations

import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

HOST = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview",
        "node_helpers", "nodes", "protocol", "server", "app", "middleware", "utils")  # fmt: skip
"""The top names of what a ComfyUI consists of."""


@dataclass(frozen=True)
class Identity:
    """An object that is compared by being the same one."""

    of: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.of is other.of

    def __hash__(self) -> int:
        return id(self.of)


Entries = dict[str, Any]


def snapshot() -> Entries:
    """The state of this process, by name. Nothing of it is changed by looking."""
    return {f"{part}: {name}": value for part, read in PARTS.items() for name, value in read()}


def differences(before: Entries, after: Entries) -> list[str]:
    """The names of what was changed, of what was taken away, and of what has come, GROWING parts aside."""
    changed = [name for name in before if name not in after or not _same(before[name], after[name])]
    return changed + [name for name in after if name not in before and not name.startswith(GROWING)]


GROWING = ("loggers: ", "host: ", "torch.library: ")
"""Where something new is no change of anybody's: a library that is imported brings its loggers, a host's module its
functions (what is *there* must stay), torchvision its operations."""


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return (
            type(one) is type(other) and one.tobytes() == other.tobytes()
            if isinstance(one, np.ndarray)
            else bool(torch.equal(one, other))
        )
    return bool(one == other)


# --- the parts ---


def _torch() -> Iterator[tuple[str, Any]]:
    backends = torch.backends
    settings: dict[str, Callable[[], Any]] = {
        "default dtype": torch.get_default_dtype,
        "default device": torch.get_default_device,
        "threads": torch.get_num_threads,
        "interop threads": torch.get_num_interop_threads,
        "grad": torch.is_grad_enabled,
        "inference mode": torch.is_inference_mode_enabled,
        "anomaly": torch.is_anomaly_enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled,
        "deterministic, only a warning": torch.is_deterministic_algorithms_warn_only_enabled,
        "fills": lambda: torch.utils.deterministic.fill_uninitialized_memory,
        "matmul precision": torch.get_float32_matmul_precision,
        "cuda tf32": lambda: backends.cuda.matmul.allow_tf32,
        "cuda fp16 sums": lambda: backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "cuda bf16 sums": lambda: backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "cudnn": lambda: (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "cudnn tf32": lambda: backends.cudnn.allow_tf32,
        "mkldnn": lambda: backends.mkldnn.enabled,
        "sdp": lambda: (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ),
        "autocast": lambda: (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "autocast dtype": lambda: (torch.get_autocast_dtype("cpu"), torch.get_autocast_dtype("cuda")),
        "autocast cache": torch.is_autocast_cache_enabled,
        "function modes": torch._C._len_torch_function_stack,
        "dispatch modes": torch._C._len_torch_dispatch_stack,
        "saved tensors": lambda: Identity(torch._C._autograd._top_saved_tensors_default_hooks(True)),
        "print": lambda: repr(vars(torch._tensor_str.PRINT_OPTS)),
        "sharing": torch.multiprocessing.get_sharing_strategy,
        "module hooks": lambda: tuple(
            len(getattr(torch.nn.modules.module, name))
            for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
        ),
        "distributed": lambda: torch.distributed.is_available() and torch.distributed.is_initialized(),
        "safe globals": lambda: sorted(map(str, torch.serialization.get_safe_globals())),
    }
    for name, read in settings.items():
        yield name, read()


def _random() -> Iterator[tuple[str, Any]]:
    yield "python", random.getstate()
    name, keys, *rest = np.random.get_state()
    yield "numpy", (name, keys.tobytes(), *rest)
    yield "torch", torch.random.get_rng_state()


def _loggers() -> Iterator[tuple[str, Any]]:
    names = [None, *sorted(logging.root.manager.loggerDict)]
    for logger in map(logging.getLogger, names):
        handlers = tuple((Identity(handler), handler.level, tuple(handler.filters)) for handler in logger.handlers)
        yield logger.name, (logger.level, logger.propagate, logger.disabled, handlers, tuple(logger.filters))


def _logging() -> Iterator[tuple[str, Any]]:
    yield "disable", logging.root.manager.disable
    yield "class", Identity(logging.getLoggerClass())
    yield "records", Identity(logging.getLogRecordFactory())
    yield "captured warnings", Identity(warnings.showwarning)


def _python() -> Iterator[tuple[str, Any]]:
    yield "warnings", tuple(map(str, warnings.filters))
    yield "sys.path", tuple(sys.path)
    yield "sys.meta_path", tuple(map(Identity, sys.meta_path))
    yield "sys.path_hooks", tuple(map(Identity, sys.path_hooks))
    yield "streams", tuple(map(Identity, (sys.stdin, sys.stdout, sys.stderr)))
    for name in ("excepthook", "unraisablehook", "displayhook", "breakpointhook"):
        yield name, Identity(getattr(sys, name))
    yield "threading.excepthook", Identity(threading.excepthook)
    yield "tracing", (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile())
    yield "recursion", sys.getrecursionlimit()
    yield "switch interval", sys.getswitchinterval()
    yield "gc", (gc.isenabled(), gc.get_threshold(), gc.get_debug(), tuple(map(Identity, gc.callbacks)))
    yield "threads", tuple(sorted(thread.name for thread in threading.enumerate() if not thread.daemon))
    yield "multiprocessing", multiprocessing.get_start_method(allow_none=True)
    yield "decimal places of numpy", repr(np.get_printoptions())
    yield "numpy errors", tuple(np.geterr().items())


def _system() -> Iterator[tuple[str, Any]]:
    mask = os.umask(0)
    os.umask(mask)
    yield "umask", mask
    yield "folder", os.getcwd()
    yield "locale", locale.setlocale(locale.LC_ALL)
    for number in sorted(signal.valid_signals()):
        yield f"signal {int(number)}", signal.getsignal(number)


def _environment() -> Iterator[tuple[str, Any]]:
    yield from os.environ.items()


def _libraries() -> Iterator[tuple[str, Any]]:
    """What libraries keep for the whole process. One that nobody has imported keeps nothing."""
    for library in ("diffusers", "transformers", "datasets"):
        if library in sys.modules:
            tool = sys.modules[library].utils.logging
            yield f"{library} verbosity", tool.get_verbosity()
            bars = getattr(tool, "is_progress_bar_enabled", None)
            yield f"{library} progress bars", bars() if bars else None
    if "PIL.Image" in sys.modules:
        image, files = sys.modules["PIL.Image"], sys.modules["PIL.ImageFile"]
        yield "PIL", (image.MAX_IMAGE_PIXELS, files.LOAD_TRUNCATED_IMAGES, files.MAXBLOCK)
    if "accelerate.state" in sys.modules:
        state = sys.modules["accelerate.state"]
        for kind in (state.AcceleratorState, state.GradientState, state.PartialState):
            yield f"accelerate {kind.__name__}", dict(kind._shared_state)
    if "matplotlib" in sys.modules:
        plots = sys.modules["matplotlib"]
        yield "matplotlib", {name: repr(value) for name, value in dict.items(plots.rcParams)}
        yield (
            "matplotlib figures",
            tuple(
                sys.modules["matplotlib._pylab_helpers"].Gcf.figs if "matplotlib._pylab_helpers" in sys.modules else ()
            ),
        )


def _operations() -> Iterator[tuple[str, Any]]:
    for name in torch._C._dispatch_get_all_op_names():
        yield name, True


def _host() -> Iterator[tuple[str, Any]]:
    """Every function, class and value of the host's modules, and every attribute of its classes."""
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] not in HOST or not isinstance(module, types.ModuleType):
            continue
        for attribute, value in vars(module).items():
            yield f"{name}.{attribute}", Identity(value) if callable(value) else _kind(value)
            if isinstance(value, type) and value.__module__ == name:
                for inner, held in vars(value).items():
                    if callable(held) or isinstance(held, (staticmethod, classmethod, property)):
                        yield f"{name}.{attribute}.{inner}", Identity(held)


def _kind(value: Any) -> Any:
    """A plain value as it is; of another, only what it is: a module's own tables and counters are its own to fill."""
    return value if isinstance(value, (str, int, float, bool, bytes, type(None))) else type(value)


def _folders() -> Iterator[tuple[str, Any]]:
    """The host's tables of folders and files, and of what it shows."""
    if "folder_paths" in sys.modules:
        folders = sys.modules["folder_paths"]
        for name, (paths, extensions) in folders.folder_names_and_paths.items():
            yield name, (tuple(paths), tuple(sorted(extensions)))
        for name in ("input", "output", "temp", "user"):
            yield f"{name} folder", getattr(folders, f"get_{name}_directory")()


def _routes() -> Iterator[tuple[str, Any]]:
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if instance:
        yield "routes", tuple(sorted(f"{route.method} {route.path}" for route in instance.routes))
        yield "prompt handlers", tuple(map(Identity, instance.on_prompt_handlers))


PARTS: dict[str, Callable[[], Iterator[tuple[str, Any]]]] = {
    "torch": _torch,
    "random": _random,
    "loggers": _loggers,
    "logging": _logging,
    "python": _python,
    "system": _system,
    "environment": _environment,
    "libraries": _libraries,
    "torch.library": _operations,
    "host": _host,
    "folders": _folders,
    "server": _routes,
}
