"""What InstaFlow Accelerate saves: a step with it beside one without, and a whole picture on the CPU.

    python benchmarks/accelerated.py    measured once, in this process; one line of JSON

The weights of Stable Diffusion 1.5's size are random, those of the tiny decoder too: they take as long as learned ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import all_in_turn, in_turn, printed, rows_of
from node_times import SD15, Host
from rows import Row

DECODER = "random_decoder.safetensors"
CAPTIONS = ("a yellow star on a purple background", "a red circle on a white background")


def stepping(host: Host, clip: Any, size: int) -> Callable[[Any], Callable[[int], object]]:
    """For a MODEL what draws one step of a seed, of a caption that stays."""
    (positive,) = host.run("CLIPTextEncode", clip=clip, text=CAPTIONS[0])
    (latent,) = host.run("EmptyLatentImage", width=size, height=size, batch_size=1)
    given = {"positive": positive, "latent_image": latent, "steps": 1}
    return lambda model: lambda seed: host.run("InstaFlowSampler", model=model, seed=seed, **given)


def fold(host: Host, name: str, checkpoint: str, size: int, times: int) -> Row:
    """One step with and without, in turn, a caption that stays: the medians in milliseconds."""
    model, clip, _ = host.run("InstaFlowLoadCheckpoint", checkpoint=checkpoint, weight_dtype="default")
    (faster, _) = host.run("InstaFlowAccelerate", model=model, mode="exact")
    step = stepping(host, clip, size)
    value, baseline = in_turn(step(faster), step(model), times)
    return Row(f"fold/{name}", 1000 * value, "ms", "without InstaFlow Accelerate", 1000 * baseline)


def pieces(host: Host, size: int, times: int) -> list[Row]:
    """One step with attention in the host's slices instead, and one whose convolutions have channels last."""
    from comfy.patcher_extension import WrappersMP

    model, clip, _ = host.run("InstaFlowLoadCheckpoint", checkpoint=SD15, weight_dtype="fp32")
    (faster, _) = host.run("InstaFlowAccelerate", model=model, mode="exact")
    sliced, channels_last = faster.clone(), faster.clone()
    options = sliced.model_options["transformer_options"]
    options["optimized_attention_override"] = lambda hosts_own, *tensors, **more: hosts_own(*tensors, **more)
    channels_last.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL,
        "channels last",
        lambda unet, x, *more, **named: unet(x.contiguous(memory_format=torch.channels_last), *more, **named),
    )
    step = stepping(host, clip, size)
    plain, of_slices, of_channels = all_in_turn([step(each) for each in (faster, sliced, channels_last)], times)
    return [
        Row("accelerate/attention", plain, "s", "attention in ComfyUI's slices", of_slices),
        Row("accelerate/channels-last", of_channels, "s", "channels first", plain),
    ]


def compiled_decoder(host: Host, size: int, times: int) -> Row:
    """The tiny decoder compiled, beside itself as it is: the medians in seconds."""
    model, _, vae = host.run("InstaFlowLoadCheckpoint", checkpoint=SD15, weight_dtype="fp32")
    latent = {"samples": torch.randn(1, 4, size // 8, size // 8)}
    compiled, plain = (
        host.run("InstaFlowAccelerate", model=model, vae=vae, mode=mode, decoder=DECODER)[1]
        for mode in ("compile", "exact")
    )
    value, baseline = in_turn(
        lambda _: host.run("VAEDecode", samples=latent, vae=compiled),
        lambda _: host.run("VAEDecode", samples=latent, vae=plain),
        times,
    )
    return Row("accelerate/decoder-compiled", value, "s", "the tiny decoder as it is", baseline)


def picture(host: Host, name: str, mode: str, size: int, times: int) -> Row:
    """Caption, step and picture with a tiny decoder, and without the node with the full one: the medians in seconds."""
    model, clip, vae = host.run("InstaFlowLoadCheckpoint", checkpoint=SD15, weight_dtype="fp32")
    faster, tiny = host.run("InstaFlowAccelerate", model=model, vae=vae, mode=mode, decoder=DECODER)
    (latent,) = host.run("EmptyLatentImage", width=size, height=size, batch_size=1)

    def drawn(with_model: Any, with_vae: Any) -> Callable[[int], None]:
        def draw(seed: int) -> None:
            (positive,) = host.run("CLIPTextEncode", clip=clip, text=CAPTIONS[seed % 2])
            given = {"model": with_model, "positive": positive, "latent_image": latent}
            (samples,) = host.run("InstaFlowSampler", **given, seed=seed, steps=1)
            host.run("VAEDecode", samples=samples, vae=with_vae)

        return draw

    value, baseline = in_turn(drawn(faster, tiny), drawn(model, vae), times)
    return Row(name, value, "s", "eager, full decoder", baseline)


def ends(whole: Row, size: int, times: int) -> Row:
    """What is left of a picture's two ends, all of it a few sums: x_0 + v, the latent scale, and bytes of the picture's
    numbers; beside the whole picture."""
    from instaflow_core.weights.layouts import LATENT_SCALE

    start, velocity = torch.randn(2, 1, 4, size // 8, size // 8)
    picture = torch.rand(1, size, size, 3)

    def compute(_: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (start + velocity) / LATENT_SCALE, (255 * picture).round().to(torch.uint8)

    return Row("accelerate/ends", all_in_turn([compute], times)[0], "s", "a whole picture", whole.value)


def save_decoder(base: Path) -> None:
    """Random weights of TAESD's shape into the host's models/vae_approx."""
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file

    weights = TAESD(latent_channels=4).taesd_decoder.state_dict()
    tensors = {name: 0.05 * weight.detach().new_ones(weight.shape).normal_() for name, weight in weights.items()}
    (base / "models" / "vae_approx").mkdir(parents=True, exist_ok=True)
    save_file(tensors, base / "models" / "vae_approx" / DECODER)


def measure_here(size: int = 512) -> list[Row]:
    """size: of the pictures at Stable Diffusion 1.5's size, in pixels."""
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder), file=False)
        save_decoder(Path(folder))
        whole = picture(host, "accelerate/cpu", "bf16", size, 3)
        return [
            fold(host, "builtin", "built-in: shapes", 64, 300),
            fold(host, "sd15", SD15, 64, 15),
            *pieces(host, size, 3),
            compiled_decoder(host, size, 15),
            picture(host, "accelerate/cpu-exact", "exact", size, 3),
            whole,
            ends(whole, size, 50),
        ]


def measure() -> list[Row]:
    """As `measure_here`, in a process of its own."""
    return rows_of(__file__)


if __name__ == "__main__":
    printed(measure_here())
