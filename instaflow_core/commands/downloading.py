"""`download`: the authors' released weights, from the Hugging Face hub to where ComfyUI looks for them."""

import argparse
import sys
from pathlib import Path

from ..weights.metadata import RELEASED_LICENCE
from ..weights.released import LICENCE_PAGE, RELEASED, check_folder, fetch, folder_name, list_files
from .common import Commands, add

_PACK = Path(__file__).parents[2]


def add_download(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "download",
        _download,
        f"Fetch the authors' released weights ({RELEASED_LICENCE}: not for commercial use) into ComfyUI's "
        "models/diffusers. One that was interrupted goes on where it stopped; one that is there is verified.",
        "python -m instaflow_core download instaflow",
    )
    parser.add_argument(
        "model", choices=RELEASED, help="InstaFlow-0.9B, one step; or the 2-rectified flow, 1 to 25 steps"
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="the folder to make (default: in models/diffusers of the ComfyUI whose custom_nodes holds this pack)",
    )
    parser.add_argument(
        "--accept-licence",
        "--accept-license",
        action="store_true",
        help=f"accept {RELEASED_LICENCE} without being asked, as in a script",
    )


def _download(options: argparse.Namespace) -> None:
    folder = options.to or _in_comfyui(folder_name(options.model))
    if not folder.exists():
        _ask_for_consent(RELEASED[options.model], options.accept_licence)
    listing = list_files(options.model)
    if folder.exists():
        check_folder(listing, folder)
        print("already there, verified", file=sys.stderr)
    else:
        fetch(listing, folder)
    print(folder)


def _in_comfyui(name: str) -> Path:
    models = _PACK.parent.parent / "models"
    if _PACK.parent.name != "custom_nodes" or not models.is_dir():
        raise ValueError(
            f"This pack lies in {_PACK}, which is not in the custom_nodes of a ComfyUI. Say where the folder belongs: "
            f"--to COMFYUI/models/diffusers/{name}"
        )
    return models / "diffusers" / name


def _ask_for_consent(repository: str, accepted: bool) -> None:
    """Show the licence; return where the user accepts it, raise ValueError where not or where nobody can be asked."""
    print(
        f"{repository} is licensed {RELEASED_LICENCE} by its authors: give them credit, say what you changed, and make "
        f"no commercial use of the weights or of what is built on them.\n{LICENCE_PAGE}",
        file=sys.stderr,
    )
    if accepted:
        return
    if not sys.stdin.isatty():
        raise ValueError("The licence was not accepted. Read it, and give --accept-licence where you agree.")
    print("Do you accept it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ValueError("The licence was not accepted; nothing was fetched.")
