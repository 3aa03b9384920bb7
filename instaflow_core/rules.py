"""The rules that few-step models are sampled by: one row for each way of training, as its authors' own code has it.

A row is data alone. `flow.few_step` computes with it, `weights.rows` finds the row of a file, and docs/rules.md shows
them all. A new row is an entry here and its authors' equation in the tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Diffusion:
    """How a UNet that predicts noise is taken to data in one step: x_T = s noise, eps = unet(x_T, start), and then
    x_0 = (x_T - sqrt(1 - a) eps) / sqrt(a), where a is the share of signal (alpha bar) at `start`.

    start: the timestep the UNet is asked at where all is noise.
    whole_noise: whether s is 1; else it is sqrt(1 - a), the noise of that timestep alone.
    betas: the schedule of the noise, in diffusers' words: "scaled_linear" is Stable Diffusion's own.
    signal: a at `start`, where the authors' code has it rounded; None takes the schedule's.
    boundary: whether x_0 is c_out x_0 + c_skip x_T, with a consistency model's scalings (arXiv 2310.04378, section 4).
    to_first_timestep: whether a picture is the state at timestep 0, sqrt(a_0) x_0 + sqrt(1 - a_0) eps, as solvers end
        that take a_0 for their last signal; else it is x_0.
    stride: between the timesteps that several steps choose from, counted down from `start`.
    renoised: whether a step goes to data and adds new noise to that (a consistency model); else it follows the ODE.
    """

    start: int = 999
    whole_noise: bool = True
    betas: str = "scaled_linear"
    signal: float | None = None
    boundary: bool = False
    to_first_timestep: bool = False
    stride: int = 1
    renoised: bool = False


@dataclass(frozen=True)
class Rule:
    """A row.

    name: what it is called by, in `rule` and `--rule`.
    model, weights, kept, licence, decoder: of the released weights, in words; `kept` is their form.
    equation, several: one step, and more, in words and symbols.
    prediction: what the UNet predicts, in the words of `--prediction`.
    stage: what a checkpoint of this kind calls itself.
    diffusion: one step's numbers; None for a flow.
    windows: of a flow that is straight in each of them; 0 for others.
    guidance, steps: what the authors use. A flow of windows takes no fewer steps.
    called: what its repository or file is called, in lower case with - for every other sign, where that means nothing
        else.
    scheduler: the config of diffusers' scheduler that samples it; `named` is whether its class means this row alone.
    """

    name: str
    model: str
    weights: str
    kept: str
    licence: str
    equation: str
    several: str
    prediction: str = "epsilon"
    stage: str = "few-step"
    diffusion: Diffusion | None = None
    windows: int = 0
    guidance: float = 1.0
    steps: int = 1
    decoder: str = "Stable Diffusion 1.5's"
    called: tuple[str, ...] = ()
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    named: bool = False

    @property
    def few_step(self) -> bool:
        """Whether it is sampled by equations of its own; the other rows are flows, sampled as every flow is."""
        return bool(self.diffusion or self.windows)

    @property
    def sampler(self) -> str:
        """The host's sampler that takes its steps."""
        return "lcm" if self.diffusion and self.diffusion.renoised else "euler"


