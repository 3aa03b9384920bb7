"""Nodes that bring an InstaFlow into the host as its own MODEL, CLIP and VAE, and write one back to a file."""

from typing import Any

from comfy_api.latest import io

from .host import checkpoints, model_files, model_sampling, saving
from .host.inputs import checked
from .host.schema import advanced, schema

_PREFIX = "checkpoints/InstaFlow"
_AS_SAID = "auto"


def _weight_dtype_input() -> Any:
    return io.Combo.Input(
        "weight_dtype",
        options=list(checkpoints.WEIGHT_DTYPES),
        default="default",
        tooltip="The type the weights are kept in. default: what the host chooses for this machine. fp32: everything, "
        "text encoder and VAE too, for pictures that match the reference. fp16, bf16 and fp8: the UNet only, to save "
        "memory.",
    )


def _prediction_input() -> Any:
    return advanced(
        io.Combo.Input(
            "prediction",
            options=[_AS_SAID, *checkpoints.predictions()],
            default=_AS_SAID,
            optional=True,
            tooltip="What the UNet predicts. auto: what the file says of itself, else velocity, and the log says so. "
            "epsilon or v: an ordinary Stable Diffusion. noise-minus-data: a flow of other trainers, whose sign is the "
            "other one.",
        )
    )


def _rule_input() -> Any:
    return advanced(
        io.Combo.Input(
            "rule",
            options=[_AS_SAID, *checkpoints.rules()],
            default=_AS_SAID,
            optional=True,
            tooltip="How a few-step model is sampled, in one step or a few, by any sampler node. auto: what the file "
            "or its scheduler says, else its name, and then the log says so. The help page shows the choices.",
        )
    )


def _said(name: str) -> str | None:
    return None if name == _AS_SAID else name


class InstaFlowLoadCheckpoint(io.ComfyNode):
    """A whole InstaFlow: built in, a single file, or a diffusers folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowLoadCheckpoint",
            display_name="InstaFlow Load Checkpoint",
            category="InstaFlow/loaders",
            description="Loads an InstaFlow or 2-Rectified Flow as MODEL, CLIP and VAE. Works at once with the small "
            "built-in models; the released weights (CC-BY-NC-4.0) go into models/diffusers as they are.",
            search_aliases=[
                "instaflow",
                "rectified flow",
                "load checkpoint",
                "load model",
                "one step",
                "turbo",
                "fast",
                "lcm",
                "diffusers",
                "2-rectified",
            ],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=model_files.checkpoint_names(),
                    tooltip="A built-in model, a single file of models/checkpoints, or a diffusers folder of "
                    "models/diffusers (one that holds unet/ or model_index.json).",
                ),
                _weight_dtype_input(),
                _prediction_input(),
                _rule_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="The flow, for InstaFlow Sampler, KSampler and the rest."
                ),
                io.Clip.Output(display_name="CLIP", tooltip="The text encoder, for CLIP Text Encode."),
                io.Vae.Output(display_name="VAE", tooltip="Between pixels and latents, for VAE Decode and Encode."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, checkpoint: str, weight_dtype: str, prediction: str = _AS_SAID, rule: str = _AS_SAID
    ) -> io.NodeOutput:
        source = model_files.checkpoint_source(checkpoint)
        return io.NodeOutput(*checkpoints.load_all(source, weight_dtype, _said(prediction), _said(rule)))

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str = "", **_: Any) -> Any:
        """A checkpoint that was written again under its name, by a training say, is loaded again.

        An input that another node gives is not known yet when the host asks.
        """
        return model_files.modified(model_files.checkpoint_source(checkpoint)) if checkpoint else []


class InstaFlowLoadUNet(io.ComfyNode):
    """An InstaFlow's UNet alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowLoadUNet",
            display_name="InstaFlow Load UNet",
            category="InstaFlow/loaders",
            description="Loads the UNet of an InstaFlow alone, in diffusers' or in Stable Diffusion's key layout. Use "
            "it with the CLIP and VAE of any Stable Diffusion 1.5 checkpoint.",
            search_aliases=["instaflow", "rectified flow", "load diffusion model", "load model", "unet", "one step"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=model_files.unet_names(),
                    tooltip="A built-in model's UNet, a file of models/diffusion_models, or the unet/ of a folder in "
                    "models/diffusers.",
                ),
                _weight_dtype_input(),
                _prediction_input(),
                _rule_input(),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The flow, for InstaFlow Sampler, KSampler and the rest.")
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, unet_name: str, weight_dtype: str, prediction: str = _AS_SAID, rule: str = _AS_SAID
    ) -> io.NodeOutput:
        source = model_files.unet_source(unet_name)
        return io.NodeOutput(checkpoints.load_model(source, weight_dtype, _said(prediction), _said(rule)))

    @classmethod
    def fingerprint_inputs(cls, unet_name: str = "", **_: Any) -> Any:
        """As InstaFlowLoadCheckpoint's."""
        return model_files.modified(model_files.unet_source(unet_name)) if unet_name else []


class InstaFlowModelSampling(io.ComfyNode):
    """Any SD1.5-shaped MODEL taken as an InstaFlow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowModelSampling",
            display_name="InstaFlow Model Sampling",
            category="InstaFlow/model",
            description="Makes a Stable Diffusion 1.5-shaped MODEL from any loader or merge an InstaFlow: its UNet's "
            "output is taken as velocity, data minus noise. Only right for weights that were trained so.",
            search_aliases=["instaflow", "rectified flow", "ModelSamplingSD3", "flow", "velocity", "patch"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A MODEL that holds InstaFlow's weights but was loaded as a Stable Diffusion 1.5.",
                )
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="The same weights, sampled as a rectified flow.")],
        )

    @classmethod
    @checked
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(model_sampling.as_instaflow(model))


class InstaFlowSaveCheckpoint(io.ComfyNode):
    """An InstaFlow as one file, with all that was patched into it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="InstaFlowSaveCheckpoint",
            display_name="InstaFlow Save Checkpoint",
            category="InstaFlow/model",
            description="Writes a MODEL, with the LoRAs and differences patched into it, to one safetensors file that "
            "InstaFlow Load Checkpoint recognises by itself. The stock checkpoint loader opens one of Stable Diffusion "
            "1.5's size too.",
            search_aliases=[
                "instaflow",
                "save checkpoint",
                "save model",
                "export",
                "merge",
                "bake lora",
                "safetensors",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The InstaFlow (or its diffusion teacher) to save, patches included."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="The text encoder to put into the file, patches included."
                ),
                io.Vae.Input("vae", optional=True, tooltip="The autoencoder to put into the file."),
                io.String.Input(
                    "filename_prefix",
                    default=_PREFIX,
                    tooltip="Where in the output folder. Under checkpoints/, the loaders list the file after a refresh "
                    "(R); use diffusion_models/ for a MODEL alone.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, model: Any, clip: Any = None, vae: Any = None, filename_prefix: str = _PREFIX) -> io.NodeOutput:
        path = saving.save_checkpoint(model, clip, vae, filename_prefix, cls.hidden)
        return io.NodeOutput(ui={"text": (str(path),)})
