"""The plainest graph around each node of the pack: what its sockets need before it, what shows its result after it.

Every widget of the node itself is left as it is when the node is dropped. The help pages show these graphs, and the
tests run them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from comfy_client import Graph

Link = list[Any]  # [node id, output], as the server's API has it

BUILT_IN = {
    "one-step": "built-in: shapes",
    "two-rf": "built-in: shapes-2rf",
    "teacher": "built-in: shapes-teacher",
}
PROMPT = "a yellow star on a purple background"

# Which model a node is for, where it is not the one-step InstaFlow: by the node, or by its input.
MODELS = {
    "InstaFlowPeRFlow": "teacher",
    "InstaFlowInvert": "two-rf",
    "InstaFlowControl": "two-rf",
    "InstaFlowStraightness": "two-rf",
    "InstaFlowMergeDelta": "two-rf",
    "InstaFlowMergeDelta.finetuned": "one-step",
    "InstaFlowCompare.teacher": "teacher",
    "InstaFlowTriplets": "teacher",
    "InstaFlowReflow": "teacher",
    "InstaFlowDistill": "two-rf",
}
NEEDS_A_PICTURE = ("InstaFlowInvert.latent_image", "InstaFlowControl.target")


@dataclass
class Plain:
    """A graph that grows, each loader and prompt of it once.

    Attributes:
        info: the server's /object_info.
        checkpoints: role -> what InstaFlow Load Checkpoint names it.
        size: width and height of the pictures.
    """

    info: dict[str, Any]
    checkpoints: dict[str, str] = field(default_factory=lambda: dict(BUILT_IN))
    size: int = 64
    graph: Graph = field(default_factory=dict)

    def add(self, kind: str, **inputs: Any) -> str:
        """Add a node with its default widgets but for `inputs`; the id. The same node twice is one."""
        defaults = {
            name: _default(spec)
            for group in ("required", "optional")
            for name, spec in self.info[kind]["input"].get(group, {}).items()
            if _default(spec) is not None
        }
        node = {"class_type": kind, "inputs": {**defaults, **inputs}}
        for number, other in self.graph.items():
            if other == node:
                return number
        number = str(len(self.graph) + 1)
        self.graph[number] = node
        return number

    def dropped(self, kind: str) -> str:
        """Add a node of the pack as it is when dropped, with all that it requires; its id."""
        required = self.info[kind]["input"].get("required", {})
        widgets = {"checkpoint": self.checkpoints["one-step"]} if "checkpoint" in required else {}
        links = {
            name: self.source(kind, name, spec[0])
            for name, spec in required.items()
            if isinstance(spec[0], str) and _default(spec) is None
        }
        return self.add(kind, **widgets, **links)

    def source(self, kind: str, name: str, socket: str) -> Link:
        """What feeds the input `name` of a `kind`."""
        role = MODELS.get(f"{kind}.{name}", MODELS.get(kind, "one-step"))
        loader = self.add("InstaFlowLoadCheckpoint", checkpoint=self.checkpoints[role])
        match socket:
            case "MODEL" | "CLIP" | "VAE":
                return [loader, ("MODEL", "CLIP", "VAE").index(socket)]
            case "CONDITIONING":
                text = PROMPT if name != "negative" else ""
                return [self.add("CLIPTextEncode", clip=[loader, 1], text=text), 0]
            case "LATENT" if f"{kind}.{name}" in NEEDS_A_PICTURE:
                return [self.sampler(role), 0]
            case "LATENT":
                return [self.add("EmptyLatentImage", width=self.size, height=self.size), 0]
            case "IMAGE":
                return [self.add("VAEDecode", samples=[self.sampler(role), 0], vae=[loader, 2]), 0]
            case "INSTAFLOW_TRIPLETS":
                return [self.dropped("InstaFlowTriplets"), 0]
        raise KeyError(f"{kind} needs a {socket}, which nothing here gives")

    def sampler(self, role: str = "one-step", **inputs: Link) -> str:
        """An InstaFlow Sampler; `inputs` are its own sockets, the others are fed."""
        loader = self.add("InstaFlowLoadCheckpoint", checkpoint=self.checkpoints[role])
        fed = {name: self.source("InstaFlowSampler", name, kind) for name, kind in (("latent_image", "LATENT"),)}
        prompt = self.add("CLIPTextEncode", clip=[loader, 1], text=PROMPT)
        return self.add("InstaFlowSampler", **{"model": [loader, 0], "positive": [prompt, 0], **fed, **inputs})

    def show(self, samples: Link, role: str = "one-step") -> None:
        """Decode and show a LATENT."""
        loader = self.add("InstaFlowLoadCheckpoint", checkpoint=self.checkpoints[role])
        self.preview([self.add("VAEDecode", samples=samples, vae=[loader, 2]), 0])

    def preview(self, image: Link) -> None:
        """Show an IMAGE."""
        larger = self.add("ImageScale", image=image, upscale_method="lanczos", width=512, height=512)
        self.add("PreviewImage", images=[larger, 0])


def plain_graph(kind: str, plain: Plain) -> Graph:
    """The graph around a node of `kind` in the API's format; the node keeps its defaults."""
    node = plain.dropped(kind)
    role = MODELS.get(kind, "one-step")
    for number, socket in enumerate(plain.info[kind]["output"]):
        made = [node, number]
        match socket:
            case "MODEL" if kind == "InstaFlowPeRFlow":
                _custom(plain, role, made, [node, 1])
            case "MODEL":
                plain.show([plain.sampler("two-rf" if role == "two-rf" else "one-step", model=made), 0])
            case "SIGMAS" if kind == "InstaFlowScheduler":
                _custom(plain, role, plain.source(kind, "model", "MODEL"), made)
            case "NOISE" if kind != "InstaFlowControl":
                latent = {"latent_image": [node, 1]} if "LATENT" in plain.info[kind]["output"] else {}
                plain.show([plain.sampler(role, noise=made, **latent), 0], role)
            case "LATENT" if "NOISE" not in plain.info[kind]["output"] or kind == "InstaFlowControl":
                plain.show(made, role)
            case "IMAGE":
                plain.add("PreviewImage", images=made)
            case "FLOAT" | "STRING":
                plain.add("PreviewAny", source=made)
            case "INSTAFLOW_TRIPLETS":
                clip = plain.source("InstaFlowTriplets", "model", "MODEL")
                plain.show([plain.sampler(model=[plain.add("InstaFlowReflow", model=clip, triplets=made), 0]), 0])
    return plain.graph


def _custom(plain: Plain, role: str, model: Link, sigmas: Link) -> None:
    """Sample with the host's own SamplerCustom."""
    loader = plain.add("InstaFlowLoadCheckpoint", checkpoint=plain.checkpoints[role])
    prompts = {
        name: [plain.add("CLIPTextEncode", clip=[loader, 1], text=text), 0]
        for name, text in (("positive", PROMPT), ("negative", ""))
    }
    inputs = {
        **prompts,
        "model": model,
        "sigmas": sigmas,
        "cfg": 1.0,
        "sampler": [plain.add("KSamplerSelect"), 0],
        "latent_image": plain.source("InstaFlowSampler", "latent_image", "LATENT"),
    }
    plain.show([plain.add("SamplerCustom", **inputs), 0], role)


def _default(spec: list[Any]) -> Any:
    """The value of a widget as dropped; None for a socket."""
    kind, options = spec[0], (spec[1:] or [{}])[0]
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices is not None:
        return options.get("default", choices[0] if choices else "")
    return options.get("default") if kind in ("INT", "FLOAT", "STRING", "BOOLEAN") else None
