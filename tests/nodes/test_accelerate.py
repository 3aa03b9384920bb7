"""InstaFlowAccelerate on the real host: faster, and the picture of the MODEL without it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_vram import use_dynamic_vram
from graph_parts import Parts
from model_state import model_state
from safetensors.torch import save_file
from samplers import WAYS, instaflow, ksampler
from small_control import install_pair, new_pair
from torch import Tensor

TOLERANCE = 1e-5  # of the latents' deviation
PROMPTS = ("a red circle on a blue background", "a small green star on a white background", "")

Flow = tuple[Any, Any, Any]


def accelerate(host: Any, model: Any, mode: str = "exact") -> Any:
    return host.run("InstaFlowAccelerate", model=model, mode=mode)[0]


def encode(host: Any, clip: Any, text: str = PROMPTS[0]) -> Any:
    return host.run("CLIPTextEncode", clip=clip, text=text)[0]


def empty(host: Any, width: int = 64, height: int = 64, batch_size: int = 1) -> Any:
    return host.run("EmptyLatentImage", width=width, height=height, batch_size=batch_size)[0]


def assert_same(found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).abs().max() / expected.std())
    print(f"error {error:.1e} of the deviation")
    assert error <= TOLERANCE


@contextmanager
def evaluations(model: Any) -> Iterator[dict[str, int]]:
    """How often layers of the UNet compute: the time's projections, the text's keys, the picture's queries for them."""
    from comfy.ldm.modules.attention import CrossAttention
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    unet = model.model.diffusion_model
    blocks = [m for m in unet.modules() if isinstance(m, ResBlock)]
    attentions = [m for name, m in unet.named_modules() if isinstance(m, CrossAttention) and name.endswith("attn2")]
    layers = {"projections": [block.emb_layers[1] for block in blocks], "text": [m.to_k for m in attentions]}
    layers["queries"] = [m.to_q for m in attentions]
    counted = dict.fromkeys(layers, 0)
    weights = {id(layer.weight): kind for kind, several in layers.items() for layer in several}
    plain = torch.nn.functional.linear

    def counting(given: Tensor, weight: Tensor, *more: Any) -> Tensor:
        if id(weight) in weights:
            counted[weights[id(weight)]] += 1
        return plain(given, weight, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", counting)
        yield counted


# --- the same picture ---


@pytest.mark.parametrize("sample", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("flow", ["one_step", "two_rf", "shapes"])
def test_the_picture_is_the_plain_models(
    host: Any, request: pytest.FixtureRequest, flow: str, sample: Callable[..., Tensor]
) -> None:
    """Asked again and again: captions, sizes, batches and times change and come back."""
    model, clip, _ = request.getfixturevalue(flow)
    faster = accelerate(host, model)
    for text, steps, size, batch in [
        (PROMPTS[0], 1, 64, 1),
        (PROMPTS[0], 1, 64, 2),
        (PROMPTS[1], 1, 64, 1),
        (PROMPTS[0], 3, 96, 1),
        (PROMPTS[0], 1, 64, 1),
    ]:
        positive, latent = encode(host, clip, text), empty(host, size, 64, batch)
        expected = sample(host, model, positive, latent, seed=4, steps=steps)
        for _ in range(2):
            assert_same(sample(host, faster, positive, latent, seed=4, steps=steps), expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_guidance(host: Any, two_rf: Flow, batch: int) -> None:
    """Two captions in one evaluation."""
    model, clip, _ = two_rf
    positive, latent, faster = encode(host, clip), empty(host, batch_size=batch), accelerate(host, model)
    for negative in (encode(host, clip, PROMPTS[2]), encode(host, clip, PROMPTS[1])):
        settings = {"negative": negative, "seed": 2, "steps": 2, "guidance": 2.0}
        expected = ksampler(host, model, positive, latent, **settings)
        for _ in range(2):
            assert_same(ksampler(host, faster, positive, latent, **settings), expected)
            assert_same(instaflow(host, faster, positive, latent, **settings), expected)


def test_several_conditionings(host: Any, two_rf: Flow) -> None:
    """Prompts for parts of the picture and for parts of the time."""
    model, clip, _ = two_rf
    faster = accelerate(host, model)
    left, right = encode(host, clip, PROMPTS[0]), encode(host, clip, PROMPTS[1])
    (left,) = host.run("ConditioningSetArea", conditioning=left, width=64, height=64, x=0, y=0, strength=1.0)
    (right,) = host.run("ConditioningSetTimestepRange", conditioning=right, start=0.3, end=1.0)
    (both,) = host.run("ConditioningCombine", conditioning_1=left, conditioning_2=right)
    (both,) = host.run("ConditioningCombine", conditioning_1=both, conditioning_2=encode(host, clip, PROMPTS[2]))
    for _ in range(2):
        expected = ksampler(host, model, both, empty(host, 128), steps=3)
        assert_same(ksampler(host, faster, both, empty(host, 128), steps=3), expected)


def test_a_diffusion_model(host: Any, teacher: Flow) -> None:
    model, clip, _ = teacher
    positive, negative, faster = encode(host, clip), encode(host, clip, ""), accelerate(host, model)
    settings = {"negative": negative, "steps": 40, "guidance": 4.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    expected = ksampler(host, model, positive, empty(host), **settings)
    for _ in range(2):
        assert_same(ksampler(host, faster, positive, empty(host), **settings), expected)


def test_with_gradients(host: Any, two_rf: Flow) -> None:
    """InstaFlow Control takes the UNet's gradients, and those of a kept tensor would be none."""
    model, clip, _ = two_rf
    positive, faster = encode(host, clip), accelerate(host, model)
    instaflow(host, faster, positive, empty(host))
    target = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))}
    inputs = {"positive": positive, "latent_image": empty(host), "target": target, "iterations": 3, "steps": 2}
    expected, found = (
        host.run("InstaFlowControl", model=m, learning_rate=0.1, **inputs)[0]["samples"] for m in (model, faster)
    )
    assert_same(found, expected)


# --- what is kept ---


def test_what_one_step_computes_again(host: Any, one_step: Flow) -> None:
    model, clip, _ = one_step
    faster, positive, other = accelerate(host, model), encode(host, clip), encode(host, clip, PROMPTS[1])
    with evaluations(model) as first:
        instaflow(host, faster, positive, empty(host))
    assert first["projections"] and first["text"] == first["queries"]
    with evaluations(model) as again:
        instaflow(host, faster, positive, empty(host, 96), seed=5)
    assert (again["projections"], again["text"]) == (0, 0)
    assert again["queries"] == first["queries"]
    with evaluations(model) as of_another_caption:
        instaflow(host, faster, other, empty(host))
    assert (of_another_caption["projections"], of_another_caption["text"]) == (0, first["text"])
    with evaluations(model) as of_another_time:
        instaflow(host, faster, other, empty(host), steps=2)
    assert (of_another_time["projections"], of_another_time["text"]) == (first["projections"], 0)


def test_a_caption_that_is_changed_in_place_is_another(host: Any, one_step: Flow) -> None:
    model, clip, _ = one_step
    faster, positive = accelerate(host, model), encode(host, clip)
    positive[0][0] = positive[0][0].clone()
    instaflow(host, faster, positive, empty(host))
    with torch.inference_mode():
        positive[0][0].mul_(0.5)
    assert_same(instaflow(host, faster, positive, empty(host)), instaflow(host, model, positive, empty(host)))


def test_it_is_small(host: Any, pack: Any, one_step: Flow) -> None:
    """However many captions and times there were."""
    model, clip, _ = one_step
    faster = accelerate(host, model)
    folded = kept_by(faster).folded
    for number in range(7):
        positive = encode(host, clip, f"a red star on a blue background {number}")
        instaflow(host, faster, positive, empty(host), steps=8 + number)
    folding = pack.nodes.host.folding
    assert len(folded._captions) == folding._MOST_CAPTIONS
    assert len(folded._times) == folding._MOST_TIMES


def kept_by(model: Any) -> Any:
    from comfy.patcher_extension import WrappersMP

    (wrapper,) = model.get_wrappers(WrappersMP.DIFFUSION_MODEL, "instaflow.accelerate")
    return wrapper.__self__


def test_it_goes_with_its_model(host: Any, one_step: Flow) -> None:
    model, clip, _ = one_step
    faster, positive = accelerate(host, model), encode(host, clip)
    instaflow(host, faster, positive, empty(host))
    kept = weakref.ref(kept_by(faster))
    instaflow(host, model, positive, empty(host))
    del faster
    gc.collect()
    assert kept() is None


def test_it_goes_when_the_host_unloads(host: Any, one_step: Flow) -> None:
    import comfy.model_management as management

    model, clip, _ = one_step
    faster, positive = accelerate(host, model), encode(host, clip)
    expected = instaflow(host, faster, positive, empty(host))
    folded = kept_by(faster).folded
    assert folded._captions and folded._times
    management.unload_all_models()
    assert not folded._captions and not folded._times
    assert torch.equal(instaflow(host, faster, positive, empty(host)), expected)


def test_the_model_stays_as_it_is(host: Any, one_step: Flow) -> None:
    import comfy.model_management as management

    model, clip, _ = one_step
    positive = encode(host, clip)
    shown = instaflow(host, model, positive, empty(host))
    before = model_state(model)
    instaflow(host, accelerate(host, model), positive, empty(host))
    management.load_models_gpu([model])
    assert model_state(model) == before
    assert not any("forward" in vars(module) for module in model.model.modules())
    assert torch.equal(instaflow(host, model, positive, empty(host)), shown)


def test_twice_is_once(host: Any, one_step: Flow) -> None:
    model, clip, _ = one_step
    once = accelerate(host, model)
    twice = accelerate(host, once)
    assert kept_by(twice) is not kept_by(once)
    positive = encode(host, clip)
    assert_same(instaflow(host, twice, positive, empty(host)), instaflow(host, model, positive, empty(host)))


# --- what others do to the weights ---


def save_lora(path: Any, model: Any, seed: int) -> None:
    """A LoRA on every linear layer of the UNet, in PEFT's names on the host's: time and text among them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in model.model.diffusion_model.state_dict().items():
        if name.endswith(".weight") and weight.ndim == 2:
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=generator)
            tensors[f"{layer}.lora_B.weight"] = torch.randn(len(weight), 2, generator=generator) / weight.shape[1]
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)


def with_lora(host: Any, model: Any, strength: float, name: str = "accelerated.safetensors") -> Any:
    return host.run("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=strength)[0]


@pytest.fixture
def lora(host: Any, one_step: Flow) -> None:
    save_lora(host.base / "models" / "loras" / "accelerated.safetensors", one_step[0], 1)


@pytest.mark.usefixtures("lora")
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_lora_its_strength_its_removal(host: Any, one_step: Flow, place: str) -> None:
    model, clip, _ = one_step
    positive, faster = encode(host, clip), accelerate(host, model)
    shown = []
    for strength in (0.0, 1.0, 0.4, 0.0, 1.0):
        expected = instaflow(host, with_lora(host, model, strength), positive, empty(host))
        if place == "after":
            changed = with_lora(host, faster, strength)
        else:
            changed = accelerate(host, with_lora(host, model, strength))
        for _ in range(2):
            assert_same(instaflow(host, changed, positive, empty(host)), expected)
        shown.append(expected)
    assert (shown[0] - shown[1]).abs().max() > 0.1 and (shown[1] - shown[2]).abs().max() > 0.1


@pytest.mark.usefixtures("lora")
def test_a_lora_in_a_hook(host: Any, two_rf: Flow, one_step: Flow) -> None:
    """On one of two conditionings, and only for a part of the way."""
    model, clip, _ = one_step
    faster = accelerate(host, model)
    (hooks,) = host.run("CreateHookLora", lora_name="accelerated.safetensors", strength_model=1.0, strength_clip=0.0)
    (frames,) = host.run("CreateHookKeyframe", strength_mult=0.5, start_percent=0.5)
    (scheduled,) = host.run("SetHookKeyframes", hooks=hooks, hook_kf=frames)
    shown = []
    for some in (None, hooks, scheduled, None):
        positive = [[states, dict(options)] for states, options in encode(host, clip)]
        if some is not None:
            (positive,) = host.run(
                "ConditioningSetProperties", cond_NEW=positive, hooks=some, strength=1.0, set_cond_area="default"
            )
        negative = encode(host, clip, "")
        settings = {"negative": negative, "steps": 4, "guidance": 2.0}
        expected = ksampler(host, model, positive, empty(host), **settings)
        for _ in range(2):
            assert_same(ksampler(host, faster, positive, empty(host), **settings), expected)
        shown.append(expected)
    assert (shown[0] - shown[1]).abs().max() > 0.1 and (shown[1] - shown[2]).abs().max() > 1e-3


def test_a_merged_delta(host: Any, one_step: Flow, two_rf: Flow, teacher: Flow) -> None:
    model, clip, _ = one_step
    positive, faster = encode(host, clip), accelerate(host, model)
    others = {"finetuned": two_rf[0], "base": teacher[0]}
    for strength in (0.5, 0.1):
        merged, after = (
            host.run("InstaFlowMergeDelta", model=m, strength=strength, **others)[0] for m in (model, faster)
        )
        expected = instaflow(host, merged, positive, empty(host))
        for changed in (after, accelerate(host, merged)):
            assert_same(instaflow(host, changed, positive, empty(host)), expected)


def test_a_controlnet(host: Any) -> None:
    install_pair(host.base / "models", *new_pair(), folder="accelerated", file="accelerated.safetensors")
    model, clip, _ = host.run("InstaFlowLoadCheckpoint", checkpoint="accelerated", weight_dtype="fp32")
    (control_net,) = host.run("ControlNetLoader", control_net_name="accelerated.safetensors")
    faster = accelerate(host, model)
    plain, negative = encode(host, clip), encode(host, clip, "blurry")
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(5)).round()
    shown = []
    for strength in (0.0, 0.8, 0.3):
        given = {"control_net": control_net, "image": image, "start_percent": 0.0, "end_percent": 1.0}
        positive, away = host.run(
            "ControlNetApplyAdvanced", positive=plain, negative=negative, strength=strength, **given
        )
        for settings in ({}, {"negative": away, "steps": 3, "guidance": 1.5}):
            expected = instaflow(host, model, positive, empty(host), **settings)
            for _ in range(2):
                assert_same(instaflow(host, faster, positive, empty(host), **settings), expected)
        shown.append(expected)
    assert (shown[0] - shown[1]).abs().max() > 0.1


# --- what others do to the layers ---


def emb_patch(model: Any) -> None:
    model.set_model_emb_patch(lambda emb, channels, options: emb.mul_(1.5))


def attn2_patch(model: Any) -> None:
    model.set_model_attn2_patch(lambda n, context, value, options: (n, context * 1.5, value * 0.5))


def attn2_replace(model: Any) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        return optimized_attention(query, key.mul_(1.5), value.mul_(0.5), options["n_heads"])

    model.set_model_attn2_replace(attend, "middle", 0)


def wrapped_key(model: Any) -> None:
    """A layer in the place of another, as packs with adapters of their own put it."""
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k"
    layer = model.get_model_object(name)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = layer.weight

        def forward(self, text: Tensor) -> Tensor:
            return 1.5 * torch.nn.functional.linear(text, self.weight)

    model.add_object_patch(name, Wrapped())


def injected(model: Any) -> None:
    """As the newest hosts' LoRA that goes around the weights."""
    from comfy.patcher_extension import PatcherInjection

    layer = model.get_model_object("diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v")

    def inject(_: Any) -> None:
        plain = layer.forward
        layer.forward = lambda text: 1.5 * plain(text)

    model.set_injections("test", [PatcherInjection(inject=inject, eject=lambda _: vars(layer).pop("forward", None))])


@pytest.mark.parametrize(
    "change", [emb_patch, attn2_patch, attn2_replace, wrapped_key, injected], ids=lambda c: c.__name__
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_patches_of_others(host: Any, one_step: Flow, change: Callable[[Any], None], place: str) -> None:
    model, clip, _ = one_step
    positive, faster = encode(host, clip), accelerate(host, model)
    plain = instaflow(host, faster, positive, empty(host))
    changed = model.clone()
    change(changed)
    expected = instaflow(host, changed, positive, empty(host))
    if place == "after":
        ours = faster.clone()
        change(ours)
    else:
        ours = accelerate(host, changed)
    for _ in range(2):
        assert_same(instaflow(host, ours, positive, empty(host)), expected)
    assert (expected - plain).abs().max() > 1e-2
    assert_same(instaflow(host, faster, positive, empty(host)), plain)


# --- on a CPU ---


@pytest.fixture
def in_one_pass(host: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that PyTorch's own attention was asked for."""
    import comfy.ldm.modules.attention as attention

    asked: list[tuple[int, ...]] = []
    plain = attention.attention_pytorch

    def counting(query: Tensor, *more: Any, **named: Any) -> Tensor:
        asked.append(tuple(query.shape))
        return plain(query, *more, **named)

    monkeypatch.setattr(attention, "attention_pytorch", counting)
    return asked


@pytest.mark.parametrize("mode", ["exact", "bf16"])
def test_attention_in_one_pass(host: Any, one_step: Flow, in_one_pass: list[Any], mode: str) -> None:
    """Two for each transformer, where the host's choice for a CPU is another."""
    from comfy.ldm.modules.attention import BasicTransformerBlock

    model, clip, _ = one_step
    positive = encode(host, clip)
    instaflow(host, model, positive, empty(host))
    assert in_one_pass == []
    instaflow(host, accelerate(host, model, mode), positive, empty(host))
    blocks = [m for m in model.model.diffusion_model.modules() if isinstance(m, BasicTransformerBlock)]
    assert len(in_one_pass) == 2 * len(blocks) > 0


def test_an_attention_that_is_chosen_stays(
    host: Any, one_step: Flow, in_one_pass: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another node for this MODEL, or by a flag for all of the host."""
    import comfy.ldm.modules.attention as attention

    model, clip, _ = one_step
    positive, asked = encode(host, clip), []

    def of_another_node(func: Any, *tensors: Any, **more: Any) -> Tensor:
        asked.append(func)
        return func(*tensors, **more)

    for place in ("before", "after"):
        chosen = model.clone() if place == "before" else accelerate(host, model)
        chosen.model_options["transformer_options"]["optimized_attention_override"] = of_another_node
        instaflow(host, accelerate(host, chosen) if place == "before" else chosen, positive, empty(host))
        assert asked and not in_one_pass
        asked.clear()
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_split)
    instaflow(host, accelerate(host, model), positive, empty(host))
    assert not in_one_pass


@pytest.fixture
def bfloat16(pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a CPU with its instructions; others compute the same in more time."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.mark.usefixtures("bfloat16", "lora")
@pytest.mark.parametrize("weight_dtype", ["fp32", "bf16"])
def test_in_bfloat16(host: Any, weight_dtype: str) -> None:
    """Near the picture, with a LoRA too, and the MODEL that came in computes as before."""
    import comfy.model_management as management

    model, clip, _ = host.run("InstaFlowLoadCheckpoint", checkpoint="built-in: shapes", weight_dtype=weight_dtype)
    positive = encode(host, clip)
    # The host keeps a LoRA's weights without gradients, also when it is gone.
    instaflow(host, with_lora(host, model, 0.5), positive, empty(host))
    shown, before = instaflow(host, model, positive, empty(host)), model_state(model)
    faster = accelerate(host, model, "bf16")
    for strength in (0.0, 0.5, 0.0):
        expected = instaflow(host, with_lora(host, model, strength), positive, empty(host))
        for changed in (with_lora(host, faster, strength), accelerate(host, with_lora(host, model, strength), "bf16")):
            found = instaflow(host, changed, positive, empty(host))
            assert found.dtype == torch.float32 and not torch.equal(found, expected)
            error = float((found - expected).square().mean().sqrt() / expected.std())
            print(f"error {error:.1e} of the deviation")
            assert error < 0.05
    assert torch.equal(instaflow(host, accelerate(host, faster), positive, empty(host)), found)
    assert torch.equal(instaflow(host, model, positive, empty(host)), shown)
    management.load_models_gpu([model])
    assert model_state(model) == before


def test_bfloat16_where_it_is_no_faster(host: Any, pack: Any, one_step: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says so on the node, and computes what the mode exact does."""
    model, clip, _ = one_step
    for name in ("get_capabilities", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, dict if name == "get_capabilities" else bool, raising=False)
    with torch.inference_mode():
        output = host.node("InstaFlowAccelerate").EXECUTE_NORMALIZED(model=model, mode="bf16")
    (said,) = output.ui.as_dict()["text"]
    assert said.startswith("This CPU has no instructions for bfloat16")
    positive = encode(host, clip)
    assert_same(instaflow(host, output.result[0], positive, empty(host)), instaflow(host, model, positive, empty(host)))
    on_cpu = pack.nodes.host.on_cpu
    assert on_cpu.no_bfloat16(torch.device("cuda")).startswith("bf16 is for CPUs; on cuda ")


# --- what it does not take ---


def test_another_architecture_is_refused(host: Any, two_rf: Flow, teacher: Flow) -> None:
    parts = Parts(host, two_rf, teacher)
    for other in (parts.sd3, parts.sdxl, parts.flux):
        with pytest.raises(ValueError, match=r"`model` is a \w+; .* Connect the MODEL of InstaFlow Load Checkpoint"):
            accelerate(host, other)


# --- the decoder ---


def taesd(seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Random weights of TAESD's shape by the names of the authors' files, of each file."""
    from comfy.taesd.taesd import TAESD

    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        torch.manual_seed(seed)
        module = TAESD(latent_channels=4)
        for weight in module.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    return {
        part: {name: weight.clone() for name, weight in getattr(module, f"taesd_{part}").state_dict().items()}
        for part in ("decoder", "encoder")
    }


@pytest.fixture
def approx(host: Any) -> Iterator[Path]:
    folder = host.base / "models" / "vae_approx"
    folder.mkdir(exist_ok=True)
    yield folder
    for file in folder.iterdir():
        file.unlink()


def with_decoder(host: Any, model: Any, decoder: str, vae: Any = None) -> Any:
    return host.run("InstaFlowAccelerate", model=model, vae=vae, mode="exact", decoder=decoder)[1]


def latents() -> dict[str, Tensor]:
    return {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)) / 0.18215}


def test_the_full_decoder(host: Any, one_step: Flow) -> None:
    assert with_decoder(host, one_step[0], "full", one_step[2]) is one_step[2]
    assert with_decoder(host, one_step[0], "full") is None


@pytest.mark.parametrize("name", ["taesd_decoder.safetensors", "my_decoder.safetensors", "taesd_decoder.pth"])
def test_a_decoder_of_taesds_shape(host: Any, two_rf: Flow, approx: Path, name: str) -> None:
    """Decodes as the host's own loader of TAESD does; encodes as the VAE that is connected."""
    for part, weights in taesd().items():
        path = approx / name.replace("decoder", part)
        torch.save(weights, path) if name.endswith("pth") else save_file(weights, path)
    assert name in choices(host)
    model, _, full = two_rf
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    with_vae, alone = with_decoder(host, model, name, full), with_decoder(host, model, name)
    shown = [host.run("VAEDecode", samples=latents(), vae=vae)[0] for vae in (with_vae, alone)]
    assert torch.equal(*shown)
    if name.startswith("taesd"):
        (hosts,) = host.run("VAELoader", vae_name="taesd")
        assert torch.allclose(host.run("VAEDecode", samples=latents(), vae=hosts)[0], shown[0], atol=1e-6)
        encoded, expected = (host.run("VAEEncode", pixels=pixels, vae=vae)[0]["samples"] for vae in (alone, hosts))
        assert torch.allclose(encoded, expected, atol=1e-5)
    encoded, expected = (host.run("VAEEncode", pixels=pixels, vae=vae)[0]["samples"] for vae in (with_vae, full))
    assert torch.equal(encoded, expected)
    assert (shown[0] - host.run("VAEDecode", samples=latents(), vae=full)[0]).abs().max() > 0.01


def choices(host: Any) -> list[str]:
    said = {said.id: said for said in host.node("InstaFlowAccelerate").define_schema().inputs}
    return said["decoder"].options


def test_a_decoder_alone(host: Any, two_rf: Flow, approx: Path) -> None:
    """Without an encoder beside it it decodes, and says what it lacks where it is to encode."""
    save_file(taesd()["decoder"], approx / "alone_decoder.safetensors")
    tiny = with_decoder(host, two_rf[0], "alone_decoder.safetensors")
    assert host.run("VAEDecode", samples=latents(), vae=tiny)[0].isfinite().all()
    with pytest.raises(ValueError, match=r"a decoder alone.*Connect the `vae`"):
        host.run("VAEEncode", pixels=torch.rand(1, 64, 64, 3), vae=tiny)


def test_a_checkpoint_keeps_the_full_vae(host: Any, two_rf: Flow, approx: Path) -> None:
    """What is saved is the VAE that came in, and the UNet's own weights."""
    save_file(taesd()["decoder"], approx / "alone_decoder.safetensors")
    model, clip, full = two_rf
    tiny, faster = with_decoder(host, model, "alone_decoder.safetensors", full), accelerate(host, model)
    host.run("InstaFlowSaveCheckpoint", model=faster, clip=clip, vae=tiny, filename_prefix="checkpoints/accelerated")
    (path,) = (host.base / "output" / "checkpoints").glob("accelerated_*.safetensors")
    path.rename(host.base / "models" / "checkpoints" / "accelerated.safetensors")
    again, _, vae = host.run("InstaFlowLoadCheckpoint", checkpoint="accelerated.safetensors", weight_dtype="fp32")
    for name, weight in full.get_sd().items():
        assert torch.equal(vae.get_sd()[name], weight), name
    for name, weight in model.model.diffusion_model.state_dict().items():
        assert torch.equal(again.model.diffusion_model.state_dict()[name], weight), name


@pytest.mark.parametrize("name", ["taesd_decoder.safetensors", "../taesd_decoder.safetensors", "taesdxl_decoder.pth"])
def test_a_decoder_that_is_not_there(host: Any, one_step: Flow, approx: Path, name: str) -> None:
    """Says how to get one. TAESD's for other latents are not offered."""
    save_file(taesd()["decoder"], approx / "taesdxl_decoder.pth")
    save_file(taesd()["decoder"], approx.parent / "taesd_decoder.safetensors")
    assert choices(host) == ["full"]
    with pytest.raises(ValueError, match=r"no decoder .* in models/vae_approx\. Put TAESD's .* distill-decoder"):
        with_decoder(host, one_step[0], name)


@pytest.mark.parametrize("wrong", ["sixteen channels", "an encoder", "not finite", "no file of weights"])
def test_a_file_that_is_no_decoder(host: Any, one_step: Flow, approx: Path, wrong: str) -> None:
    path = approx / "wrong_decoder.safetensors"
    weights = taesd()["encoder" if wrong == "an encoder" else "decoder"]
    if wrong == "sixteen channels":
        weights["1.weight"] = torch.zeros(64, 16, 3, 3)
    if wrong == "not finite":
        weights["1.bias"] = weights["1.bias"] * torch.nan
    save_file(weights, path)
    if wrong == "no file of weights":
        path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"wrong_decoder\.safetensors"):
        with_decoder(host, one_step[0], path.name)


# --- compile ---


@pytest.fixture
def counting(pack: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each compilation. What is compiled is real, its backend is the quick one of torch's that generates no code."""
    compilations: list[Any] = []
    compiling = pack.nodes.host.compiling

    def backend(graph: Any, example_inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    def compiled_region(region: Any, device: torch.device) -> Any:
        with monkeypatch.context() as patch:
            plain = torch.compile
            patch.setattr(torch, "compile", lambda f, options, **more: plain(f, backend=backend, **more))
            return made(region, device)

    made = compiling.compiled_region
    monkeypatch.setattr(compiling, "compiled_region", compiled_region)
    return compilations


@pytest.mark.parametrize("flow", ["one_step", "shapes"])
def test_compiled_pictures(host: Any, request: pytest.FixtureRequest, counting: list[Any], flow: str) -> None:
    """A new prompt, seed, time or guidance compiles nothing; a new size does, once."""
    model, clip, _ = request.getfixturevalue(flow)
    faster = accelerate(host, model, "compile")
    counts = []
    for text, steps, size, guidance in [
        (PROMPTS[0], 1, 64, 1.0),
        (PROMPTS[1], 1, 64, 1.0),
        (PROMPTS[1], 3, 64, 1.0),
        (PROMPTS[0], 1, 96, 1.0),
        (PROMPTS[1], 2, 96, 1.0),
        (PROMPTS[0], 1, 64, 1.0),
    ]:
        settings = {"negative": encode(host, clip, ""), "guidance": guidance, "seed": len(counts), "steps": steps}
        positive, latent = encode(host, clip, text), empty(host, size, 64)
        assert_same(
            instaflow(host, faster, positive, latent, **settings), instaflow(host, model, positive, latent, **settings)
        )
        counts.append(len(counting))
    first, second = counts[0], counts[3]
    assert counts == [first, first, first, second, second, second]
    assert 0 < first < second
    assert kept_by(faster).compiled.trouble is None


@pytest.mark.usefixtures("lora")
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_lora_compiles_nothing_again(host: Any, one_step: Flow, counting: list[Any], place: str) -> None:
    model, clip, _ = one_step
    positive, faster = encode(host, clip), accelerate(host, model, "compile")
    counts = []
    for strength in (0.0, 1.0, 0.4, 0.0):
        if place == "before":
            faster = accelerate(host, with_lora(host, model, 0.5), "compile")
        expected = instaflow(
            host, with_lora(host, with_lora(host, model, 0.5 * (place == "before")), strength), positive, empty(host)
        )
        for _ in range(2):
            assert_same(instaflow(host, with_lora(host, faster, strength), positive, empty(host)), expected)
        counts.append(len(counting))
        if place == "after":
            assert counts[-1] == counts[0]
    assert kept_by(faster).compiled.trouble is None


@pytest.mark.parametrize(
    "change", [emb_patch, attn2_patch, attn2_replace, wrapped_key, injected], ids=lambda c: c.__name__
)
def test_patches_of_others_on_compiled_blocks(
    host: Any, one_step: Flow, counting: list[Any], change: Callable[[Any], None]
) -> None:
    model, clip, _ = one_step
    positive, changed, ours = encode(host, clip), model.clone(), accelerate(host, model, "compile").clone()
    change(changed)
    change(ours)
    expected = instaflow(host, changed, positive, empty(host))
    for _ in range(2):
        assert_same(instaflow(host, ours, positive, empty(host)), expected)


def test_without_a_compiler(host: Any, one_step: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says so on the node, and computes the picture all the same."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    model, clip, _ = one_step
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}), torch.inference_mode():
        output = host.node("InstaFlowAccelerate").EXECUTE_NORMALIZED(model=model, mode="compile")
    (said,) = output.ui.as_dict()["text"]
    assert said.startswith("torch.compile does not work here (")
    positive = encode(host, clip)
    assert_same(instaflow(host, output.result[0], positive, empty(host)), instaflow(host, model, positive, empty(host)))


def test_a_block_that_cannot_be_compiled(host: Any, pack: Any, one_step: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out while a picture is drawn: the node says so then, once, and this picture is drawn too."""
    model, clip, _ = one_step
    compiling, told = pack.nodes.host.compiling, []
    monkeypatch.setattr(compiling, "check", lambda device: None)
    monkeypatch.setattr(pack.nodes.host.accelerating, "said_on_the_running_node", lambda: told.append)

    def backend(graph: Any, example_inputs: Any) -> Any:
        raise RuntimeError("this device is not known\nand much more")

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, options, **more: plain(f, backend=backend, **more))
    faster, positive = accelerate(host, model, "compile"), encode(host, clip)
    for _ in range(2):
        assert_same(instaflow(host, faster, positive, empty(host)), instaflow(host, model, positive, empty(host)))
    (said,) = told
    assert said.startswith("torch.compile does not work here (") and "not known" in said


@pytest.mark.parametrize("flow", ["one_step", "two_rf"])  # AutoencoderTiny, AutoencoderKL
def test_a_compiled_decoder(host: Any, request: pytest.FixtureRequest, counting: list[Any], flow: str) -> None:
    """A size is compiled once, also of tiles, and the VAE that came in computes as before."""
    model, _, vae = request.getfixturevalue(flow)
    _, faster = host.run("InstaFlowAccelerate", model=model, vae=vae, mode="compile")
    tiles = {"tile_size": 64, "overlap": 0, "temporal_size": 64, "temporal_overlap": 8}
    for node, settings, size, is_new in [
        ("VAEDecode", {}, 64, True),
        ("VAEDecode", {}, 64, False),
        ("VAEDecode", {}, 96, True),
        ("VAEDecode", {}, 64, False),
        ("VAEDecodeTiled", tiles, 96, True),
        ("VAEDecodeTiled", tiles, 96, False),
    ]:
        latent = {"samples": torch.randn_like(empty(host, size)["samples"])}
        before = len(counting)
        expected = host.run(node, vae=vae, samples=latent, **settings)[0]
        assert len(counting) == before
        assert_same(host.run(node, vae=faster, samples=latent, **settings)[0], expected)
        assert (len(counting) > before) == is_new
    assert not any("forward" in vars(module) for module in vae.first_stage_model.modules())


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("when", ["before", "after"])
def test_pictures_that_tile(host: Any, two_rf: Flow, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Nodes for seamless pictures give the convolutions of UNet and VAE another padding, which is not compiled."""
    model, clip, vae = two_rf
    positive, latent = encode(host, clip), {"samples": torch.randn_like(empty(host)["samples"])}
    faster, decoder = host.run("InstaFlowAccelerate", model=model, vae=vae, mode="compile")
    flat = host.run("VAEDecode", vae=vae, samples=latent)[0]

    def draw(with_model: Any, with_vae: Any) -> list[Tensor]:
        sampled = instaflow(host, with_model, positive, empty(host))
        return [sampled, host.run("VAEDecode", vae=with_vae, samples=latent)[0]]

    def circular(conv: Any) -> Callable[..., Tensor]:
        def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            x = torch.nn.functional.pad(x, 2 * conv.padding, mode="circular")
            return torch.nn.functional.conv2d(x, weight, bias, conv.stride)

        return forward

    if when == "after":
        draw(faster, decoder)
    for network in (model.model.diffusion_model, vae.first_stage_model):
        for conv in (module for module in network.modules() if isinstance(module, torch.nn.Conv2d)):
            if conv.padding == (1, 1):
                monkeypatch.setitem(vars(conv), "_conv_forward", circular(conv))
    expected = draw(model, vae)
    assert not torch.allclose(expected[1], flat)
    for found, wanted in zip(draw(faster, decoder), expected, strict=True):
        assert_same(found, wanted)


@pytest.mark.usefixtures("models")
def test_gradients_through_a_compiled_decoder(host: Any, pack: Any, counting: list[Any]) -> None:
    """Outside the host's inference mode: what a size was compiled for without gradients is not asked for them."""
    source = str(host.base / "models" / "checkpoints" / "two-rf.safetensors")
    model, _, vae = pack.nodes.host.checkpoints.load_all(source, "fp32")
    _, faster, _ = pack.nodes.host.accelerating.accelerated(model, vae, "compile")
    samples = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        faster.decode(samples)
    compiled, gradients = len(counting), []
    for each in (vae, faster):
        samples.grad = None
        each.decode(samples.requires_grad_()).square().sum().backward()
        gradients.append(samples.grad)
    assert len(counting) == compiled
    assert_same(gradients[1], gradients[0])


def test_a_decoder_that_cannot_be_compiled(
    host: Any, pack: Any, one_step: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, vae = one_step
    told: list[str] = []
    monkeypatch.setattr(pack.nodes.host.accelerating, "said_on_the_running_node", lambda: told.append)
    _, faster = host.run("InstaFlowAccelerate", model=model, vae=vae, mode="compile")

    def refused(*_: Any, **__: Any) -> Any:
        raise RuntimeError("this device is not known")

    monkeypatch.setattr(pack.nodes.host.compiling, "compiled_region", refused)
    latent = {"samples": torch.randn_like(empty(host)["samples"])}
    for _ in range(2):
        assert_same(
            host.run("VAEDecode", vae=faster, samples=latent)[0], host.run("VAEDecode", vae=vae, samples=latent)[0]
        )
    (said,) = told
    assert "not known" in said


# --- where the host keeps the weights elsewhere ---


@pytest.mark.usefixtures("lora", "counting")
@pytest.mark.parametrize("mode", ["exact", "compile"])
def test_without_room(host: Any, one_step: Flow, request: pytest.FixtureRequest, mode: str) -> None:
    """Each layer fetches and patches its weights itself, at each call."""
    model, clip, _ = one_step
    positive, faster = encode(host, clip), accelerate(host, model, mode)
    expected = [instaflow(host, with_lora(host, model, strength), positive, empty(host)) for strength in (1.0, 0.4)]
    request.getfixturevalue("no_room")
    for strength, picture in zip((1.0, 0.4), expected, strict=True):
        changed = with_lora(host, faster, strength)
        for _ in range(2):
            assert_same(instaflow(host, changed, positive, empty(host)), picture)
        assert model.model.model_lowvram


@pytest.mark.usefixtures("counting", "models")
@pytest.mark.parametrize("mode", ["exact", "compile"])
def test_dynamic_vram(host: Any, one_step: Flow, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    import comfy.model_patcher

    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI has no dynamic VRAM")
    use_dynamic_vram(monkeypatch)
    model, clip, vae = host.run("InstaFlowLoadCheckpoint", checkpoint="one-step.safetensors", weight_dtype="fp32")
    assert model.is_dynamic()
    faster, before = accelerate(host, model, mode), None
    for text in (PROMPTS[0], PROMPTS[1], PROMPTS[0]):
        positive = encode(host, clip, text)
        expected = instaflow(host, one_step[0], positive, empty(host))
        assert_same(instaflow(host, model, positive, empty(host)), expected)
        before = before or model_state(model)
        assert_same(instaflow(host, faster, positive, empty(host)), expected)
    instaflow(host, model, positive, empty(host))
    assert model_state(model) == before
    latent = {"samples": torch.randn_like(empty(host)["samples"])}
    decoder = host.run("InstaFlowAccelerate", model=model, vae=vae, mode=mode)[1]
    pictures = [host.run("VAEDecode", vae=each, samples=latent)[0] for each in (one_step[2], vae, decoder, decoder)]
    for picture in pictures[1:]:
        assert_same(picture, pictures[0])


@pytest.mark.slow
def test_with_the_real_compiler(host: Any, pack: Any, shapes: Flow) -> None:
    """Also guided, which is two captions beside each other."""
    model, clip, _ = shapes
    reason = pack.nodes.host.compiling.check(torch.device("cpu"))
    if reason:
        pytest.skip(reason)
    positive, faster = encode(host, clip), accelerate(host, model, "compile")
    expected = instaflow(host, model, positive, empty(host), seed=3)
    for _ in range(2):
        assert_same(instaflow(host, faster, positive, empty(host), seed=3), expected)
    assert kept_by(faster).compiled.trouble is None and kept_by(faster).compiled.count
