"""The node that makes one step faster, and the picture no other."""

from typing import Any

from comfy_api.latest import io, ui

from .host import accelerating, tiny_decoder
from .host.fitting import check_vae
from .host.inputs import checked
from .host.model_files import modified
from .host.model_sampling import check_sd15
from .host.schema import schema


class InstaFlowAccelerate(io.ComfyNode):
    """A MODEL that keeps what one step computes again and again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowAccelerate",
            display_name="InstaFlow Accelerate",
            category="InstaFlow/model",
            description="The same picture in less time: keeps what one step would compute again for each picture. "
            "LoRAs, ControlNets and merges before or after it count as without it.",
            search_aliases=["instaflow", "speed", "fast", "accelerate", "optimize", "torch compile", "cache", "taesd"],
            inputs=[
                io.Model.Input("model", tooltip="An InstaFlow, or another model with Stable Diffusion 1.5's UNet."),
                io.Vae.Input(
                    "vae", optional=True, tooltip="The model's VAE. With another decoder it goes on encoding pictures."
                ),
                io.Combo.Input(
                    "mode",
                    options=list(accelerating.MODES),
                    default=accelerating.MODES[0],
                    tooltip="exact: what depends on the time and the caption alone is computed once, and attention on "
                    "a CPU in one pass. bf16: also computes in bfloat16, on CPUs that have it; small differences. "
                    "compile: exact with torch.compile, for many pictures of the same size; it wants a compiler for "
                    "the CPU, Triton for a GPU, and says here where it does not work.",
                ),
                io.Combo.Input(
                    "decoder",
                    options=tiny_decoder.decoder_names(),
                    optional=True,
                    tooltip="full: the VAE's own. Or a tiny one from models/vae_approx, almost as good and far faster: "
                    "TAESD's taesd_decoder, or one that python -m instaflow_core distill-decoder has made.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The same model, faster. The input is not changed."),
                io.Vae.Output(display_name="VAE", tooltip="The VAE to decode with; none where none is connected."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, model: Any, vae: Any = None, mode: str = accelerating.MODES[0], decoder: str | None = None
    ) -> io.NodeOutput:
        check_sd15(model, "Connect the MODEL of InstaFlow Load Checkpoint, or leave this node out for this one.")
        if vae is not None:
            check_vae(vae, model)
        decoding = tiny_decoder.with_decoder(tiny_decoder.FULL if decoder is None else decoder, vae)
        faster, decoding, said = accelerating.accelerated(model, decoding, mode)
        return io.NodeOutput(faster, decoding, ui=ui.PreviewText(said) if said else None)

    @classmethod
    def fingerprint_inputs(cls, decoder: str = tiny_decoder.FULL, **_: Any) -> Any:
        """A decoder that was written again under its name, by a training say, is loaded again."""
        return [] if decoder == tiny_decoder.FULL else modified(str(tiny_decoder.decoder_file(decoder)))
