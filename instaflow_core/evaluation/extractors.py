"""The networks that metrics look through: Inception, CLIP and LPIPS as papers use them, or others in their place."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..weights.pickles import read_pickle

CLIP_SCORE, CMMD_CLIP = "openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14-336"
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_ALEXNET_FILE = "alexnet-owt-7be5be79.pth"


class NotAvailable(Exception):
    """A network cannot be had; the message names its file, where that goes, and what can be given instead."""


@dataclass(frozen=True)
class Extractor:
    """Features of pictures.

    words: the network, in words.
    features: from pictures (N, 3, H, W) uint8 to (N, D) on the same device.
    """

    words: str
    features: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TextExtractor:
    """Features of pictures and of texts in one space: from (N, 3, H, W) uint8 and N texts to two of (N, D)."""

    words: str
    features: Callable[[Tensor, list[str]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Distance:
    """How far apart pictures look: from two of (N, 3, H, W) uint8 to (N,)."""

    words: str
    distance: Callable[[Tensor, Tensor], Tensor]


Network = Extractor | TextExtractor | Distance
Said = str | Extractor
"""What takes a network's place: a network, or a name as `given` takes it."""


class Networks:
    """The networks of metrics on a device, each made when it is first asked for, and once.

    Args:
        said: what takes a network's place, by metric.
        fetched: whether weights that are not on this machine are fetched.

    Raises:
        ValueError: a metric looks through no network.
    """

    def __init__(self, device: str, said: Mapping[str, Said] | None = None, fetched: bool = True) -> None:
        self.device, self.said, self.fetched = device, said or {}, fetched
        self._found: dict[tuple[Any, Said | None], Network | NotAvailable] = {}
        if unknown := set(self.said) - set(MAKERS):
            raise ValueError(f"No metric {min(unknown)!r} looks through a network. Name one of {', '.join(MAKERS)}.")

    def of(self, metric: str) -> Any:
        """A metric's network; metrics that look through the same have the same object.

        Raises:
            NotAvailable: it cannot be had.
            ValueError: what takes its place is not there.
        """
        key = MAKERS[metric], self.said.get(metric)
        if key not in self._found:
            try:
                self._found[key] = MAKERS[metric](self.device, self.said.get(metric), self.fetched)
            except NotAvailable as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, NotAvailable):
            raise found
        return found


def given(spec: Said, device: str) -> Callable[..., Any]:
    """What is given in a network's place: a TorchScript file, `module:function` of something importable, or features.

    Both are called with pictures (N, 3, H, W) uint8 and give (N, D).

    Raises:
        ValueError: there is no such file, module or function.
    """
    if isinstance(spec, Extractor):
        return spec.features
    if Path(spec).expanduser().is_file():
        try:
            module = torch.jit.load(str(Path(spec).expanduser()), map_location=device)
        except RuntimeError as error:
            raise ValueError(f"{spec} is not a TorchScript file. Make one with torch.jit.save.") from error
        return module.eval()
    module_name, _, function = spec.partition(":")
    if not function:
        raise ValueError(f"There is no file {spec}. Give a TorchScript file, or a function as module:function.")
    try:
        return getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{spec} cannot be imported ({error}). Check both names and PYTHONPATH.") from error


def inception(device: str, spec: Said | None = None, fetched: bool = True) -> Extractor:
    """FID's network: TensorFlow's Inception-v3 of 2015 as torch-fidelity has it, 2,048 features.

    It resizes pictures to 299 as TensorFlow did.

    spec: in its place; or `inception:FILE`, that network with weights from this file.

    Raises:
        NotAvailable: torch-fidelity or its weights are not there.
    """
    file = None
    if isinstance(spec, str) and spec.startswith("inception:"):
        file = spec.removeprefix("inception:")
        read_pickle(Path(file))  # torch-fidelity would run what else a pickle says
    elif spec:
        return Extractor(_words(spec), given(spec, device))
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise NotAvailable("torch-fidelity is not installed: pip install torch-fidelity.") from error
    if not file:
        _check_there(_INCEPTION_FILE, fetched)
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=file, verbose=False
        )
    except (OSError, RuntimeError) as error:
        raise NotAvailable(_file_advice(_INCEPTION_FILE, error)) from error
    network = network.to(device).eval()
    words = "Inception-v3 (2015, torch-fidelity), 2048 features" + (f" with the weights {file}" if file else "")
    return Extractor(words, lambda pictures: network(pictures)[0])


