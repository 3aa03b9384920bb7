"""The authors' released weights, fetched from the Hugging Face hub into a folder that our loaders read.

What is fetched lies in a hidden folder beside the wanted one, which appears under its name when every file is there and
is what the hub says. A download that was cut goes on where it stopped, in the middle of a file too: the library's own
`hf_hub_download` keeps half a file no longer (since huggingface_hub 2), so its streaming part is called here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from .diffusers_folder import WEIGHT_NAMES

RELEASED = {"instaflow": "XCLiu/instaflow_0_9B_from_sd_1_5", "2rf": "XCLiu/2_rectified_flow_from_sd_1_5"}
"""What the released models are called here, and their repositories on the hub."""
LICENCE_PAGE = "https://creativecommons.org/licenses/by-nc/4.0/"

# Weights in one file as safetensors, and the texts beside them; of the hub's other files, such as the safety checker,
# pickles and half-precision copies, nothing is needed. What makes a folder a model comes last.
_FILES = re.compile(
    "|".join(f"{part}/(?:config\\.json|{re.escape(names[0])})" for part, names in WEIGHT_NAMES.items())
    + r"|tokenizer/[^/]+\.(?:json|txt)|scheduler/[^/]+\.json|model_index\.json"
)
_REQUIRED = {"model_index.json", *(f"{part}/{n}" for part, ns in WEIGHT_NAMES.items() for n in ("config.json", ns[0]))}


@dataclass(frozen=True)
class Listing:
    """The files of a repository that are needed, as the hub describes them at one commit.

    Attributes:
        files: by their path: what git or Git LFS calls them, and their size in bytes.
    """

    repository: str
    commit: str
    files: dict[str, HubFile]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(file.size for file in self.files.values())


@dataclass(frozen=True)
class HubFile:
    """Size in bytes and checksum of a file: SHA-256 of one kept by Git LFS, git's own SHA-1 of any other."""

    size: int
    checksum: str
    lfs: bool


def folder_name(model: str) -> str:
    """The folder that the workflows name for a model of RELEASED."""
    return RELEASED[model].split("/")[1]


def list_files(model: str) -> Listing:
    """Ask the hub what is to be fetched for a model of RELEASED.

    Raises:
        ValueError, OSError: the hub cannot be reached, refuses, or has not what is needed; the message says which.
    """
    from huggingface_hub import HfApi

    repository = RELEASED[model]
    with _hub_errors(repository):
        info = HfApi().model_info(repository, files_metadata=True)
    files = {}
    for file in info.siblings or []:
        if _FILES.fullmatch(file.rfilename):
            checksum = file.lfs.sha256 if file.lfs else file.blob_id
            files[file.rfilename] = HubFile(file.size or 0, str(checksum), file.lfs is not None)
    if missing := _REQUIRED - files.keys():
        raise ValueError(
            f"{repository} on the hub has no {', '.join(sorted(missing))}. Download another copy of the model by hand, "
            "and put its folder into models/diffusers."
        )
    last = "model_index.json"
    return Listing(repository, str(info.sha), {name: files[name] for name in [*sorted(files.keys() - {last}), last]})


def check_folder(listing: Listing, folder: Path) -> None:
    """Return where every file of the listing is in the folder and is what the hub says.

    Raises:
        ValueError: something is missing or differs; nothing is changed.
    """
    missing = [name for name in listing.files if not (folder / name).is_file()]
    if len(missing) == len(listing.files):
        raise ValueError(
            f"{folder} is there and holds something else. Give --to the folder to make, such as "
            f"{folder / listing.repository.split('/')[1]}."
        )
    wrong = [*missing, *_differing(listing, folder)]
    if wrong:
        raise ValueError(
            f"{folder} is there, but {', '.join(wrong)} is missing or is not what {listing.repository} has on the hub. "
            "Move the folder away and run this again, or give another one with --to."
        )


def fetch(listing: Listing, folder: Path) -> None:
    """Fetch the files of the listing, verify them, and rename what holds them to `folder`, which must not exist.

    Raises:
        ValueError: a file is not what the hub said; it is removed, the others stay for the next call.
        OSError: the connection or the disk failed, or there is not enough room; what was fetched stays, too.
    """
    part = folder.with_name(f".{folder.name}.part")
    here = {name: path.stat().st_size for name in listing.files if (path := part / name).is_file()}
    _check_room(listing.size - sum(here.values()), folder)
    for name, file in listing.files.items():
        if here.get(name, 0) > file.size:
            (part / name).unlink()  # of another state of the repository
        if here.get(name) != file.size:
            _fetch_file(listing, name, part / name)
    wrong = _differing(listing, part)
    for name in wrong:
        (part / name).unlink()
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} was damaged on the way: its checksum is not the one of {listing.repository}. "
            "It was removed; run this again."
        )
    os.replace(part, folder)


def _fetch_file(listing: Listing, name: str, path: Path) -> None:
    """Append to the file what it lacks, with a progress bar; the library tries again where a connection is cut."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path.parent.mkdir(parents=True, exist_ok=True)
    with _hub_errors(listing.repository), path.open("ab") as file:
        http_get(
            hf_hub_url(listing.repository, name, revision=listing.commit),
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=listing.files[name].size,
            displayed_filename=name,
        )


def _check_room(needed: int, folder: Path) -> None:
    disk = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise OSError(
            f"{needed / 1e9:.1f} GB are still to be fetched for {folder}, and {free / 1e9:.1f} GB are free there. "
            "Make room, or give a folder on another disk with --to."
        )


def _differing(listing: Listing, folder: Path) -> list[str]:
    """The files in the folder that are not what the hub says."""
    here = {name: file for name, file in listing.files.items() if (folder / name).is_file()}
    with tqdm(
        total=sum(f.size for f in here.values()), desc="verifying", unit="B", unit_scale=True, disable=None
    ) as bar:
        return [name for name, file in here.items() if _checksum(folder / name, file.lfs, bar) != file.checksum]


def _checksum(path: Path, lfs: bool, bar: tqdm[Any]) -> str:
    # git's is of a header and the content.
    digest = hashlib.sha256() if lfs else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """What goes wrong on the way, in words; errors of the disk stay as they are."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    # Which library carries the hub's traffic differs with its versions; the base of its HTTP errors is that library's.
    failures = cast("tuple[type[Exception], ...]", (OSError, *HfHubHTTPError.__bases__))
    again = "What was fetched is kept: run this again to go on."
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        if status in (401, 403, 404):
            raise OSError(
                f"{constants.ENDPOINT} does not give {repository} to you (HTTP {status}). Open {constants.ENDPOINT}/"
                f"{repository} in a browser: where it asks for a login or its terms, accept them and run "
                "`hf auth login`; then run this again."
            ) from error
        raise OSError(f"{constants.ENDPOINT} answered with HTTP {status}. {again}") from error
    except failures as error:
        number = getattr(error, "errno", None)
        if number == errno.ENOSPC:
            raise OSError(f"The disk is full. Make room. {again}") from error
        if number is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise
        raise OSError(
            f"No connection to {constants.ENDPOINT}, or it was cut ({error}). Check the network, or the proxy in "
            f"HTTPS_PROXY. {again}"
        ) from error
