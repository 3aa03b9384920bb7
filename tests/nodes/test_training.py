"""The training nodes on the real host: the paper's three steps on a small random model."""

from __future__ import annotations

import gc
import importlib
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensor

from instaflow_core.triplets.format import read_info
from instaflow_core.triplets.reading import SetReader
from instaflow_core.triplets.storage import Storage
from instaflow_core.weights.checkpoint import load

PROMPTS = "a red circle on a blue background\n\na green star on a white background"


@pytest.fixture(scope="module")
def output(host: Any, models: Path) -> Path:
    """The host's output folder."""
    import folder_paths

    Path(folder_paths.get_temp_directory()).mkdir(parents=True, exist_ok=True)
    return Path(folder_paths.get_output_directory())


def triplets(host: Any, teacher: tuple[Any, Any, Any], name: str = "set", **inputs: Any) -> Any:
    numbers = {"count": 6, "steps": 2, "guidance": 3.0, "width": 64, "height": 64, "batch_size": 4, "seed": 1}
    model, clip, _ = teacher
    return host.run(
        "InstaFlowTriplets", model=model, clip=clip, name=name, **({"prompts": PROMPTS} | numbers | inputs)
    )[0]


def train(host: Any, node: str, model: Any, made: Any, name: str, vae: Any = None, **inputs: Any) -> tuple[Any, Any]:
    numbers = {"iterations": 4, "batch_size": 2, "learning_rate": 1e-3, "ema": 0.5, "method": "full", "seed": 0}
    more = {"loss": "huber"} if node == "InstaFlowDistill" else {}
    return host.run(node, model=model, triplets=made, name=name, vae=vae, resume=True, **(numbers | more | inputs))[:2]


def sample(host: Any, model: Any, clip: Any) -> torch.Tensor:
    (positive,) = host.run("CLIPTextEncode", clip=clip, text="a red circle")
    (latent,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    return host.run(
        "InstaFlowSampler",
        model=model,
        positive=positive,
        latent_image=latent,
        seed=0,
        steps=1,
        guidance=1.0,
        denoise=1.0,
    )[0]["samples"]


def test_a_teacher_becomes_a_one_step_model(host: Any, output: Path, teacher: Any) -> None:
    model, clip, vae = teacher
    made = triplets(host, teacher)
    assert made.folder == output / "instaflow" / "triplets" / "set"
    flow, curves = train(host, "InstaFlowReflow", model, made, "two", vae)
    assert curves.shape == (2, 512, 768, 3)  # over the iterations, and over t
    again = triplets(host, (flow, clip, vae), "flow-set", guidance=1.5)
    student, curves = train(host, "InstaFlowDistill", flow, again, "folder/one", vae)
    assert curves.shape == (1, 512, 768, 3)
    samples = sample(host, student, clip)
    assert samples.shape == (1, 4, 8, 8)
    assert torch.isfinite(samples).all()
    saved = load(output / "checkpoints" / "folder" / "one.safetensors")
    assert (saved.stage, saved.prediction) == ("one-step", "velocity")
    assert saved.text_encoder and saved.vae
    before = model.model.diffusion_model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher_weights(host).items())


def teacher_weights(host: Any) -> dict[str, torch.Tensor]:
    model, _, _ = host.run("InstaFlowLoadCheckpoint", checkpoint="teacher.safetensors", weight_dtype="fp32")
    return model.model.diffusion_model.state_dict()


def test_the_hosts_own_node_plots_the_losses(host: Any, output: Path, teacher: Any) -> None:
    import numpy as np
    from PIL import Image

    model, _, vae = teacher
    numbers = {"iterations": 4, "batch_size": 2, "learning_rate": 1e-3, "ema": 0.5, "method": "full", "seed": 0}
    inputs = {"model": model, "triplets": triplets(host, teacher, "to-plot"), "name": "plotted", "vae": vae}
    losses = host.run("InstaFlowReflow", resume=True, **inputs, **numbers)[2]
    assert len(losses["loss"]) == 4 and all(loss > 0 for loss in losses["loss"])
    with torch.inference_mode():
        shown = host.node("LossGraphNode").EXECUTE_NORMALIZED(loss=losses, filename_prefix="plot").ui.as_dict()
    import folder_paths

    (file,) = shown["images"]
    with Image.open(Path(folder_paths.get_temp_directory()) / file["subfolder"] / file["filename"]) as picture:
        assert (np.asarray(picture.convert("RGB")) == (0, 0, 255)).all(-1).sum() > 100  # its line is blue


