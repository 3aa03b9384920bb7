"""Where a training takes place: its device, and a folder beside its result that one run holds at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from PIL import Image

from ..atomic import replacing
from ..locks import alone_in
from .accelerator import own_state
from .state import STATE_FILE


def check_device(device: str | None) -> None:
    """Raise ValueError where a device is named that a training cannot be told to take."""
    if device and ":" in device:
        raise ValueError(
            f"The device is {device}, and a training takes the first one it sees, or those of `accelerate launch`. "
            f"Give {device.split(':')[0]}, and hide the others: CUDA_VISIBLE_DEVICES={device.split(':')[1]}."
        )


def work_folder(out: Path) -> Path:
    """The folder of the run that makes `out`."""
    return out.with_name(out.name.removesuffix(".safetensors") + ".training")


@contextmanager
def alone_in_run(work: Path, device: str | None) -> Iterator[None]:
    """Hold the folder of a run, on the process that writes there; ValueError where another run holds it."""
    from accelerate import PartialState

    with own_state():
        writes = PartialState(cpu=device == "cpu").is_main_process
    with alone_in(work) if writes else nullcontext():
        yield


def check_place(out: Path, work: Path, resume: bool) -> bool:
    """Whether a run was begun in `work`; ValueError where one was, or its result is there, and it is not resumed."""
    begun = (work / STATE_FILE).exists()
    if not resume and (out.exists() or begun):
        raise ValueError(f"{out} is there already, or a run for it. Give another name, resume, or remove {work}.")
    return begun


def keep_charts(charts: Mapping[str, Image.Image], work: Path) -> None:
    """Write charts into the folder of a run."""
    for name, chart in charts.items():
        with replacing(work / f"{name}.png") as temporary:
            chart.save(temporary, format="PNG")


def training_device(device: str | None) -> Any:
    """The device the training will be on."""
    from accelerate import PartialState

    return "cpu" if device == "cpu" else PartialState().device
