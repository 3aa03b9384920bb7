"""The node that says what a model is worth: the metrics of the command `evaluate`, for a few pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui
from torch import Tensor

from .guidance import check_guidance
from .host import memory, paths, training
from .host.inputs import checked
from .host.progress import Progress
from .host.schema import advanced, prompts_input, report_output, schema, seed_input, size_inputs

if TYPE_CHECKING:
    from ..instaflow_core.evaluation.extractors import Networks
    from ..instaflow_core.evaluation.runs import Evaluation

BUILT_IN, OF_PAPERS = "built-in", "as in papers"


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """The node's inputs, by their names in the schema."""

    model: Any
    clip: Any
    vae: Any
    prompts: str
    count: int = 16
    steps: int = 1
    guidance: float = 0.0
    seed: int = 0
    width: int = 0
    height: int = 0
    networks: str = BUILT_IN
    teacher: Any = None
    images: Tensor | None = None
    teacher_steps: int = 25
    teacher_guidance: float = 0.0


class InstaFlowEvaluate(io.ComfyNode):
    """Figures of one model at one number of steps."""

    Inputs = EvaluationInputs

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowEvaluate",
            display_name="InstaFlow Evaluate",
            category="InstaFlow/analysis",
            description="Draws pictures of the prompts, `count` in all, and measures them: how near to a teacher's and "
            "to given pictures, how different from seed to seed, how straight the paths are, the time of each. The "
            "command evaluate gives the same figures of thousands.",
            search_aliases=[
                "instaflow",
                "evaluate",
                "metrics",
                "FID",
                "KID",
                "CMMD",
                "CLIP score",
                "LPIPS",
                "PSNR",
                "benchmark",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to measure: an InstaFlow or a Stable Diffusion 1.5."),
                io.Clip.Input("clip", tooltip="Reads the prompts, for the model and the teacher."),
                io.Vae.Input("vae", tooltip="Decodes the pictures of the model and the teacher."),
                prompts_input(),
                io.Int.Input(
                    "count",
                    default=16,
                    min=2,
                    max=256,
                    tooltip="How many pictures. More make the intervals narrower; for thousands take the command.",
                ),
                io.Int.Input(
                    "steps", default=1, min=1, max=1000, tooltip="Steps of the model: 1 for InstaFlow, more for others."
                ),
                _guidance_input("guidance", "Of the model"),
                seed_input(
                    "seed", "Of the noise: picture i starts from noise (seed, i). Keep it to compare.", 0, False
                ),
                *size_inputs("model"),
                io.Combo.Input(
                    "networks",
                    options=[BUILT_IN, OF_PAPERS],
                    default=BUILT_IN,
                    tooltip="What distances are measured through: the built-in autoencoder, which is small and here, "
                    "or Inception, CLIP and LPIPS, where they are on this machine. Nothing is fetched.",
                ),
                io.Model.Input(
                    "teacher", optional=True, tooltip="Whose pictures from the same noise lpips and psnr compare with."
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Two or more pictures that fid, kid and cmmd compare with."
                ),
                advanced(
                    io.Int.Input(
                        "teacher_steps",
                        optional=True,
                        default=25,
                        min=1,
                        max=1000,
                        tooltip="Steps of the teacher. The paper: 25.",
                    )
                ),
                advanced(_guidance_input("teacher_guidance", "Of the teacher", optional=True)),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The first pictures, sixteen at most, as one."),
                io.Image.Output(display_name="chart", tooltip="Each figure with its interval of 95 %."),
                report_output("Each metric in a line: its figure and how it was measured, or why it was not computed."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        from ..instaflow_core.evaluation.report import chart_of, grid_of, in_words
        from ..instaflow_core.pictures.images import image_tensor

        taken = cls.Inputs(**inputs)
        with paths.temporary_folder() as folder:
            evaluation = _evaluation(taken, folder)
            results = evaluation.run(Progress(taken.count).add)
            pictures = [grid_of(evaluation.gallery), chart_of(results)]
        report = in_words(results)
        grid, chart = (image_tensor([picture]) for picture in pictures)
        return io.NodeOutput(grid, chart, report, ui=ui.PreviewText(report))

    @classmethod
    def fingerprint_inputs(cls, prompts: str = "", **_: Any) -> Any:
        """A file of prompts that was written again is read again."""
        return training.prompts_state(prompts)


def _guidance_input(name: str, whose: str, **more: Any) -> Any:
    return io.Float.Input(
        name,
        default=0.0,
        min=0.0,
        max=30.0,
        step=0.1,
        tooltip=f"{whose}, away from the empty prompt; 0: its own, which its file names, else the paper's.",
        **more,
    )


def _evaluation(taken: EvaluationInputs, folder: Path) -> Evaluation:
    """The measurement that the inputs ask for, with its pictures in a folder."""
    from ..instaflow_core.evaluation.pictures import Given
    from ..instaflow_core.evaluation.runs import Evaluation, EvaluationConfig
    from ..instaflow_core.pictures.images import image_pictures
    from ..instaflow_core.shapes.evaluate import judges_of
    from .host.drawing import HostDrawing

    drawing = HostDrawing(taken.model, taken.clip, taken.vae)
    check_guidance(drawing.checkpoint.stage, taken.guidance)
    teacher = HostDrawing(taken.teacher, taken.clip, taken.vae, "teacher") if taken.teacher is not None else None
    images = taken.images
    texts = training.prompts(taken.prompts, taken.count)
    config = EvaluationConfig(
        taken.count,
        taken.seed,
        taken.steps,
        taken.guidance or None,
        taken.width or None,
        taken.height or None,
        batch_size=1,
        teacher_steps=taken.teacher_steps,
        teacher_guidance=taken.teacher_guidance or None,
    )
    return Evaluation(
        drawing,
        texts,
        config,
        folder / "model",
        folder,
        _networks(taken.networks),
        images=None if images is None else Given(image_pictures(images[..., :3]), "images"),
        teacher=teacher,
        judges=judges_of(texts),
    )


def _networks(choice: str) -> Networks:
    """What metrics look through; nothing is fetched."""
    from ..instaflow_core.evaluation.extractors import MAKERS, Networks
    from ..instaflow_core.shapes.features import FEATURES

    built_in = {name: FEATURES for name in MAKERS if name != "clip"} if choice == BUILT_IN else {}
    return Networks(memory.computing_device(), built_in, fetched=False)