def test_a_training_measures_itself(host: Any, output: Path, teacher: Any) -> None:
    model, _, vae = teacher
    made = triplets(host, teacher, "to-measure")
    _, curves = train(host, "InstaFlowDistill", model, made, "measured", vae, evaluate_every=2)
    assert curves.shape == (2, 512, 768, 3)  # the loss, and the figures
    table = (output / "instaflow" / "training" / "measured" / "evaluation.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("iteration,accuracy,fid,kid,cmmd,lpips,psnr")  # all its prompts are captions
    assert [line.split(",")[0] for line in table[1:]] == ["2", "4"]
    with pytest.raises(ValueError, match=r"has no `vae`\. Give it one, or set `evaluate_every` to 0"):
        train(host, "InstaFlowDistill", model, made, "unmeasured", None, evaluate_every=2)


def test_patches_of_the_model_are_trained_from(host: Any, output: Path, teacher: Any) -> None:
    model, clip, vae = teacher
    patched, _ = host.run(
        "LoraLoader", model=model, clip=clip, lora_name="small.safetensors", strength_model=1.0, strength_clip=0.0
    )
    plain = triplets(host, teacher, "plain")
    other = triplets(host, (patched, clip, vae), "patched")
    first, second = (read_info(Storage(made.folder)).source["teacher"] for made in (plain, other))
    assert first != second


def test_a_finished_set_is_not_made_twice_and_another_needs_another_name(host: Any, teacher: Any) -> None:
    made = triplets(host, teacher, "once")
    before = {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir()}
    triplets(host, teacher, "once")
    assert {path.name: path.stat().st_mtime_ns for path in made.folder.iterdir()} == before
    with pytest.raises(ValueError, match="Choose another folder"):
        triplets(host, teacher, "once", seed=2)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/prompts.txt",
        "../secret.txt",
        "sub/../../secret.CSV",
        "out/link.txt",
        "prompts.txt [output]",
        "prompts.txt [temp]",
        "C:\\Users\\me\\secret.txt",
        "\\\\server\\share\\secret.txt",
    ],
)
def test_prompts_outside_the_input_folder_are_refused(host: Any, pack: Any, tmp_path: Path, name: str) -> None:
    import folder_paths

    folder = Path(folder_paths.get_input_directory())
    (folder.parent / "secret.txt").write_text("a secret")
    (folder.parent / "secret.CSV").write_text("text\na secret")
    (tmp_path / "link.txt").write_text("a secret")
    if not (folder / "out").is_symlink():
        (folder / "out").symlink_to(tmp_path)
    try:
        with pytest.raises(ValueError, match=r"not in ComfyUI's input folder. Put the file there"):
            pack.nodes.host.training.prompts(name, 5)
    finally:
        (folder / "out").unlink()


@pytest.mark.parametrize(
    "text", ["/etc/hostname", "../../x.env", "3d", "a sign that says readme.txt", "notes [v2].txt"]
)
def test_what_names_no_file_of_prompts_is_a_prompt(host: Any, pack: Any, text: str) -> None:
    import folder_paths

    (Path(folder_paths.get_input_directory()) / "3d").mkdir(exist_ok=True)
    assert pack.nodes.host.training.prompts(text, 5) == [text]


def test_results_do_not_leave_the_output_folder_by_a_link(host: Any, pack: Any, tmp_path: Path) -> None:
    import folder_paths

    sets = Path(folder_paths.get_output_directory()) / "instaflow" / "triplets"
    sets.mkdir(parents=True, exist_ok=True)
    (sets / "away").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"triplets/away/set is a link that leads out of ComfyUI's output folder"):
        pack.nodes.host.training.set_folder("away/set")
    (sets / "away").unlink()


def test_prompts_can_lie_in_the_input_folder(host: Any, teacher: Any) -> None:
    import folder_paths

    folder = Path(folder_paths.get_input_directory())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.txt").write_text("one\ntwo\n")
    made = triplets(host, teacher, "from-file", prompts="prompts.txt")
    texts = SetReader(Storage(made.folder)).read(range(6)).texts
    assert sorted(texts) == ["one"] * 3 + ["two"] * 3


