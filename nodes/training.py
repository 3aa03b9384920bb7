"""Nodes that make an InstaFlow: triplets from a teacher, reflow, distillation (the paper's three steps)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..instaflow_core.training.accelerator import PRECISIONS
from .host import checkpoints, memory, training
from .host.inputs import checked
from .host.progress import Progress
from .host.schema import advanced, prompts_input, schema, seed_input

if TYPE_CHECKING:
    from ..instaflow_core.training.config import StageConfig


@dataclass(frozen=True)
class TripletSet:
    """An INSTAFLOW_TRIPLETS: the folder a set lies in, and the CLIP its prompts are read with."""

    folder: Path
    clip: Any


Triplets = io.Custom("INSTAFLOW_TRIPLETS")


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """The inputs that both trainings have, by their names in the schema."""

    model: Any
    triplets: TripletSet
    iterations: int
    batch_size: int
    learning_rate: float
    ema: float
    method: str
    resume: bool
    seed: int
    name: str
    vae: Any = None
    schedule: str = "constant"
    warmup: int = -1
    rank: int = 64
    precision: str = "auto"
    evaluate_every: int = 0


@dataclass(frozen=True, kw_only=True)
class ReflowInputs(TrainingInputs):
    """Those of reflow."""

    times: str = "uniform"


@dataclass(frozen=True, kw_only=True)
class DistillationInputs(TrainingInputs):
    """Those of distillation."""

    loss: str
    on_policy: float = 0.0


_PRECISIONS = ["auto", *PRECISIONS]


def _seed_input(tooltip: str) -> Any:
    """A seed that stays: another would be another run, where queueing again should go on with this one."""
    return seed_input("seed", tooltip, control=False)


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
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Of the pictures in pixels; 0: the teacher's own.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Of the pictures in pixels; 0: the teacher's own.",
                ),
                io.Int.Input("batch_size", default=8, min=1, max=1024, tooltip="Pictures to make at once."),
                _seed_input("Seed of the noise: picture i starts from noise (seed, i)."),
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


def _training_inputs(model_tooltip: str, name: str, *of_the_stage: Any) -> list[Any]:
    """The inputs that both trainings have, and the stage's own advanced ones. The defaults are the paper's where one
    GPU can follow it."""
    return [
        io.Model.Input("model", tooltip=model_tooltip),
        Triplets.Input("triplets", tooltip="The set to learn from, of InstaFlow Triplets or Load Triplets."),
        io.Int.Input("iterations", default=1000, min=1, max=10_000_000, tooltip="Optimiser steps in all."),
        io.Int.Input("batch_size", default=64, min=1, max=4096, tooltip="Triplets to a step. The paper: 64 and more."),
        io.Float.Input(
            "learning_rate",
            default=1e-6,
            min=0.0,
            max=1.0,
            step=1e-7,
            round=False,
            tooltip="Of AdamW, reached after the warm-up. The paper: 1e-6; small models and LoRAs take 1e-4 and more.",
        ),
        io.Float.Input(
            "ema",
            default=0.99,
            min=0.0,
            max=0.99999,
            step=0.0001,
            round=False,
            tooltip="Decay of the weights' moving average, which is the result. It looks back over 1 / (1 - ema) "
            "iterations, 100 at 0.99; train several times that. The paper: 0.9999.",
        ),
        io.Combo.Input(
            "method", options=["full", "lora"], default="full", tooltip="Train all weights, or a LoRA (less memory)."
        ),
        io.Boolean.Input(
            "resume",
            default=True,
            tooltip="Go on with the run of this name, if there is one. Off: refuse to touch what is there.",
        ),
        _seed_input("Seed of the order of the triplets and of the times."),
        io.String.Input(
            "name",
            default=name,
            tooltip="The result goes to output/checkpoints/NAME.safetensors, where InstaFlow Load Checkpoint lists it "
            "after a refresh (R).",
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip="To show samples during the training, and to go into the checkpoint, which then stands alone.",
        ),
        *map(advanced, (*of_the_stage, *_schedule_inputs())),
    ]


def _schedule_inputs() -> list[Any]:
    """How the rate goes, what is computed in which size, and how often the model is measured."""
    return [
        io.Combo.Input(
            "schedule",
            options=["constant", "cosine"],
            default="constant",
            optional=True,
            tooltip="Hold the learning rate after the warm-up, or let it fall to 0 along a cosine.",
        ),
        io.Int.Input(
            "warmup",
            default=-1,
            min=-1,
            max=1_000_000,
            optional=True,
            tooltip="Iterations up to the learning rate; -1: a tenth of all, 1000 at most.",
        ),
        io.Int.Input("rank", default=64, min=1, max=1024, optional=True, tooltip="Of the LoRA, where that is trained."),
        io.Combo.Input(
            "precision",
            options=_PRECISIONS,
            default="auto",
            optional=True,
            tooltip="What is computed in; the weights stay float32. auto: bf16 where ComfyUI would compute in it.",
        ),
        io.Int.Input(
            "evaluate_every",
            default=0,
            min=0,
            max=10_000_000,
            optional=True,
            tooltip="Iterations between small evaluations, whose curves are drawn, too; needs `vae`. 0: none.",
        ),
    ]


_TRAINING_OUTPUTS = [
    io.Model.Output(display_name="model", tooltip="The trained model, loaded from its file."),
    io.Image.Output(
        display_name="loss curve",
        tooltip="The loss over the iterations; after reflow also over the time t; the figures of the evaluations.",
    ),
    io.LossMap.Output(display_name="losses", tooltip="The loss of each iteration, for ComfyUI's own Plot Loss Graph."),
]


class InstaFlowReflow(io.ComfyNode):
    """Step 2: the teacher's trajectories, straightened."""

    Inputs = ReflowInputs

    @classmethod
    def define_schema(cls) -> io.Schema:
        times = io.Combo.Input(
            "times",
            options=["uniform", "u-shaped"],
            default="uniform",
            optional=True,
            tooltip="Draw t evenly, as in the paper, or both ends more often, where the flow still errs most.",
        )
        return schema(
            node_id="InstaFlowReflow",
            display_name="InstaFlow Reflow",
            category="InstaFlow/training",
            description="Trains a 2-rectified flow on a teacher's triplets, starting from the teacher. Cancel keeps a "
            "checkpoint; queue again to go on. The result is always saved.",
            search_aliases=[
                "instaflow",
                "train",
                "training",
                "rectified flow",
                "reflow",
                "finetune",
                "2-rectified flow",
                "distill",
            ],
            inputs=_training_inputs("The teacher the triplets are from.", "my-2-rectified-flow", times),
            outputs=_TRAINING_OUTPUTS,
        )

    @classmethod
    @checked
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        taken = cls.Inputs(**inputs)
        return _trained("reflow", taken, times=taken.times)


