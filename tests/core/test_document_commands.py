"""Every command in README.md and docs/ works.

Each is run here, or by a test that is named here, or stands here with the reason why it cannot be run; those are read
by the parser that would read them. A command that is none of these makes a test fail; it belongs into ELSEWHERE or
NOT_HERE then.

Run here means as it is written, in a folder of its own, but for two things. The files that commands name lie in it,
small and random, under the names in `stand_ins`; N is 2, REPOSITORY a clone of this one. And the numbers of SMALLER are
lowered to what is seconds' work.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from itertools import pairwise
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, commands, read
from safetensors.torch import load_file, save_file
from small_models import save_lora, small_checkpoint
from small_runs import run_each

from instaflow_core.__main__ import _parser
from instaflow_core.shapes.captions import sample_captions
from instaflow_core.shapes.making.anatomy import new_unet
from instaflow_core.shapes.render import render, sample_scene
from instaflow_core.weights.saving import save, save_folder

CORE = "python -m instaflow_core "
DEVHOST = "python3 scripts/devhost.py "
SMALLER = {"--count": 2, "--iterations": 1, "--warmup": 1, "--batch-size": 2, "--steps": 2}
"""The most that is given for these here."""
IN_A_SHELL = ("cd ", "git ", "python -m pip ")
ANY = "--init X --triplets X --iterations 1 --out x.safetensors"
"""What `...` stands for."""

ELSEWHERE = {
    "make demo": "tests/server/test_demo.py::test_the_demo_draws_its_caption",
    'make demo PROMPT="a yellow star on a purple background" SEED=3 OUT=star.png': (
        "tests/server/test_demo.py::test_the_demo_draws_its_caption"
    ),
    "make demo COMFYUI_PATH=/path/to/ComfyUI COMFYUI_PYTHON=/path/to/its/python": (
        "tests/server/test_devhost.py::test_an_interpreter_that_lacks_packages_is_named_and_left_as_it_was"
    ),
    "make table": "tests/core/shapes/test_table.py::test_evaluate_prints_and_writes_a_row_for_each_number_of_steps",
    "python scripts/new_shape.py ": (
        "tests/core/shapes/test_new_shape.py::test_a_teacher_learns_and_its_pictures_are_counted"
    ),
    f"{CORE}download instaflow": (
        "tests/core/commands/test_download.py::test_the_folder_holds_what_is_needed_and_nothing_else"
    ),
    f"{CORE}download 2rf": (
        "tests/core/commands/test_download.py::test_one_that_is_there_is_verified_and_not_fetched_again"
    ),
    f"{CORE}evaluate --preset": "tests/core/evaluation/test_evaluation.py::test_cocos_captions_are_one_of_each_picture",
    f"{CORE}reflow ... --method lora": (
        "tests/core/training/test_runs.py::test_a_lora_is_written_beside_the_merged_checkpoint"
    ),
    "accelerate launch --num_processes 8 --mixed_precision": (
        "tests/core/training/test_processes.py::test_two_processes_give_what_one_gives"
    ),
    "accelerate launch --num_machines 4": (
        "tests/core/training/test_processes.py::test_two_processes_agree_on_when_to_stop_and_where_to_go_on"
    ),
    "accelerate launch --num_processes 8 --use_fsdp": (
        "tests/core/training/test_processes.py::test_processes_that_shard_the_weights_give_what_one_gives"
    ),
}
"""How commands begin, and the test that runs what they run, smaller."""

NOT_HERE = {
    "make test": "runs this very test",
    "make quick": "runs this very test",
    "make ui": "stays until Ctrl-C; the server is that of make demo",
    "make bench": "minutes of measuring, which mean something on an idle machine alone",
    f"{CORE}reflow --init models/checkpoints/v1-5": "needs Stable Diffusion 1.5 and a GPU",
    f"{DEVHOST}benchmarks/": "minutes of measuring",
    "python scripts/bench_table.py": "writes what `make bench` has measured",
    f"{DEVHOST}scripts/": "makes anew what is committed",
    f"COMMUNITY_PACKS=FOLDER {DEVHOST}-m pytest tests/nodes/test_community_packs.py": "needs clones",
}
"""How commands begin, and why they are not run."""

FENCED = [command for document in DOCUMENTS for command in commands(document)]
BASH = [command for command in FENCED if command.shell == "bash"]
POWERSHELL = [command for command in FENCED if command.shell == "powershell"]


def entry(text: str, table: dict[str, str]) -> str | None:
    """What a table says of a command, by how it begins; `make demo` is only itself."""
    fits = [start for start in table if text == start or (text.startswith(start) and not start.startswith("make "))]
    return table[max(fits, key=len)] if fits else None


def is_run_here(text: str) -> bool:
    """Whether one of the tests below runs it."""
    if entry(text, ELSEWHERE) or entry(text, NOT_HERE):
        return False
    return text.startswith((CORE, *IN_A_SHELL, "python tests/security/fuzz.py "))


def test_every_command_is_run_or_has_its_reason() -> None:
    assert {command.shell for command in FENCED} == {"bash", "powershell"}
    assert len(BASH) > 40
    known = (is_run_here, lambda text: entry(text, ELSEWHERE), lambda text: entry(text, NOT_HERE))
    assert [command for command in BASH if not any(knows(command.text) for knows in known)] == []


def test_a_command_that_nobody_knows_is_seen() -> None:
    for text in ("rm -r /", "make everything", "make demonstration"):
        assert not is_run_here(text) and entry(text, ELSEWHERE) is None and entry(text, NOT_HERE) is None


def test_no_line_of_the_tables_is_left_over() -> None:
    texts = [command.text for command in BASH]
    for table in (ELSEWHERE, NOT_HERE):
        assert [start for start in table if not any(entry(text, {start: "x"}) for text in texts)] == []


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_a_test_that_runs_a_command_exists(test: str) -> None:
    path, _, name = test.partition("::")
    defined = [node.name for node in ast.walk(ast.parse(read(ROOT / path))) if isinstance(node, ast.FunctionDef)]
    assert name in defined


# --- read by the parser that would read it ---


def refused_by(parser: argparse.ArgumentParser, words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the parser says against these words; "" where it takes them."""
    try:
        parser.parse_args(words)
    except SystemExit as ended:
        return capsys.readouterr().err.strip() if ended.code else ""
    return ""