def test_cancel_leaves_a_checkpoint_and_queueing_again_goes_on(host: Any, output: Path, teacher: Any) -> None:
    import comfy.model_management
    import comfy.utils

    model, _, _ = teacher
    made = triplets(host, teacher)
    whole, _ = train(host, "InstaFlowReflow", model, made, "whole", iterations=8)

    def cancel(done: int, total: int, *_: Any, **__: Any) -> None:
        if (done, total) == (5, 8):
            comfy.model_management.interrupt_current_processing()

    before = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(host, "InstaFlowReflow", model, made, "parts", iterations=8)
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
    state = output / "instaflow" / "training" / "parts" / "state.pt"
    assert torch.load(state, weights_only=True)["step"] == 5
    parts, _ = train(host, "InstaFlowReflow", model, made, "parts", iterations=8)
    expected = whole.model.diffusion_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parts.model.diffusion_model.state_dict().items())


def test_a_trained_lora_is_read_by_the_hosts_own_loader(host: Any, output: Path, teacher: Any) -> None:
    """Where it is merged is what the loader makes of the start and the file, which it lists."""
    import folder_paths

    model, clip, _ = teacher
    made = triplets(host, teacher, "for-lora")
    trained, _ = train(host, "InstaFlowReflow", model, made, "deep/adapted", method="lora", rank=4)
    folder_paths.add_model_folder_path("loras", str(output / "loras"))  # as the host does when it starts
    name = str(Path("deep") / "adapted.safetensors")
    assert name in folder_paths.get_filename_list("loras")
    assert (
        load_file(output / "loras" / name)["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.alpha"]
        == 4
    )
    patched, _ = host.run("LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=0.0)
    before = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
    patched.patch_model()
    expected = trained.model.diffusion_model.state_dict()
    found = patched.model.diffusion_model.state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in found.items())
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])
    patched.unpatch_model()


def test_another_lora_of_that_name_is_not_replaced(host: Any, output: Path, teacher: Any) -> None:
    made = triplets(host, teacher, "for-lora")
    other = output / "loras" / "theirs.safetensors"
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(b"somebody's")
    with pytest.raises(ValueError, match=r"theirs.safetensors is there already, and not a result of this run"):
        train(host, "InstaFlowReflow", teacher[0], made, "theirs", method="lora")
    assert other.read_bytes() == b"somebody's"


def test_no_loader_lists_what_a_training_keeps_for_itself(host: Any, output: Path, teacher: Any) -> None:
    import folder_paths

    folder_paths.add_model_folder_path("checkpoints", str(output / "checkpoints"))
    before = set(folder_paths.get_filename_list("checkpoints"))
    made = triplets(host, teacher, "for-lists")
    train(host, "InstaFlowReflow", teacher[0], made, "listed", method="lora")
    assert set(folder_paths.get_filename_list("checkpoints")) - before == {"listed.safetensors"}
    kept = {path.name for path in (output / "instaflow" / "training" / "listed").iterdir()}
    assert kept == {".lock", "state.pt", "loss.csv", "loss.png", "loss_by_time.csv", "loss_by_time.png"}


def test_advanced_inputs_say_how_to_train(host: Any, output: Path, teacher: Any) -> None:
    model, clip, _ = teacher
    made = triplets(host, teacher, "for-advanced")
    more = {"schedule": "cosine", "warmup": 3, "precision": "bf16"}
    flow, _ = train(host, "InstaFlowReflow", model, made, "advanced", times="u-shaped", **more)
    record = json.loads(load(output / "checkpoints" / "advanced.safetensors").metadata["instaflow.training"])
    assert (record["schedule"], record["warmup"], record["precision"]) == ("cosine", 3, "bf16")
    assert record["times"] == "u-shaped"
    train(host, "InstaFlowDistill", flow, triplets(host, (flow, clip, None), "of-advanced"), "policy", on_policy=0.5)
    record = json.loads(load(output / "checkpoints" / "policy.safetensors").metadata["instaflow.training"])
    assert (record["on_policy"], record["warmup"], record["precision"]) == (0.5, 0, "no")


@pytest.mark.parametrize(("cast", "said"), [(torch.float32, "float32"), (None, "bfloat16")])
def test_triplets_are_made_in_what_the_host_computes_in(host: Any, models: Path, cast: Any, said: str) -> None:
    """A device that computes in bfloat16 casts nothing."""
    taken = host.run("InstaFlowLoadCheckpoint", checkpoint="teacher.safetensors", weight_dtype="bf16")
    assert taken[0].model.manual_cast_dtype == torch.float32
    taken[0].model.manual_cast_dtype = cast
    made = triplets(host, taken, f"made-in-{said}")
    assert read_info(Storage(made.folder)).source["dtype"] == said
    assert torch.isfinite(SetReader(Storage(made.folder)).read(range(6)).latents).all()