class InstaFlowDistill(io.ComfyNode):
    """Step 3: the 2-rectified flow in one step."""

    Inputs = DistillationInputs

    @classmethod
    def define_schema(cls) -> io.Schema:
        loss = io.Combo.Input(
            "loss",
            options=["l2", "huber", "lpips"],
            default="l2",
            tooltip="Distance from the flow's end point. The paper: l2, then lpips on decoded pictures (needs `vae` "
            "and the lpips package). huber forgives what the model cannot fit yet.",
        )
        on_policy = io.Float.Input(
            "on_policy",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="Share of a batch that learns the flow's answer to the student's own draft in place of the flow's "
            "end, for half as much again to compute. The paper: 0; the built-in model: 1.",
        )
        inputs = _training_inputs("The 2-rectified flow that made the triplets.", "my-instaflow", on_policy)
        return schema(
            node_id="InstaFlowDistill",
            display_name="InstaFlow Distill",
            category="InstaFlow/training",
            description="Distils a 2-rectified flow into one step, on triplets that it made itself. Cancel keeps a "
            "checkpoint; queue again to go on. The result is always saved.",
            search_aliases=[
                "instaflow",
                "train",
                "training",
                "one step",
                "distill",
                "distillation",
                "student",
                "turbo",
                "lcm",
            ],
            inputs=[*inputs[:2], loss, *inputs[2:]],
            outputs=_TRAINING_OUTPUTS,
        )

    @classmethod
    @checked
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        taken = cls.Inputs(**inputs)
        return _trained("distill", taken, loss=taken.loss, on_policy=taken.on_policy)


_LESS_MEMORY = (
    "A triplet at a time is too much: train a LoRA (method), or on smaller pictures. Queued again, the run goes on."
)


def _trained(stage: str, inputs: TrainingInputs, **only_here: Any) -> io.NodeOutput:
    """Train as the inputs say, and load the result from its file."""
    from ..instaflow_core.pictures.images import image_tensor
    from ..instaflow_core.shapes.evaluate import training_curve
    from ..instaflow_core.training.runs import StageResult, equal_parts, train
    from ..instaflow_core.triplets.storage import Storage

    out, storage = training.result_path(inputs.name), Storage(inputs.triplets.folder)
    progress = Progress(inputs.iterations)
    init = training.as_checkpoint(inputs.model, inputs.triplets.clip, inputs.vae, "triplets")
    with training.training_device() as device:
        parts = equal_parts(inputs.batch_size, storage, only_here.get("loss", ""))

        def in_parts(number: int) -> StageResult:
            return train(
                init,
                [storage],
                _config(stage, inputs, number, device, only_here),
                out,
                inputs.resume or number > parts[0],  # then it is this node's own run
                device,
                progress.at,
                progress.show,
                work=training.run_folder(inputs.name),
                lora=training.lora_path(inputs.name),
                watcher=training_curve("cpu", lambda _: progress.add(0)),
            )

        made = memory.with_fewer_at_once(parts, in_parts, _LESS_MEMORY)
    model = checkpoints.load_model(str(out), "default")
    return io.NodeOutput(model, image_tensor(made.charts), {"loss": made.losses})


def _config(stage: str, inputs: TrainingInputs, parts: int, device: str, only_here: dict[str, Any]) -> StageConfig:
    """The training that the inputs ask for, as the core takes it, with each batch in so many parts."""
    from ..instaflow_core.training.config import SCHEDULES, LoopConfig, StageConfig, usual_warmup

    loop = LoopConfig(
        iterations=inputs.iterations,
        learning_rate=inputs.learning_rate,
        warmup=usual_warmup(inputs.iterations) if inputs.warmup < 0 else inputs.warmup,
        schedule=SCHEDULES[inputs.schedule],
        ema=inputs.ema,
        precision=training.precision() if inputs.precision == "auto" else PRECISIONS[inputs.precision],
        accumulate=parts,
        snapshot_every=max(1, inputs.iterations // 20),
        evaluate_every=inputs.evaluate_every,
    )
    return StageConfig(
        stage,
        loop,
        inputs.batch_size,
        inputs.seed,
        inputs.method,
        inputs.rank,
        checkpointing=device != "cpu",
        **only_here,
    )
