"""Nodes of the second and third step: reflow and distillation, on a set of triplets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..instaflow_core.training.accelerator import PRECISIONS
from .host import checkpoints, memory, training
from .host.inputs import checked
from .host.progress import Progress
from .host.schema import advanced, schema, seed_input
from .triplets import Triplets, TripletSet

if TYPE_CHECKING:
    from ..instaflow_core.training.config import StageConfig


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
        seed_input("seed", "Seed of the order of the triplets and of the times.", control=False),
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