def core_words(text: str) -> list[str]:
    """The arguments of instaflow_core in a command, with numbers for N and what ... stands for."""
    arguments = text.partition("-m instaflow_core ")[2].replace(" ...", f" {ANY}")
    return ["2" if word == "N" else word for word in shlex.split(arguments)]


def in_spans(document: Path, start: str) -> list[str]:
    """What stands in code spans of a document's text and begins so."""
    return re.findall(rf"`({start}[^`]*)`", read(document))


def test_no_command_has_an_option_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    spans = [text for document in DOCUMENTS for text in in_spans(document, CORE)]
    texts = [command.text for command in FENCED if "-m instaflow_core" in command.text] + spans
    assert len(texts) > 20
    said = {text: refused_by(_parser(), core_words(text), capsys) for text in texts}
    assert {text: words for text, words in said.items() if words} == {}


def test_an_option_that_is_not_there_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--colour" in refused_by(_parser(), core_words(f"{CORE}reflow ... --colour red"), capsys)


def test_accelerate_takes_what_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    launches = [command.text for command in BASH if command.text.startswith("accelerate launch ")]
    assert len(launches) == 3
    for text in launches:
        words = shlex.split(text)[2:]
        assert refused_by(launch_command_parser(), words, capsys) == ""
        asked = launch_command_parser().parse_args(words)
        assert asked.module and asked.training_script == "instaflow_core"