_DDIM = {
    "_class_name": "DDIMScheduler",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_STEPS = "Euler steps x + (t' - t) v on the uniform grid"
_DDIM_ENDS = "x = sqrt(a_0) x_0 + sqrt(1 - a_0) eps, x_0 = (noise - sqrt(1 - a) eps) / sqrt(a), t = 999"

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            name="instaflow",
            model="InstaFlow-0.9B",
            weights="XCLiu/instaflow_0_9B_from_sd_1_5",
            kept="diffusers folder",
            licence="CC-BY-NC-4.0",
            equation="x = noise + v, t = 1000",
            several=_STEPS,
            prediction="velocity",
            stage="one-step",
            decoder="in the folder",
        ),
        Rule(
            name="2-rectified flow",
            model="2-Rectified Flow",
            weights="XCLiu/2_rectified_flow_from_sd_1_5",
            kept="diffusers folder",
            licence="CC-BY-NC-4.0",
            equation="x = noise + v, t = 1000",
            several=_STEPS,
            prediction="velocity",
            stage="2-rectified-flow",
            guidance=1.5,
            decoder="in the folder",
        ),
        Rule(
            name="noise-minus-data",
            model="flows of other trainers",
            weights="your own",
            kept="any",
            licence="as they say",
            equation="x = noise - v, t = 1000; read as a velocity with the other sign",
            several=_STEPS,
            prediction="noise-minus-data",
            stage="unknown",
            decoder="their own",
        ),
        Rule(
            name="dmd2",
            model="DMD2",
            weights="tianweiy/DMD2, model/sdv1.5/…/pytorch_model.bin",
            kept="UNet alone, diffusers names",
            licence="CC-BY-NC-4.0 (the code CC-BY-NC-SA-4.0)",
            equation="x = (noise - sqrt(1 - a) eps) / sqrt(a), t = 999, a = 0.0047",
            several="none: trained for one",
            diffusion=Diffusion(signal=0.0047, renoised=True),
            called=("dmd2",),
        ),
        Rule(
            name="sid-lsg",
            model="SiD-LSG",
            weights="UT-Austin-PML/SiD-LSG, batch512_cfg….pkl",
            kept="pickle of a module: refused; the message says how to make weights of it",
            licence="Apache-2.0",
            equation="x = (s noise - sqrt(1 - a) eps) / sqrt(a), s = sqrt(1 - a), t = 625",
            several="none: the authors call theirs unfinished",
            diffusion=Diffusion(start=625, whole_noise=False, renoised=True),
            called=("sid-lsg",),
        ),
        Rule(
            name="rectified-diffusion",
            model="Rectified Diffusion",
            weights="wangfuyun/Rectified-Diffusion, rd.ckpt and cm.ckpt (guidance 1)",
            kept="UNet alone, diffusers names",
            licence="its card names none",
            equation=f"{_DDIM_ENDS}, on linear betas",
            several="DDIM, spacing trailing",
            diffusion=Diffusion(betas="linear", to_first_timestep=True),
            guidance=1.5,
            scheduler=_DDIM | {"beta_schedule": "linear"},
        ),
        Rule(
            name="rectified-diffusion-phased",
            model="Rectified Diffusion (Phased)",
            weights="wangfuyun/Rectified-Diffusion, phased.ckpt",
            kept="UNet alone, diffusers names",
            licence="its card names none",
            equation=_DDIM_ENDS,
            several="DDIM, spacing trailing, 4 steps",
            diffusion=Diffusion(to_first_timestep=True),
            guidance=1.5,
            steps=4,
            scheduler=_DDIM,
        ),
        Rule(
            name="lcm",
            model="Latent Consistency Models",
            weights="latent-consistency/lcm-lora-sdv1-5; Lykon/dreamshaper-8-lcm",
            kept="LoRA (load its base by this row, then LoraLoader); diffusers folder",
            licence="openrail++ (the LoRA)",
            equation="x = c_out (noise - sqrt(1 - a) eps) / sqrt(a) + c_skip noise, t = 999",
            several="each goes to x and adds new noise; timesteps of 19, 39, …, 999",
            diffusion=Diffusion(boundary=True, stride=20, renoised=True),
            steps=4,
            scheduler={"_class_name": "LCMScheduler", "original_inference_steps": 50},
            named=True,
        ),
        Rule(
            name="hyper-sd",
            model="Hyper-SD15",
            weights="ByteDance/Hyper-SD, Hyper-SD15-…step(s)-lora.safetensors",
            kept="LoRA (load its base by this row, then LoraLoader)",
            licence="openrail++",
            equation=_DDIM_ENDS,
            several="DDIM, spacing trailing; as many as the LoRA's name says; with guidance 5 to 8 where it says CFG",
            diffusion=Diffusion(to_first_timestep=True),
            scheduler=_DDIM,
        ),
        Rule(
            name="tcd",
            model="TCD",
            weights="h1t/TCD-SD15-LoRA",
            kept="LoRA (load its base by this row, then LoraLoader)",
            licence="MIT",
            equation=_DDIM_ENDS,
            several="4 to 50 with gamma (eta) 0 on timesteps of 19, 39, …, 999; the sampler lcm is gamma 1",
            diffusion=Diffusion(to_first_timestep=True, stride=20),
            steps=4,
            scheduler={"_class_name": "TCDScheduler", "original_inference_steps": 50},
            named=True,
        ),
        Rule(
            name="perflow",
            model="PeRFlow",
            weights="hansyan/perflow-sd15-dreamshaper; hansyan/perflow-sd15-delta-weights by workflow 13",
            kept="diffusers folder; difference of weights",
            licence="CC-BY-NC-4.0",
            equation="x + (t' - t) v through each of 4 windows, v made of the noise between a window's ends",
            several="4 or more, shared out to the windows",
            windows=4,
            guidance=4.5,
            steps=4,
            scheduler={"_class_name": "PeRFlowScheduler", "prediction_type": "diff_eps", "num_time_windows": 4},
            named=True,
        ),
    )
}
"""Every row, by its name."""


def rule_of(name: str) -> Rule:
    """The row of this name; ValueError where there is none."""
    if name not in RULES:
        raise ValueError(f"Unknown rule {name!r}; expected one of {', '.join(RULES)}.")
    return RULES[name]
