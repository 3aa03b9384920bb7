"""How the built-in models are made from nothing: autoencoder, text encoder, teacher, then the paper's three steps.

Each stage writes its result to the work folder and is skipped where that is there already; a stage that is killed goes
on from its last checkpoint. Reflow and distillation go through the same code as users' training; the decoder is trained
on when there is a teacher, and again at last, on what all of them draw.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from ...flow.diffusion import diffusion_loss, noise_schedule
from ...flow.noise import indexed_generator
from ...text import encode_prompts
from ...training.batches import BatchPart, PromptStates, SetBatches
from ...training.config import LoopConfig
from ...training.loop import fit
from ...training.objectives import DISTILLATION_LOSSES, distill_step, on_policy_step, reflow_step
from ...training.watching import LossLines
from ...triplets.format import SetInfo
from ...triplets.reading import BLOCK, SetReader
from ...triplets.storage import Storage
from ...triplets.writing import Generate, SetWriter, latent_maker
from ...weights.files import write_weights
from ..captions import sample_captions
from .anatomy import LATENT_SHAPE, new_text_encoder, new_unet, new_vae
from .autoencoder import PictureBatches, autoencoder_loss, render_busy_pictures, render_pictures
from .decoder import DenoisedBatches, DrawnBatches, decoder_loss
from .intended import meant_pictures
from .recipe import Recipe
from .text_encoder import CaptionBatches, CaptionReader, reading_loss


class Making:
    """The making of the built-in models by a recipe; each method returns a stage's result, made now or earlier.

    Every module a method returns is on one device, and all data is on the CPU: they meet in the training loop, which
    sends batches to the device, and where a stage uses a finished module, which sends its input there and takes the
    result back.

    Args:
        folder: the work folder.
        recipe: the numbers.
        device: "cpu" to stay off an accelerator; otherwise accelerate's choice.
    """

    def __init__(self, folder: Path, recipe: Recipe, device: str | None = None) -> None:
        from accelerate import PartialState

        self.folder, self.recipe = folder, recipe
        self._asked = device
        self.device = torch.device("cpu") if device == "cpu" else PartialState().device

    def autoencoder(self) -> Any:
        """Pictures of training captions, and busier ones, through the autoencoder."""
        r = self.recipe

        def train(vae: nn.Module) -> None:
            plain, busy = render_pictures(r.pictures, r.seed + 1), render_busy_pictures(r.busy_pictures, r.seed + 1)
            batches = PictureBatches(torch.cat([plain, busy]), r.autoencoder_batch, r.seed)
            self._train("autoencoder", vae, batches, autoencoder_loss, r.autoencoder)

        return self._made("autoencoder", new_vae(r.seed), train)

    def decoder(self) -> Any:
        """The autoencoder's decoder trained on, on latents that the teacher has estimated."""
        r = self.recipe

        def train(decoder: nn.Module) -> None:
            captions, latents = self.latents()
            pictures, texts, teacher = render_pictures(r.latents, r.seed + 2), self.text_encoder(), self.teacher()
            batches = DenoisedBatches(teacher, texts, captions, pictures, latents, r.decoder_batch, r.seed + 8)
            self._train("decoder", decoder, batches, decoder_loss, r.decoder)

        return self._made("decoder", self.autoencoder().decoder, train)

    def vae(self) -> Any:
        """The finished autoencoder: its decoder trained on again, on what the models draw in the end."""
        r, vae = self.recipe, self.autoencoder()

        def train(decoder: nn.Module) -> None:
            true = render_pictures(r.latents, r.seed + 2), self.latents()[1]
            teacher = self._drawn(self.teacher_triplets(), r.outlines_drawn)
            flow = self._drawn(self.flow_triplets(), r.outlines_drawn)
            one_step = self._drawn(self.flow_triplets(), r.outlines_one_step, self.instaflow())
            # One step errs most, and is what most pictures are drawn in.
            sources = [true, teacher, flow, *[one_step] * 5]
            self._train(
                "outlines", decoder, DrawnBatches(sources, r.decoder_batch, r.seed + 9), decoder_loss, r.outlines
            )

        vae.decoder = self._made("outlines", self.decoder(), train)
        return vae

    def _drawn(self, reader: SetReader, count: int, student: Any = None) -> tuple[Tensor, Tensor]:
        """Pictures that the first triplets were meant to show, where that can be told, and the latents drawn of them:
        the triplets' own, or what a student makes of their noise in one step."""
        decoder, pictures, latents = self.decoder(), [], []
        one_step = student and latent_maker(self.text_encoder(), student, "velocity", 1, 1.0)
        for first in range(0, count, BLOCK):
            some = reader.read(range(first, min(first + BLOCK, count)))
            some = some.rows([row for row, text in enumerate(some.texts) if text])
            made = one_step(some.texts, some.noise()).cpu() if one_step else some.latents.float()
            told, shown = meant_pictures(decoder, made, some.texts)
            pictures.append(shown)
            latents.append(made[told])
        return torch.cat(pictures), torch.cat(latents)

    def text_encoder(self) -> Any:
        """The text encoder, taught to tell what a caption says; frozen from then on, as CLIP is in Stable Diffusion."""
        r = self.recipe

        def train(encoder: nn.Module) -> None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(r.seed)
                reader = CaptionReader(encoder)
            self._train("text-encoder", reader, CaptionBatches(r.text_batch, r.seed), reading_loss, r.text)

        return self._made("text-encoder", new_text_encoder(r.seed), train)

    def latents(self) -> tuple[list[str], Tensor]:
        """Captions of the training part and the latents of a picture of each, (N, 4, 8, 8)."""
        r, path = self.recipe, self.folder / "latents.safetensors"
        seed = r.seed + 2
        if not path.exists():
            vae, pictures = self.autoencoder(), render_pictures(r.latents, seed)
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
                parts = [vae.encoder(p.to(self.device).float() / 127.5 - 1).half().cpu() for p in pictures.split(64)]
            write_weights({"latents": torch.cat(parts)}, path, {})
        return [str(c) for c in sample_captions(r.latents, seed)], load_file(path)["latents"].float()

    def teacher(self) -> Any:
        """The diffusion teacher: predicts the noise, on Stable Diffusion's schedule, and without the caption now and
        then so that it can be guided."""
        r = self.recipe

        def train(unet: nn.Module) -> None:
            captions, latents = self.latents()
            encoder = self.text_encoder()
            states, empty = PromptStates(encoder), encode_prompts(encoder, [""]).cpu()
            schedule = noise_schedule()

            def batch(step: int, part: BatchPart) -> tuple[Tensor, ...]:
                generator = indexed_generator(r.seed + 3, step)
                index = torch.randint(len(latents), (r.batch,), generator=generator)
                timesteps = torch.randint(schedule.config.num_train_timesteps, (r.batch,), generator=generator)
                noise = torch.randn(r.batch, *LATENT_SHAPE, generator=generator)
                dropped = torch.rand(r.batch, 1, 1, generator=generator) < r.caption_dropout
                rows = part.rows(r.batch)
                texts = torch.where(dropped[rows], empty, states([captions[i] for i in index[rows].tolist()]))
                return latents[index[rows]], noise[rows], timesteps[rows], texts

            self._train("teacher", unet, batch, lambda model, b: diffusion_loss(model, schedule, *b), r.teacher)

        return self._made("teacher", new_unet(r.seed), train)

    def teacher_triplets(self) -> SetReader:
        """Step 1 of the paper: what the teacher makes of training captions and noise."""
        r = self.recipe
        source = {"teacher": "teacher", "steps": r.teacher_steps, "guidance": r.teacher_guidance}
        make = latent_maker(self.text_encoder(), self.teacher(), "epsilon", r.teacher_steps, r.teacher_guidance)
        return self._triplets("teacher-triplets", r.reflow_triplets, r.seed + 4, source, make)

    def two_rectified_flow(self) -> Any:
        """Step 2: text-conditioned reflow, starting from the teacher's weights."""
        r = self.recipe

        def train(unet: nn.Module) -> None:
            batches = SetBatches(self.teacher_triplets(), self.text_encoder(), r.batch, r.seed + 5, r.reflow_times)
            self._train("2rf", unet, batches.timed_pairs, reflow_step, r.reflow)

        return self._made("2rf", self.teacher(), train)

    def flow_triplets(self) -> SetReader:
        """The ends of the 2-rectified flow's trajectories, for distillation."""
        r, flow = self.recipe, self.two_rectified_flow()
        source = {"teacher": "2rf", "steps": r.flow_steps, "guidance": r.flow_guidance}
        make = latent_maker(self.text_encoder(), flow, "velocity", r.flow_steps, r.flow_guidance)
        return self._triplets("2rf-triplets", r.distill_triplets, r.seed + 6, source, make)

    def distilled(self) -> Any:
        """Step 3: distillation into one step, starting from the 2-rectified flow's weights."""

        def train(unet: nn.Module) -> None:
            self._distill("distilled", unet, self.flow_triplets(), self.recipe.distill)

        return self._made("distilled", self.two_rectified_flow(), train)

    def instaflow(self) -> Any:
        """The same gone on with, most of it on the flow's answers to what the student draws."""
        r = self.recipe

        def train(unet: nn.Module) -> None:
            batches = SetBatches(self.flow_triplets(), self.text_encoder(), r.batch, r.seed + 10)
            loss = on_policy_step(DISTILLATION_LOSSES[r.distill_loss], self.two_rectified_flow(), r.on_policy_share)
            self._train("instaflow", unet, batches.timed_pairs, loss, r.on_policy)

        return self._made("instaflow", self.distilled(), train)

    def direct(self) -> Any:
        """What the paper compares with: the teacher distilled into one step as it is, without reflow, in as many
        iterations as the one-step InstaFlow."""
        r = self.recipe
        config = replace(r.distill, iterations=r.distill.iterations + r.on_policy.iterations)

        def train(unet: nn.Module) -> None:
            self._distill("direct", unet, self.teacher_triplets(), config)

        return self._made("direct", self.teacher(), train)

    def _distill(self, name: str, unet: nn.Module, reader: SetReader, config: LoopConfig) -> None:
        batches = SetBatches(reader, self.text_encoder(), self.recipe.batch)
        self._train(name, unet, batches.pairs, distill_step(DISTILLATION_LOSSES[self.recipe.distill_loss]), config)

    def _made(self, name: str, module: nn.Module, train: Callable[[nn.Module], None]) -> Any:
        """The module with this stage's weights, trained first where they are not there yet."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            train(module)
            write_weights(module.cpu().state_dict(), path, {})
        module.load_state_dict(load_file(path))
        return module.eval().requires_grad_(False).to(self.device)

    def _train(self, name: str, module: nn.Module, batch: Any, loss: Any, config: LoopConfig) -> None:
        module.requires_grad_(True)
        folder = self.folder / "checkpoints" / name
        fit(
            module,
            batch,
            loss,
            config,
            folder,
            resume=True,
            progress=LossLines(name, config.iterations),
            device=self._asked,
        )

    def _triplets(self, name: str, count: int, seed: int, source: dict[str, Any], make: Generate) -> SetReader:
        info = SetInfo(count, seed, LATENT_SHAPE, source=source)
        # Every tenth prompt is empty: guidance needs a flow that knows what to draw without a caption.
        captions = sample_captions(count, seed, often=self.recipe.often)
        prompts = ["" if i % 10 == 9 else str(c) for i, c in enumerate(captions)]
        storage = Storage(self.folder / name)
        with tqdm(total=count, desc=name) as bar:
            SetWriter(storage, info).write(prompts, make, 128, bar.update)
        return SetReader(storage, seed + 1)
