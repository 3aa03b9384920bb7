"""What a training of Stable Diffusion 1.5's UNet costs at 512 × 512: memory and arithmetic, counted, not timed.

    python3 scripts/devhost.py benchmarks/training_cost.py

The UNet is built without memory for its weights (PyTorch's meta device) and one step is taken in bfloat16; what
autograd keeps for the backward pass and every multiplication is counted. Weights, gradients, AdamW's two moments and
the moving average are float32.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

from devhost import ROOT

sys.path.append(str(ROOT))

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode

SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
GB = 1e9


@dataclass(frozen=True)
class Cost:
    """fixed: bytes whatever the batch; each: bytes a picture; operations: floating-point operations a picture."""

    fixed: float
    each: float
    operations: float


def measure(rank: int | None, checkpointing: bool) -> Cost:
    """One picture through the UNet and back; rank is that of a LoRA, None for all weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15).requires_grad_(True).bfloat16()
        if rank:
            unet.requires_grad_(False)
            targets = ["to_q", "to_k", "to_v", "to_out.0"]
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
        if checkpointing:
            unet.enable_gradient_checkpointing()
        latents, text = torch.randn(1, 4, 64, 64).bfloat16(), torch.randn(1, 77, 768).bfloat16()
        timestep = torch.tensor([500.0])
    kept: dict[int, int] = {}
    weights = {p.untyped_storage()._cdata for p in unet.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    unet.train()
    counter = FlopCounterMode(display=False)
    with counter:
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks:
            loss = unet(latents, timestep, text, return_dict=False)[0].float().square().mean()
        loss.backward()
    every = sum(p.numel() for p in unet.parameters())
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    return Cost(4 * every + 4 * 4 * trained, sum(kept.values()), counter.get_total_flops())


def main() -> None:
    """Print the table."""
    print(f"{'method':10}{'checkpointing':>15}{'fixed GB':>10}{'GB a picture':>14}{'TFLOP a picture':>17}")
    for name, rank in (("full", None), ("lora 64", 64)):
        for checkpointing in (False, True):
            cost = measure(rank, checkpointing)
            figures = f"{cost.fixed / GB:>10.2f}{cost.each / GB:>14.2f}{cost.operations / 1e12:>17.2f}"
            print(f"{name:10}{'yes' if checkpointing else 'no':>15}" + figures, flush=True)


if __name__ == "__main__":
    main()