def clip_pictures(device: str, spec: Said | None = None, fetched: bool = True) -> Extractor:
    """CMMD's network: CLIP ViT-L/14 at 336 pixels; features of length 1.

    Raises:
        NotAvailable: its weights are not there.
    """
    name = _clip_name(spec, CMMD_CLIP)
    if spec and not name:
        extract = given(spec, device)
        return Extractor(_words(spec), lambda pictures: torch.nn.functional.normalize(extract(pictures).float(), dim=1))
    model, processor = _clip(name, device, fetched)

    def features(pictures: Tensor) -> Tensor:
        inputs = processor(images=list(pictures.cpu()), return_tensors="pt").to(device)
        return torch.nn.functional.normalize(_tensor(model.get_image_features(**inputs)), dim=1)

    return Extractor(name, features)


def clip_score(device: str, spec: Said | None = None, fetched: bool = True) -> TextExtractor:
    """The CLIP score's network: ViT-B/16.

    spec: a `module:function` in its place, called with pictures and texts, which gives the features of both; or
        `clip:NAME`, another CLIP of the Hugging Face Hub or in a folder.

    Raises:
        NotAvailable: its weights are not there.
    """
    name = _clip_name(spec, CLIP_SCORE)
    if spec and not name:
        return TextExtractor(_words(spec), given(spec, device))
    model, processor = _clip(name, device, fetched)

    def features(pictures: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        images = processor(images=list(pictures.cpu()), return_tensors="pt").to(device)
        words = processor(text=texts, padding=True, truncation=True, return_tensors="pt").to(device)
        return _tensor(model.get_image_features(**images)), _tensor(model.get_text_features(**words))

    return TextExtractor(name, features)


def perceptual(device: str, spec: Said | None = None, fetched: bool = True) -> Distance:
    """LPIPS with AlexNet, by its authors' package; or the squared distance of a given network's features at length 1.

    Raises:
        NotAvailable: lpips or its weights are not there.
    """
    if spec:
        extract = given(spec, device)

        def distance(a: Tensor, b: Tensor) -> Tensor:
            one, other = (torch.nn.functional.normalize(extract(x).float(), dim=1) for x in (a, b))
            return (one - other).square().sum(1)

        return Distance(_words(spec), distance)
    try:
        import lpips
    except ImportError as error:
        raise NotAvailable("lpips is not installed: pip install lpips.") from error
    _check_there(_ALEXNET_FILE, fetched)
    try:
        network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()
    except OSError as error:  # URLError is one
        raise NotAvailable(_file_advice(_ALEXNET_FILE, error)) from error
    return Distance("LPIPS 0.1 (AlexNet)", lambda a, b: network(a / 127.5 - 1, b / 127.5 - 1).flatten())


MAKERS: dict[str, Callable[[str, Said | None, bool], Network]] = {
    "fid": inception,
    "kid": inception,
    "cmmd": clip_pictures,
    "clip": clip_score,
    "lpips": perceptual,
    "diversity": perceptual,
}
"""What makes the network of each metric that looks through one, on a device, from what is given in its place, with
its weights fetched or not."""


def _words(spec: Said) -> str:
    return spec.words if isinstance(spec, Extractor) else spec


def _clip_name(spec: Said | None, usual: str) -> str:
    """NAME of `clip:NAME`, the usual one of nothing, and no name of anything else."""
    if isinstance(spec, str) and spec.startswith("clip:"):
        return spec.removeprefix("clip:")
    return "" if spec else usual


def _check_there(file: str, fetched: bool) -> None:
    """Raise NotAvailable for weights that are not on this machine, unless they may be fetched."""
    if not fetched and not (_weights_folder() / file).exists():
        raise NotAvailable(_file_advice(file, FileNotFoundError("it is not on this machine")))


def _clip(name: str, device: str, fetched: bool) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(name, local_files_only=not fetched)
        processor = CLIPProcessor.from_pretrained(name, local_files_only=not fetched)
    except (OSError, ValueError) as error:
        raise NotAvailable(
            f"{name} cannot be had ({_first_line(error)}). Where there is a network, `hf download {name}` puts it into "
            "the Hugging Face cache (HF_HOME). Or give a folder that holds it (clip:FOLDER), or another network."
        ) from error
    return model.to(device).eval(), processor


def _tensor(output: Any) -> Tensor:
    """What newer versions of transformers wrap in an object of their own."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _weights_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _file_advice(file: str, error: Exception) -> str:
    return f"{file} cannot be had ({_first_line(error)}). Put it into {_weights_folder()}, or give another network."


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