def test_make_has_every_target_and_takes_every_variable() -> None:
    """By make itself, which says what it would run."""
    spans = [text for document in DOCUMENTS for text in in_spans(document, "make ")]
    texts = {command.text for command in BASH if command.text.startswith("make ")} | set(spans)
    makefile, devhost = read(ROOT / "Makefile"), read(ROOT / "scripts" / "devhost.py")
    assert len(texts) > 6
    for text in texts:
        words = shlex.split(text)
        ran = subprocess.run([words[0], "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert ran.returncode == 0 and "scripts/devhost.py" in ran.stdout, text
        for name in (word.partition("=")[0] for word in words[1:] if "=" in word):
            assert f"$${name}" in makefile or f'"{name}"' in devhost, text


def is_there(module: str) -> bool:
    """As importlib.util.find_spec says, without what listens to it: asked for pip, setuptools' finder gives up its own
    distutils, and setuptools, which torch.compile needs, cannot be imported any more."""
    path, name = None, ""
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return True


def test_windows_is_told_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """There is no Windows here: modules, files and options are looked up."""
    assert len(POWERSHELL) > 8
    for command in POWERSHELL:
        words = shlex.split(command.text.replace("\\", "/"))
        if "-m" not in words:
            assert words[0] in ("cd", "git", "$env:COMFYUI_PATH"), command
            continue
        module, *arguments = words[words.index("-m") + 1 :]
        assert is_there(module), command
        if module == "instaflow_core":
            assert refused_by(_parser(), arguments, capsys) == "", command
        for name in (value for flag, value in pairwise(arguments) if flag == "-r"):
            assert (ROOT / Path(name).name).is_file(), command


# --- run ---


def stand_ins(folder: Path) -> None:
    """The files that commands name."""
    one_step = small_checkpoint()
    save_folder(one_step, folder / "FOLDER")
    save(one_step, folder / "FILE.safetensors")
    save_folder(small_checkpoint("teacher", "epsilon", seed=2), folder / "TEACHER")
    for seed, name in ((3, "dreamshaper.safetensors"), (4, "v1-5-pruned.safetensors")):
        save(small_checkpoint("teacher", "epsilon", seed=seed), folder / name)
    save_peft_lora(folder / "LORA.safetensors")
    (folder / "arrow").mkdir()
    save(small_checkpoint("teacher", "epsilon", seed=5), folder / "arrow" / "teacher.safetensors")
    captions = sample_captions(4, 5)
    for name in ("captions.txt", "PROMPTS.txt", "arrow/new.txt", "arrow/old.txt"):
        (folder / name).write_text("\n".join(map(str, captions)), encoding="utf-8")
    (folder / "photos").mkdir()
    for number, caption in enumerate(captions):
        render(sample_scene(caption, random.Random(number))).save(folder / "photos" / f"{number}.png")
    (folder / "docs").symlink_to(ROOT / "docs", target_is_directory=True)


def save_peft_lora(path: Path) -> None:
    """A LoRA under the names PEFT writes."""
    name = next(name for name in new_unet(0).state_dict() if name.endswith("attn1.to_q.weight")).removesuffix(".weight")
    save_lora(path)
    down, up = (next(t for key, t in load_file(path).items() if end in key) for end in ("lora_down", "lora_up"))
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, path)


def smaller(words: list[str]) -> list[str]:
    """The words with no larger numbers than those of SMALLER."""
    most, lowered = None, []
    for word in words:
        most = SMALLER.get(word) if word.startswith("--") else most
        lowered.append(str(min(int(word), most)) if most and word.isdigit() else word)
    return lowered


def without_network(folder: Path) -> dict[str, str]:
    """The environment of a process that can fetch nothing: no proxy answers there, and no library has kept anything."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    kept = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "TORCH_HOME": str(folder / "torch")}
    return os.environ | nowhere | kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


PAGES = list(dict.fromkeys(c.page for c in BASH if c.text.startswith(CORE) and is_run_here(c.text)))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_one_after_another(page: str, tmp_path: Path) -> None:
    stand_ins(tmp_path)
    texts = [c.text for c in BASH if c.page == page and c.text.startswith(CORE)]
    run = [smaller(core_words(text)) for text in texts if is_run_here(text)]
    run_each(run, tmp_path, without_network(tmp_path))
    named = [word for words in run for flag, word in pairwise(words) if flag == "--out"]
    assert [name for name in named if not (tmp_path / name).exists()] == []


@pytest.mark.slow
def test_what_is_typed_into_a_shell_installs(tmp_path: Path) -> None:
    """git on a clone of this repository, and pip, which says what it would install: nothing, of all that is here."""
    repository, tools = tmp_path / "REPOSITORY", tmp_path / "tools"
    subprocess.run(["git", "clone", "--quiet", "--bare", ROOT, repository], check=True)
    subprocess.run(["git", "-C", repository, "update-ref", "refs/heads/main", "HEAD"], check=True)
    subprocess.run(["git", "-C", repository, "symbolic-ref", "HEAD", "refs/heads/main"], check=True)
    tools.mkdir()
    (tools / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (tools / "python").chmod(0o755)
    place = tmp_path / "place"
    (place / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    for document in DOCUMENTS:
        lines = [c.text for c in BASH if c.page == document.name and c.text.startswith(IN_A_SHELL)]
        script = "\n".join(["set -e", *lines]).replace("REPOSITORY", str(repository))
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=place,
            env=without_network(tmp_path) | {"PATH": path, "PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert "Would install" not in ran.stdout
    assert (place / "ComfyUI" / "custom_nodes" / "ComfyUI-InstaFlow" / "nodes" / "sampling.py").is_file()


@pytest.mark.slow
def test_the_fuzzers_command_runs() -> None:
    (text,) = (c.text for c in BASH if c.text.startswith("python tests/security/fuzz.py "))
    _, *words = shlex.split(text.replace(" N", " 1"))
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)


SCRIPTS = sorted({path for c in BASH for path in re.findall(r"(?:scripts|benchmarks)/\w+\.py", c.text)})


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_is_not_run_here_begins(script: str) -> None:
    """Everything it imports is found from where it lies, as when it is started by its path."""
    begin = "import runpy, sys; sys.path[0] = sys.argv[1]; runpy.run_path(sys.argv[2], run_name='begun')"
    path = ROOT / script
    subprocess.run([sys.executable, "-c", begin, path.parent, path], check=True, env={**os.environ, "PYTHONPATH": ""})
