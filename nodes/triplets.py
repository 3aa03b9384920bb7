"""Nodes of the first step: a teacher's triplets, made or found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from .host import memory, training
from .host.inputs import checked
from .host.progress import Progress
from .host.schema import advanced, prompts_input, schema, seed_input, size_inputs


@dataclass(frozen=True)
class TripletSet:
    """An INSTAFLOW_TRIPLETS: the folder a set lies in, and the CLIP its prompts are read with."""

    folder: Path
    clip: Any


Triplets = io.Custom("INSTAFLOW_TRIPLETS")


class InstaFlowTriplets(io.ComfyNode):
    """Step 1: what a teacher makes of prompts and noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowTriplets",
            display_name="InstaFlow Triplets",
            category="InstaFlow/training",
            description="Lets a teacher draw many prompts and keeps (text, noise, latent) on disk: what reflow and "
            "distillation learn from. Cancel and queue again to go on; a finished set is not made twice.",
            search_aliases=[
                "instaflow",
                "train",
                "dataset",
                "training data",
                "triplets",
                "pairs",
                "reflow",
                "distill",
                "teacher samples",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The teacher: a Stable Diffusion 1.5 for reflow, the 2-rectified flow for distillation.",
                ),
                io.Clip.Input("clip", tooltip="The teacher's text encoder."),
                prompts_input(),
                io.Int.Input("count", default=1000, min=1, max=10_000_000, tooltip="How many triplets to make."),
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Steps of the teacher. The paper: 25."),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance of the teacher; 0: its own, which its file names, else the paper's: 5.0 for "
                    "Stable Diffusion, 1.5 for a 2-rectified flow.",
                ),
                *size_inputs("teacher"),
                io.Int.Input("batch_size", default=8, min=1, max=1024, tooltip="Pictures to make at once."),
                seed_input("seed", "Seed of the noise: picture i starts from noise (seed, i).", control=False),
                io.String.Input(
                    "name",
                    default="my-triplets",
                    tooltip="Folder of the set, under output/instaflow/triplets. Another teacher, prompt or number "
                    "needs another name.",
                ),
                advanced(
                    io.Float.Input(
                        "empty_share",
                        optional=True,
                        default=0.0,
                        min=0.0,
                        max=0.99,
                        step=0.01,
                        tooltip="Share of the triplets with no prompt, for a flow that is to be guided; 0.1 is a good "
                        "number. The paper: 0.",
                    )
                ),
            ],
            outputs=[Triplets.Output(display_name="triplets", tooltip="For InstaFlow Reflow or InstaFlow Distill.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompts: str,
        count: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        batch_size: int,
        seed: int,
        name: str,
        empty_share: float = 0.0,
    ) -> io.NodeOutput:
        from ..instaflow_core.triplets.storage import Storage
        from ..instaflow_core.triplets.writing import SetConfig, SetWriter, describe_set, make_set, native_guidance

        folder = training.set_folder(name)
        texts = training.prompts(prompts, count)
        progress = Progress(count)
        teacher = training.as_checkpoint(model, clip, None)
        config = SetConfig(
            count,
            seed,
            steps,
            guidance or native_guidance(teacher),
            width or None,
            height or None,
            batch_size,
            training.computing_type(model),
            empty_share,
        )
        with training.training_device() as device:
            writer = SetWriter(Storage(folder), describe_set(teacher, config, texts))
            with memory.advising("A picture at a time is too much: make width and height smaller."):
                make_set(writer, teacher, config, texts, device, progress.add)
        return io.NodeOutput(TripletSet(folder, clip))

    @classmethod
    def fingerprint_inputs(cls, prompts: str = "", **_: Any) -> Any:
        """A file of prompts that was written again is read again."""
        return training.prompts_state(prompts)


class InstaFlowLoadTriplets(io.ComfyNode):
    """A set of triplets that is there already."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowLoadTriplets",
            display_name="InstaFlow Load Triplets",
            category="InstaFlow/training",
            description="A whole set of triplets that was made before, here, by the command line or on another "
            "machine, for reflow or distillation. Its teacher is not needed.",
            search_aliases=["instaflow", "train", "dataset", "training data", "triplets", "parquet", "load set"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=training.set_names(),
                    tooltip="A set under output/instaflow/triplets: a folder with set.json and shards in it.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder that the prompts are read with: the teacher's."),
            ],
            outputs=[Triplets.Output(display_name="triplets", tooltip="For InstaFlow Reflow or InstaFlow Distill.")],
        )

    @classmethod
    @checked
    def execute(cls, name: str, clip: Any) -> io.NodeOutput:
        return io.NodeOutput(TripletSet(training.whole_set(name), clip))
