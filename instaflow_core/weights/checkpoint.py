"""Checkpoints: found by name, loaded from any layout, kept under diffusers names.

Tensors of a loaded checkpoint stay on disk until they are used; nothing may write into them. What its UNet predicts is,
in this order:

1. what the caller says (`load(..., prediction=..., rule=...)`);
2. what the file or folder says: `metadata.said_in_file`, `metadata.said_in_folder`;
3. what the row predicts that it is found to be of: `rows`;
4. velocity, since choosing our loader is a sign of it; `prediction_is_assumed` then, also once it is saved.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from ..rules import RULES, Rule
from .files import Config, FormatError, Metadata, Weights
from .metadata import ASSUMED_KEY, LARGEST_SIDE, RULE_ASSUMED_KEY, RULE_KEY, ZERO_SNR_KEY
from .reading import read_source

MODELS = Path(__file__).parents[2] / "models"
BUILT_IN = {
    "built-in: shapes": "shapes.safetensors",
    "built-in: shapes-2rf": "shapes-2rf.safetensors",
    "built-in: shapes-teacher": "shapes-teacher.safetensors",
}
"""The models this pack ships: the name they go by, and their file in models/."""


@dataclass
class Checkpoint:
    """A model's weights, configs and metadata.

    unet: keys of diffusers' UNet2DConditionModel, with unet_config.
    text_encoder: keys of transformers' CLIPTextModel, always under `text_model.`, with text_config; or None.
    vae: keys of diffusers' AutoencoderKL or AutoencoderTiny (vae_config's `_class_name`); or None.
    metadata: strings, as in a safetensors header.
    layout: how the source kept it, in words.
    said_by: who says what the UNet predicts, in words.
    source: the file or folder it was loaded from; None where it was made.
    homes: the file or folder that the tensors of "unet", "text_encoder" and "vae" are views of; a part in memory
        has none.
    """

    unet: Weights
    unet_config: Config
    text_encoder: Weights | None = None
    text_config: Config | None = None
    vae: Weights | None = None
    vae_config: Config | None = None
    metadata: Metadata = field(default_factory=dict)
    layout: str = "in memory"
    said_by: str = "its maker"
    source: Path | None = None
    homes: dict[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What messages call it."""
        return "this checkpoint" if self.source is None else self.source.name

    @property
    def prediction(self) -> str:
        """What the UNet predicts: "velocity" (data minus noise), or what an ordinary diffusion model does: "epsilon"
        (the noise) or "v"."""
        return self.metadata.get("instaflow.prediction", "velocity")

    @property
    def prediction_is_assumed(self) -> bool:
        """Whether nothing and nobody said what the UNet predicts."""
        return ASSUMED_KEY in self.metadata

    @property
    def rule(self) -> Rule | None:
        """The row of `rules` it is sampled by; None for a plain diffusion model, or a flow that does not say which."""
        if RULE_KEY in self.metadata:
            return RULES[self.metadata[RULE_KEY]]
        flows = (rule for rule in RULES.values() if rule.prediction == "velocity" and self.is_flow)
        return next((rule for rule in flows if rule.stage == self.stage), None)

    @property
    def sampled_as(self) -> str:
        """What its pictures depend on beside its weights: its prediction, or its row where that says more."""
        return self.metadata.get(RULE_KEY, self.prediction)

    @property
    def rule_is_assumed(self) -> bool:
        """Whether only its name says which row it is of."""
        return RULE_ASSUMED_KEY in self.metadata

    @property
    def is_flow(self) -> bool:
        """Whether it is sampled as a rectified flow, and not as a diffusion model."""
        return self.prediction == "velocity"

    @property
    def zero_snr(self) -> bool:
        """Whether it is sampled as a diffusion model whose noise schedule ends in zero terminal SNR."""
        return not self.is_flow and ZERO_SNR_KEY in self.metadata

    @property
    def stage(self) -> str:
        """How it was made: "one-step", "2-rectified-flow", "few-step" (another row), "teacher", or "unknown"."""
        return self.metadata.get("instaflow.stage", "unknown" if self.is_flow else "teacher")

    @property
    def guidance(self) -> float:
        """The guidance it wants; 1.0 is none."""
        return float(self.metadata.get("instaflow.guidance", "1.5" if self.stage == "2-rectified-flow" else "1.0"))

    @property
    def latent_downscale(self) -> int:
        """Pixels to one latent, along each side."""
        config = self.vae_config or {}
        levels = config.get("encoder_block_out_channels") or config.get("block_out_channels") or [0] * 4
        return 2 ** (len(levels) - 1)

    @property
    def native_size(self) -> int:
        """Side of the pictures it was trained on, in pixels."""
        if "instaflow.native_size" in self.metadata:
            return int(self.metadata["instaflow.native_size"])
        if said := re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", self.metadata.get("modelspec.resolution", "")):
            return min(map(int, said.groups()))
        size = self.unet_config.get("sample_size") or 64
        return (size if isinstance(size, int) else max(size)) * self.latent_downscale

    def latent_shape(self, width: int | None = None, height: int | None = None) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of pictures of that many pixels; of the native size where None."""
        unit = self.latent_downscale
        size = ((pixels or self.native_size) // unit for pixels in (height, width))
        return (self.unet_config.get("in_channels", 4), *size)

    def part(self, name: str) -> tuple[Weights, Config] | None:
        """Tensors and config of "unet", "text_encoder" or "vae"; None where the checkpoint lacks it."""
        tensors, config = {
            "unet": (self.unet, self.unet_config),
            "text_encoder": (self.text_encoder, self.text_config),
            "vae": (self.vae, self.vae_config),
        }[name]
        return None if tensors is None or config is None else (tensors, config)

    def let_go_of(self, path: Path) -> None:
        """Copy the tensors into memory that are views of `path`, or of what lies in it, where it is to be replaced:
        Windows does not replace a file that is mapped."""
        if not path.exists():
            return
        there = path.resolve()
        for part, home in list(self.homes.items()):
            mapped = home.resolve()
            if there == mapped or there in mapped.parents or mapped in there.parents:
                weights = getattr(self, part) or {}
                weights.update({name: tensor.clone() for name, tensor in weights.items()})
                del self.homes[part]


# --- loading ----------------------------------------------------------------------------------------------------------


def load(source: str | Path, prediction: str | None = None, rule: str | None = None) -> Checkpoint:
    """Load a checkpoint.

    Args:
        source: a diffusers folder (or its unet/), a single file, a bare UNet, or a name in BUILT_IN.
        prediction: what its UNet predicts, whatever it says itself: "epsilon", "v", "velocity", or "noise-minus-data",
            which is read as a velocity with the other sign. None takes the source's word, else velocity.
        rule: the name of the row of `rules` it is sampled by. None takes what is found, if anything.

    Raises:
        FormatError: it is not a whole model of Stable Diffusion 1.5's kind, or not one for that rule.
        ValueError: there is no such prediction or rule, or they contradict each other.
    """
    path = locate(source)
    read = read_source(path, prediction, rule)
    unet, unet_config = read.parts["unet"]
    text, text_config = read.parts.get("text_encoder", (None, None))
    vae, vae_config = read.parts.get("vae", (None, None))
    layout = read.layout.in_words
    loaded = Checkpoint(
        unet, unet_config, text, text_config, vae, vae_config, read.metadata, layout, read.said_by, path, read.homes
    )
    if not 8 <= loaded.native_size <= LARGEST_SIDE:
        raise FormatError(
            f"{path.name} says that its pictures are {loaded.native_size:,} pixels wide",
            f"8 to {LARGEST_SIDE:,}",
            "Get the file again, with its own config.",
        )
    return loaded


def locate(source: str | Path) -> Path:
    """The path of a built-in name, or of a file or folder that exists; FormatError otherwise."""
    name = str(source)
    if name.startswith("built-in:"):
        if name not in BUILT_IN:
            raise FormatError(f"No built-in model is called {name!r}", " or ".join(BUILT_IN), "Check the spelling.")
        path = MODELS / BUILT_IN[name]
        advice = "Install the pack again, or make the models with `make models`."
    else:
        path = Path(source).expanduser()
        advice = "Check the name and the folder; built-in models are called " + ", ".join(BUILT_IN) + "."
    if not path.exists():
        raise FormatError(f"There is nothing at {path}", "a checkpoint file or a diffusers folder", advice)
    return path