def test_a_set_may_have_empty_prompts(host: Any, teacher: Any) -> None:
    made = triplets(host, teacher, "with-empty", count=10, empty_share=0.3)
    texts = SetReader(Storage(made.folder)).read(range(10)).texts
    assert (texts.count(""), len(set(texts))) == (3, 3)


@pytest.mark.parametrize(("stage", "guidance"), [("teacher", 5.0), ("flow", 1.5)])
def test_the_teachers_own_guidance(host: Any, teacher: Any, output: Path, stage: str, guidance: float) -> None:
    taken = teacher
    if stage == "flow":
        flow, _ = train(host, "InstaFlowReflow", teacher[0], triplets(host, teacher), "for-guidance", iterations=1)
        taken = (flow, *teacher[1:])
    made = triplets(host, taken, f"own-guidance-{stage}", guidance=0.0)
    assert read_info(Storage(made.folder)).source["guidance"] == guidance


@pytest.mark.parametrize("name", ["../outside", "/absolute", "", "a/../b", "con:"])
def test_a_name_stays_inside_the_output_folder(host: Any, teacher: Any, name: str) -> None:
    with pytest.raises(ValueError, match="Give a plain name"):
        triplets(host, teacher, name)


# --- what a teacher's graph carries beyond weights ---


def attention_patch(host: Any, model: Any, clip: Any) -> tuple[Any, Any]:
    patched = model.clone()
    patched.set_model_attn1_patch(lambda q, k, v, extra_options: (q, k, v))
    return patched, clip


def free_u(host: Any, model: Any, clip: Any) -> tuple[Any, Any]:
    return host.run("FreeU", model=model, b1=1.1, b2=1.2, s1=0.9, s2=0.2)[0], clip


def rescaled_guidance(host: Any, model: Any, clip: Any) -> tuple[Any, Any]:
    return host.run("RescaleCFG", model=model, multiplier=0.7)[0], clip


def skipped_layer(host: Any, model: Any, clip: Any) -> tuple[Any, Any]:
    return model, host.run("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-2)[0]


def wrapper(host: Any, model: Any, clip: Any) -> tuple[Any, Any]:
    patched = model.clone()
    patched.add_wrapper_with_key(
        "diffusion_model", "cache", lambda executor, *args, **kwargs: executor(*args, **kwargs)
    )
    return patched, clip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (attention_patch, "MODEL: patches"),
        (free_u, "MODEL: patches"),
        (rescaled_guidance, "MODEL: sampler_cfg_function"),
        (skipped_layer, "CLIP: last layer set"),
        (wrapper, "MODEL: cache"),
    ],
)
def test_what_is_no_weight_is_refused(host: Any, teacher: Any, change: Any, named: str) -> None:
    model, clip = change(host, *teacher[:2])
    with pytest.raises(ValueError, match=rf"more than weights \({named}\).*Connect MODEL and CLIP from before"):
        triplets(host, (model, clip, None), "refused")


def test_what_changes_nothing_is_not_refused(host: Any, pack: Any, teacher: Any) -> None:
    (compiled,) = host.run("TorchCompileModel", model=teacher[0], backend="inductor")
    (clip,) = host.run("CLIPSetLastLayer", clip=teacher[1], stop_at_clip_layer=-1)
    pack.nodes.host.patches.check_only_weights(compiled, clip)


def test_an_embedding_in_a_prompt_is_refused(host: Any, pack: Any) -> None:
    with pytest.raises(ValueError, match=r"'a embedding:thing' names an embedding, which only CLIP Text Encode reads"):
        pack.nodes.host.training.prompts("one\na embedding:thing", 5)


# --- sets that are there, and prompts that change ---


def test_a_set_is_loaded_by_its_name(host: Any, output: Path, teacher: Any) -> None:
    """One that the command line made: only its folder is needed."""
    made = triplets(host, teacher, "deep/set")
    kind = host.node("InstaFlowLoadTriplets")
    assert "deep/set" in kind.define_schema().inputs[0].options
    (loaded,) = host.run("InstaFlowLoadTriplets", name="deep/set", clip=teacher[1])
    assert loaded == made
    flow, _ = train(host, "InstaFlowReflow", teacher[0], loaded, "of-a-loaded-set", iterations=1)
    assert torch.isfinite(sample(host, flow, teacher[1])).all()


