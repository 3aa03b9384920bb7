"""What no node can make a picture of: each row a graph, and what the red box has to say of it.

Every error names the input, what came, and what was expected; its last sentences say what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from graph_parts import Parts, check_refused

Bad = Callable[[Parts], Any]

nan, inf = float("nan"), float("inf")


def nested(p: Parts) -> Any:
    from comfy.nested_tensor import NestedTensor

    return {"samples": NestedTensor([p.latent()["samples"], torch.zeros(1, 8, 16)])}


# what is odd about it: (how it is made, what is said of it)
LATENTS: dict[str, tuple[Bad, str]] = {
    "no latents": (lambda p: p.latent(0, 4, 8, 8), "has the shape (0, 4, 8, 8)"),
    "latents without height": (lambda p: p.latent(1, 4, 0, 8), "has the shape (1, 4, 0, 8)"),
    "latents of a video": (lambda p: p.latent(1, 4, 3, 8, 8), "has the shape (1, 4, 3, 8, 8)"),
    "latents of a sound": (lambda p: p.latent(1, 4, 8), "has the shape (1, 4, 8)"),
    "latents of a video with sound": (nested, "holds a NestedTensor"),
    "NaN in one of two latents": (
        lambda p: {"samples": torch.cat([p.latent()["samples"], torch.full((1, 4, 8, 8), nan)])}, "not finite"
    ),
    "an infinite latent": (lambda p: {"samples": torch.full((1, 4, 8, 8), inf)}, "not finite"),
    "latents of whole numbers": (lambda p: {"samples": torch.zeros(1, 4, 8, 8, dtype=torch.int64)}, "type int64"),
    "complex latents": (lambda p: {"samples": torch.zeros(1, 4, 8, 8, dtype=torch.complex64)}, "type complex64"),
    "latents on no device": (lambda p: {"samples": torch.zeros(1, 4, 8, 8, device="meta")}, "on the device meta"),
    "a LATENT without samples": (lambda p: {"noise_mask": p.mask(1, 64, 64)}, "holds a NoneType"),
    "samples that are no tensor": (lambda p: {"samples": [0.0]}, "holds a list"),
    "a tensor in place of a LATENT": (lambda p: "latent", "holds a str"),
    "a batch_index for three of two": (lambda p: p.latent(2, 4, 8, 8, batch_index=[0, 1, 2]), "batch_index [0, 1, 2]"),
    "a batch_index below 0": (lambda p: p.latent(2, 4, 8, 8, batch_index=[0, -1]), "batch_index [0, -1]"),
    "a noise_mask of five dimensions": (
        lambda p: p.latent(noise_mask=torch.ones(1, 1, 1, 64, 64)), "noise_mask of the shape (1, 1, 1, 64, 64)"
    ),
    "a noise_mask of no size": (lambda p: p.latent(noise_mask=torch.ones(1, 0, 64)), "noise_mask of the shape (1, 0"),
    "a noise_mask with NaN": (lambda p: p.latent(noise_mask=torch.full((1, 64, 64), nan)), "not finite"),
}  # fmt: skip

CHANNELS: dict[str, tuple[Bad, str]] = {
    "16 channels, as Flux and SD3 have": (lambda p: p.latent(1, 16, 8, 8), "has the shape (1, 16, 8, 8)"),
    "an empty latent for SD3": (
        lambda p: p.run("EmptySD3LatentImage", width=64, height=64, batch_size=1), "has the shape (1, 16, 8, 8)"
    ),
    "one channel": (lambda p: p.latent(1, 1, 8, 8), "has the shape (1, 1, 8, 8)"),
    "three channels, as pixels have": (lambda p: p.latent(1, 3, 64, 64), "has the shape (1, 3, 64, 64)"),
    "a picture encoded by an autoencoder of 16 channels": (
        lambda p: p.run("VAEEncode", vae=p.vae_of_16_channels, pixels=torch.zeros(1, 64, 64, 3)),
        "has the shape (1, 16, 8, 8)",
    ),
}  # fmt: skip

PROMPTS: dict[str, tuple[Bad, str]] = {
    "an empty conditioning": (lambda p: [], "is empty"),
    "states of no tokens": (lambda p: p.states(1, 0, 64), "has the shape (1, 0, 64)"),
    "states of no prompts": (lambda p: p.states(0, 77, 64), "has the shape (0, 77, 64)"),
    "states without tokens": (lambda p: p.states(1, 64), "has the shape (1, 64)"),
    "states that are NaN": (lambda p: p.states(1, 77, 64, fill=nan), "not finite"),
    "states of whole numbers": (lambda p: [[torch.zeros(1, 77, 64, dtype=torch.int32), {}]], "type int32"),
    "states on no device": (lambda p: [[torch.zeros(1, 77, 64, device="meta"), {}]], "on the device meta"),
    "no states at all": (lambda p: [[None, {}]], "holds a NoneType"),
    "states alone": (lambda p: [torch.zeros(1, 77, 64)], "holds a Tensor"),
    "a text": (lambda p: "a red circle", "is a str"),
    "SD1.5's prompts, twelve times as wide": (lambda p: p.states(1, 77, 768), "768 wide"),
    "SDXL's prompts": (lambda p: p.states(1, 77, 2048, pooled_output=torch.zeros(1, 1280)), "2048 wide"),
    "a prompt of another CLIP": (lambda p: p.encode("a red circle", p.wide[1]), "128 wide"),
    "one good prompt and one of another CLIP": (
        lambda p: p.run(
            "ConditioningCombine", conditioning_1=p.text, conditioning_2=p.encode("a red circle", p.wide[1])
        ),
        "128 wide",
    ),
}  # fmt: skip

OTHER_MODELS: dict[str, tuple[Bad, str]] = {
    "nothing": (lambda p: None, "is a NoneType"),
    "a CLIP": (lambda p: p.clip, "is a CLIP"),
    "an SD2": (lambda p: p.sd20, "is a SD20"),
    "an SDXL": (lambda p: p.sdxl, "is a SDXL"),
    "an SD3": (lambda p: p.sd3, "is a SD3"),
    "a Flux": (lambda p: p.flux, "is a FluxSchnell"),
}

OTHER_WEIGHTS: dict[str, tuple[Bad, str]] = {
    "nothing": (lambda p: None, "is a NoneType"),
    "a CLIP": (lambda p: p.clip, "is a CLIP"),
    "an SD2": (lambda p: p.sd20, "differ in their tensors: 23 of different shapes"),
    "an SDXL": (lambda p: p.sdxl, "diffusion_model.label_emb.0.0.weight"),
    "an SD3": (lambda p: p.sd3, "diffusion_model.x_embedder.proj.weight"),
    "a Flux": (lambda p: p.flux, "diffusion_model.img_in.weight"),
    "a flow that reads prompts twice as wide": (lambda p: p.wide[0], "attn2.to_k.weight"),
}

NO_FLOWS: dict[str, tuple[Bad, str]] = {
    "nothing": (lambda p: None, "is a NoneType"),
    "a CLIP": (lambda p: p.clip, "is a CLIP"),
    "a Stable Diffusion": (lambda p: p.teacher, "EPS"),
    "an SDXL": (lambda p: p.sdxl, "EPS"),
    "an SD3, which is a flow of the other sign": (lambda p: p.sd3, "ModelSamplingDiscreteFlow + CONST"),
    "a Flux, which is a flow of the other sign": (lambda p: p.flux, "CONST"),
    "a flow under ModelSamplingDiscrete (lcm)": (
        lambda p: p.run("ModelSamplingDiscrete", model=p.model, sampling="lcm", zsnr=False), "LCM"
    ),
    "a flow under ModelSamplingDiscrete (v_prediction)": (
        lambda p: p.run("ModelSamplingDiscrete", model=p.model, sampling="v_prediction", zsnr=True), "V_PREDICTION"
    ),
    "a flow under ModelSamplingSD3": (lambda p: p.run("ModelSamplingSD3", model=p.model, shift=3.0), "CONST"),
    "a flow under ModelSamplingAuraFlow": (
        lambda p: p.run("ModelSamplingAuraFlow", model=p.model, shift=1.73), "CONST"
    ),
    "a flow under ModelSamplingFlux": (
        lambda p: p.run("ModelSamplingFlux", model=p.model, max_shift=1.15, base_shift=0.5, width=64, height=64),
        "CONST",
    ),
    "a flow under ModelSamplingStableCascade": (
        lambda p: p.run("ModelSamplingStableCascade", model=p.model, shift=2.0), "EPS"
    ),
    "a flow under ModelSamplingContinuousEDM": (
        lambda p: p.run(
            "ModelSamplingContinuousEDM", model=p.model, sampling="v_prediction", sigma_max=120.0, sigma_min=0.002
        ),
        "V_PREDICTION",
    ),
    "a flow under InstaFlow PeRFlow": (
        lambda p: p.run("InstaFlowPeRFlow", model=p.model, steps=4, windows=4, prediction="diff_eps"), "FlowSampling"
    ),
}  # fmt: skip

MASKS: dict[str, tuple[Bad, str]] = {
    "no masks": (lambda p: torch.ones(0, 64, 64), "has the shape (0, 64, 64)"),
    "a mask of one dimension": (lambda p: torch.ones(64), "has the shape (64,)"),
    "a mask of three channels": (lambda p: torch.ones(1, 3, 64, 64), "has the shape (1, 3, 64, 64)"),
    "a mask of a video": (lambda p: torch.ones(1, 1, 2, 64, 64), "has the shape (1, 1, 2, 64, 64)"),
    "a mask with NaN": (lambda p: torch.full((1, 64, 64), nan), "not finite"),
    "a mask that is all black": (lambda p: torch.zeros(1, 64, 64), "is 0 everywhere"),
    "a mask on no device": (lambda p: torch.ones(1, 64, 64, device="meta"), "on the device meta"),
    "a file's name": (lambda p: "mask.png", "is a str"),
}

TARGETS: dict[str, tuple[Bad, str]] = {
    "a target of another height": (lambda p: p.latent(1, 4, 9, 8), "has the shape (1, 4, 9, 8)"),
    "two targets for one picture": (lambda p: p.latent(2, 4, 8, 8), "has the shape (2, 4, 8, 8)"),
    "a target of 16 channels": (lambda p: p.latent(1, 16, 8, 8), "has the shape (1, 16, 8, 8)"),
}


class Noise:
    """A NOISE of another pack, which gives what it likes."""

    seed = 0

    def __init__(self, *shape: int, fill: float = 0.0) -> None:
        self.given = torch.full(shape, fill)

    def generate_noise(self, input_latent: Any) -> Any:
        return self.given


def interpolated(p: Parts, frames: int, *shape: int) -> Any:
    """The NOISE of a way between two seeds."""
    return p.run("InstaFlowInterpolateNoise", seed_from=0, seed_to=1, frames=frames, latent_image=p.latent(*shape))


NOISES: dict[str, tuple[Bad, str]] = {
    "a LATENT in place of a NOISE": (lambda p: p.latent(), "is a dict"),
    "noise of another size": (lambda p: Noise(1, 4, 16, 16), "gave noise of the shape (1, 4, 16, 16)"),
    "noise of 16 channels": (lambda p: Noise(1, 16, 8, 8), "gave noise of the shape (1, 16, 8, 8)"),
    "noise for two latents": (lambda p: Noise(2, 4, 8, 8), "gave noise of the shape (2, 4, 8, 8)"),
    "the noise of two frames for one latent": (
        lambda p: interpolated(p, 2, 1, 4, 8, 8),
        "is for latents of the shape (2, 4, 8, 8)",
    ),
    "the noise of a frame of another size": (
        lambda p: interpolated(p, 1, 1, 4, 8, 16),
        "is for latents of the shape (1, 4, 8, 16)",
    ),
    "noise that is NaN": (lambda p: Noise(1, 4, 8, 8, fill=nan), "that is not finite"),
}

VAES: dict[str, tuple[Bad, str]] = {
    "nothing, as from a checkpoint without a VAE": (lambda p: None, "is a NoneType"),
    "a VAE with none in it": (lambda p: p.vae_of_nothing, "no autoencoder in it"),
    "an autoencoder of 16 channels": (lambda p: p.vae_of_16_channels, "pictures with 16 channels"),
    "an autoencoder of videos": (lambda p: p.vae_of_videos, "videos with 48 channels"),
    "the autoencoder of models that work on pixels": (lambda p: p.vae_of_pixels, "pictures with 3 channels"),
}

CLIPS: dict[str, tuple[Bad, str]] = {
    "nothing, as from a checkpoint without a CLIP": (lambda p: None, "is a NoneType"),
    "a MODEL": (lambda p: p.model, "is a ModelPatcher"),
}
OTHER_CLIPS: dict[str, tuple[Bad, str]] = {
    "a CLIP twice as wide": (lambda p: p.wide[1], "128 wide"),
}

TRIPLETS: dict[str, tuple[Bad, str]] = {
    "triplets of 16 channels": (lambda p: p.triplets_of_16_channels, "hold latents of the shape (16, 4, 4)"),
    "triplets with a CLIP of another width": (
        lambda p: p.run("InstaFlowLoadTriplets", name=p.triplets.folder.name, clip=p.wide[1]),
        "128 wide",
    ),
}

# the table's first part: these for each of those inputs
TABLE: list[tuple[dict[str, tuple[Bad, str]], dict[str, str]]] = [
    (LATENTS, {
        "InstaFlowSampler": "latent_image",
        "InstaFlowInvert": "latent_image",
        "InstaFlowControl": "latent_image target",
        "InstaFlowStraightness": "latent_image",
        "InstaFlowCompare": "latent_image",
        "InstaFlowInterpolateNoise": "latent_image",
    }),
    (CHANNELS, {
        "InstaFlowSampler": "latent_image",
        "InstaFlowInvert": "latent_image",
        "InstaFlowControl": "latent_image",
        "InstaFlowStraightness": "latent_image",
        "InstaFlowCompare": "latent_image",
    }),
    (PROMPTS, {
        "InstaFlowSampler": "positive negative",
        "InstaFlowInvert": "positive negative",
        "InstaFlowControl": "positive negative",
        "InstaFlowStraightness": "positive negative",
        "InstaFlowCompare": "positive negative",
    }),
    (OTHER_MODELS, {
        "InstaFlowModelSampling": "model",
        "InstaFlowPeRFlow": "model",
        "InstaFlowAccelerate": "model",
        "InstaFlowSaveCheckpoint": "model",
        "InstaFlowCompare": "teacher",
        "InstaFlowEvaluate": "model",
        "InstaFlowTriplets": "model",
        "InstaFlowReflow": "model",
        "InstaFlowDistill": "model",
    }),
    ({name: row for name, row in OTHER_MODELS.items() if name != "nothing"}, {
        "InstaFlowEvaluate": "teacher",
        "InstaFlowCompare": "model_3 model_6",
    }),
    (OTHER_WEIGHTS, {"InstaFlowMergeDelta": "model finetuned base"}),
    (NO_FLOWS, {
        "InstaFlowSampler": "model",
        "InstaFlowScheduler": "model",
        "InstaFlowInvert": "model",
        "InstaFlowControl": "model",
        "InstaFlowStraightness": "model",
        "InstaFlowCompare": "model",
    }),
    (MASKS, {"InstaFlowControl": "mask"}),
    (TARGETS, {"InstaFlowControl": "target"}),
    (NOISES, {"InstaFlowSampler": "noise", "InstaFlowControl": "noise"}),
    (VAES, {"InstaFlowCompare": "vae", "InstaFlowEvaluate": "vae"}),
    ({name: row for name, row in VAES.items() if not name.startswith("nothing")}, {
        "InstaFlowAccelerate": "vae",
        "InstaFlowSaveCheckpoint": "vae",
        "InstaFlowReflow": "vae",
        "InstaFlowDistill": "vae",
    }),
    (CLIPS, {"InstaFlowEvaluate": "clip", "InstaFlowTriplets": "clip", "InstaFlowLoadTriplets": "clip"}),
    (OTHER_CLIPS, {"InstaFlowEvaluate": "clip", "InstaFlowTriplets": "clip", "InstaFlowSaveCheckpoint": "clip"}),
    (TRIPLETS, {"InstaFlowReflow": "triplets", "InstaFlowDistill": "triplets"}),
]  # fmt: skip


def rows() -> Iterator[Any]:
    for bad, nodes in TABLE:
        for node, inputs in nodes.items():
            for name in inputs.split():
                for sentence, (make, found) in bad.items():
                    yield pytest.param(node, name, make, found, id=f"{node} gets as {name}: {sentence}")


@pytest.mark.parametrize(("node", "name", "make", "found"), rows())
def test_refused(parts: Parts, node: str, name: str, make: Bad, found: str) -> None:
    check_refused(parts, node, {name: parts.made(make)}, name, found)
