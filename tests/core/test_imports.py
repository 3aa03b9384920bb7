"""Who may import whom, read from the source: any arrow that is not listed here fails."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Module of the core -> the core modules it may import. A new row is a new room in the house; a new entry in a row
# needs a reason.
CORE: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"commands.deltas", "commands.evaluation", "commands.files", "commands.pictures", "commands.training"},
    "atomic": set(),
    "checkpoints": {"flow", "folders", "formats", "sources", "weightfiles"},
    "commands": set(),
    "commands.common": {"checkpoints"},
    "commands.deltas": {"checkpoints", "commands.common", "deltas"},
    "commands.evaluation": {"atomic", "checkpoints", "commands.common", "shapes.table"},
    "commands.files": {"checkpoints", "commands.common", "loras"},
    "commands.pictures": {"checkpoints", "commands.common", "generate", "noise"},
    "commands.training": {
        "checkpoints",
        "commands.common",
        "losses",
        "prompts",
        "runs",
        "sets",
        "storage",
        "training",
        "triplets",
    },
    "comparison": set(),
    "configs": {"keytables", "weightfiles"},
    "control": {"inversion", "solvers"},
    "curves": set(),
    "deltas": {"checkpoints", "formats", "weightfiles"},
    "flow": set(),
    "folders": {"atomic", "text", "weightfiles"},
    "formats": {"keytables", "weightfiles"},
    "generate": {"atomic", "checkpoints", "noise", "pictures", "solvers", "teacher", "text", "velocity"},
    "gradients": {"solvers"},
    "inversion": {"gradients", "solvers"},
    "keytables": set(),
    "loras": {"folders", "weightfiles"},
    "losses": {"flow"},
    "noise": set(),
    "perflow": set(),
    "pictures": set(),
    "prompts": set(),
    "records": {"noise", "storage", "triplets"},
    "runs": {
        "atomic",
        "checkpoints",
        "losses",
        "records",
        "samples",
        "stages",
        "storage",
        "training",
        "triplets",
        "weightfiles",
    },
    "samples": {"atomic", "checkpoints", "curves", "generate", "noise", "pictures", "records", "text"},
    "sets": {"checkpoints", "generate", "storage", "text", "triplets", "weightfiles"},
    "share": set(),
    "solvers": set(),
    "sources": {"configs", "folders", "formats", "keytables", "weightfiles"},
    "stages": {"flow", "losses", "noise", "records", "share", "text"},
    "storage": set(),
    "straightness": {"flow", "solvers", "teacher"},
    "teacher": set(),
    "text": set(),
    "training": {"atomic", "share"},
    "triplets": {"noise", "storage"},
    "velocity": {"flow"},
    "weightfiles": {"atomic"},
    "shapes": set(),
    "shapes.anatomy": set(),
    "shapes.autoencoder": {"noise", "shapes.anatomy", "shapes.captions", "shapes.render", "share"},
    "shapes.captions": set(),
    "shapes.decoder": {"noise", "shapes.anatomy", "shapes.autoencoder", "share", "stages", "teacher"},
    "shapes.evaluate": {"checkpoints", "generate", "noise", "pictures", "shapes.captions", "shapes.judge", "text"},
    "shapes.features": set(),
    "shapes.fitting": {"pictures", "shapes.anatomy", "shapes.captions", "shapes.judge", "shapes.render"},
    "shapes.judge": {"shapes.captions", "shapes.render"},
    "shapes.recipes": {
        "losses",
        "noise",
        "records",
        "sets",
        "shapes.anatomy",
        "shapes.autoencoder",
        "shapes.captions",
        "shapes.decoder",
        "shapes.fitting",
        "shapes.text_encoder",
        "share",
        "stages",
        "storage",
        "teacher",
        "text",
        "training",
        "triplets",
        "weightfiles",
    },
    "shapes.render": {"shapes.captions"},
    "shapes.table": {
        "checkpoints",
        "noise",
        "shapes.captions",
        "shapes.evaluate",
        "shapes.features",
        "solvers",
        "straightness",
        "teacher",
        "text",
        "velocity",
    },
    "shapes.text_encoder": {"noise", "shapes.anatomy", "shapes.captions", "share", "text"},
}

LAZY_ONLY = {"diffusers", "transformers", "accelerate", "peft", "lpips"}
# What the host puts on sys.path, beside the packages comfy*.
HOST_MODULES = {
    "nodes",
    "server",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "cuda_malloc",
    "protocol",
}


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Absolute dotted names of everything `path` imports; relative ones are resolved against the repo root."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _top_level(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            prefix = ".".join(part for part in (base, node.module or "") if part)
            yield prefix
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def _top_level(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when the module is imported: everything outside functions."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


def core_arrows() -> dict[str, set[str]]:
    """Core module -> the core modules it imports, anywhere in the file."""
    modules = {_core_name(path): path for path in (ROOT / "instaflow_core").rglob("*.py")}
    return {
        name: {other for imported in imports(path) if (other := _module_of(imported, modules)) not in (None, name)}
        for name, path in modules.items()
    }


def _core_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "instaflow_core").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _module_of(imported: str, modules: dict[str, Path]) -> str | None:
    """The core module that the dotted name `imported` lies in; None outside the core."""
    name = imported.removeprefix("instaflow_core.")
    while name != imported and name:
        if name in modules:
            return name
        name = name.rpartition(".")[0]
    return None


def test_the_core_has_exactly_the_listed_rooms() -> None:
    assert set(core_arrows()) == set(CORE)


@pytest.mark.parametrize("module", sorted(core_arrows()))
def test_a_core_module_imports_what_its_row_says(module: str) -> None:
    assert core_arrows()[module] == CORE.get(module), f"the arrows from {module} are not those of its row in CORE"


def test_the_listed_arrows_have_no_circle() -> None:
    list(TopologicalSorter(CORE).static_order())  # raises CycleError


@pytest.mark.parametrize("path", sorted((ROOT / "instaflow_core").rglob("*.py")), ids=lambda path: path.name)
def test_the_core_imports_neither_the_host_nor_the_nodes(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imports(path)}
    assert not roots & HOST_MODULES
    assert not {root for root in roots if root.startswith("comfy")}


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").glob("*.py")), ids=lambda path: path.name)
def test_only_the_host_files_touch_what_is_inside_the_host(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imports(path)} - {"nodes"}
    if not path.name.startswith("host"):
        assert not roots & HOST_MODULES
        assert {root for root in roots if root.startswith("comfy")} <= {"comfy_api"}
    outside = roots - {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "node_helpers"}
    assert outside <= {*sys.stdlib_module_names, "instaflow_core", "torch", "numpy", "PIL", "safetensors"}


def test_the_root_imports_nothing_but_the_nodes() -> None:
    names = {name.partition(".")[0] for name in imports(ROOT / "__init__.py")} - set(sys.stdlib_module_names)
    assert names == {"nodes", "comfy_api"}


@pytest.mark.parametrize("folder", ["nodes", "instaflow_core"])
def test_heavy_libraries_are_imported_inside_functions_only(folder: str) -> None:
    early = {
        f"{path.name}: {name}"
        for path in (ROOT / folder).rglob("*.py")
        for name in imports(path, top_level_only=True)
        if name.partition(".")[0] in LAZY_ONLY
    }
    assert not early