@pytest.mark.parametrize("name", ["absent", "../triplets/deep/set", "/etc", ""])
def test_a_set_that_is_not_there(host: Any, output: Path, teacher: Any, name: str) -> None:
    with pytest.raises(ValueError, match=r"no set of triplets .*output/instaflow/triplets.*refresh the page"):
        host.run("InstaFlowLoadTriplets", name=name, clip=teacher[1])


def test_a_set_that_is_not_whole(host: Any, output: Path, teacher: Any) -> None:
    made = triplets(host, teacher, "unfinished")
    next(made.folder.glob("*.parquet")).unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 1 shards"):
        host.run("InstaFlowLoadTriplets", name="unfinished", clip=teacher[1])


def test_a_file_of_prompts_that_changes_is_read_again(host: Any) -> None:
    import folder_paths

    file = Path(folder_paths.get_input_directory()) / "changing.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("one")
    kind = host.node("InstaFlowTriplets")
    first = kind.fingerprint_inputs(prompts="changing.txt", count=1)
    assert kind.fingerprint_inputs(prompts="changing.txt", count=1) == first
    file.write_text("one\ntwo")
    assert kind.fingerprint_inputs(prompts="changing.txt", count=1) != first
    assert kind.fingerprint_inputs(prompts="a prompt") is None


def test_the_teachers_own_size(host: Any, teacher: Any) -> None:
    made = triplets(host, teacher, "native", width=0, height=0)
    assert read_info(Storage(made.folder)).latent_shape == (4, 8, 8)


# --- what a training leaves behind ---


def alive() -> tuple[int, int, int]:
    """How many tensors there are in this process, the bytes they keep, and how many modules there are."""
    gc.collect()
    things = [(thing, type(thing)) for thing in gc.get_objects()]
    # Those without memory of torch.compile, which other tests have used, are no training's.
    tensors = [thing for thing, kind in things if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return len(tensors), sum(storages.values()), sum(issubclass(kind, torch.nn.Module) for _, kind in things)


@pytest.fixture
def made_by_trainings(pack: Any, monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Weak references to what trainings make from now on: UNets, text encoders, optimisers, averages, readers of sets
    and the blocks they read."""
    seen = list[weakref.ref[Any]]()

    def watched(make: Any) -> Any:
        def made(*arguments: Any, **more: Any) -> Any:
            seen.append(weakref.ref(new := make(*arguments, **more)))
            return new

        return made

    for room, names in {
        "training.runs": ("build_unet", "build_text_encoder", "SetBatches"),
        "training.trainee": ("new_optimizer", "AveragedModel"),
        "triplets.reading": ("SetReader", "joined"),
    }.items():
        module = importlib.import_module(f"{pack.__name__}.instaflow_core.{room}")
        for name in names:
            monkeypatch.setattr(module, name, watched(getattr(module, name)))
    return seen


@pytest.mark.slow
def test_ten_trainings_in_a_row_do_not_grow_memory(
    host: Any, output: Path, teacher: Any, made_by_trainings: list[weakref.ref[Any]]
) -> None:
    """Counts are compared from the third on: what is made once for all, such as a tokenizer, is there by then."""
    made, counts = triplets(host, teacher, "for-ten"), list[tuple[int, int, int]]()
    for number in range(10):
        train(host, "InstaFlowReflow", teacher[0], made, f"ten-{number}", teacher[2], iterations=2)
        counts.append(alive())
    assert counts[9] == counts[2]
    assert len(made_by_trainings) >= 70
    assert not any(reference() for reference in made_by_trainings)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_nothing_of_a_cancelled_training_is_alive(
    host: Any, output: Path, teacher: Any, made_by_trainings: list[weakref.ref[Any]], method: str
) -> None:
    import comfy.model_management
    import comfy.utils

    made, counts = triplets(host, teacher, "for-cancelled"), list[tuple[int, int, int]]()

    def cancel(done: int, total: int, *_: Any, **__: Any) -> None:
        if (done, total) == (2, 4):
            comfy.model_management.interrupt_current_processing()

    before = comfy.utils.PROGRESS_BAR_HOOK
    for number in range(3):
        comfy.utils.set_progress_bar_global_hook(cancel)
        try:
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                train(
                    host, "InstaFlowReflow", teacher[0], made, f"cancelled-{method}-{number}", teacher[2], method=method
                )
        finally:
            comfy.utils.set_progress_bar_global_hook(before)
        counts.append(alive())
    assert counts[2] == counts[1]
    assert len(made_by_trainings) >= 15
    assert not any(reference() for reference in made_by_trainings)
