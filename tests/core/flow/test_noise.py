import math

import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from instaflow_core.flow.noise import draw_noise, great_circle, indexed_generator, indexed_noise, slerp

SHAPE = (2, 4, 8, 6)


@pytest.mark.parametrize("draw", ["comfyui", "diffusers fp32"])
def test_a_seed_draws_what_a_float32_pipeline_draws(draw: str):
    expected = randn_tensor(SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float32)
    assert torch.equal(draw_noise(7, SHAPE, draw), expected)


def test_a_seed_draws_what_a_float16_pipeline_draws():
    expected = randn_tensor(SHAPE, generator=torch.Generator().manual_seed(7), dtype=torch.float16)
    drawn = draw_noise(7, SHAPE, "diffusers fp16")
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, expected.float())
    assert not torch.equal(drawn, draw_noise(7, SHAPE))


def test_the_largest_seed_of_the_host_works():
    assert draw_noise(2**64 - 1, SHAPE).std() > 0.8


def test_an_unknown_draw_is_an_error():
    with pytest.raises(ValueError, match="'cuda'; expected one of 'comfyui'"):
        draw_noise(0, SHAPE, "cuda")


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw_noise(1, SHAPE), indexed_noise(1, 2, SHAPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_indexed_noise_depends_on_seed_and_index_alone():
    assert torch.equal(indexed_noise(5, 9, SHAPE), indexed_noise(5, 9, SHAPE))
    drawn = torch.stack([indexed_noise(seed, index, (256,)) for seed in range(4) for index in range(64)])
    assert (torch.corrcoef(drawn) - torch.eye(256)).abs().max() < 0.4
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02


def test_indexed_generators_differ_between_steps():
    draws = {torch.randint(2**40, (), generator=indexed_generator(0, step)).item() for step in range(1000)}
    assert len(draws) == 1000


def test_slerp_keeps_both_ends_and_the_norm():
    a, b = draw_noise(1, SHAPE), draw_noise(2, SHAPE)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    b = b * a.norm() / b.norm()
    for fraction in (0.1, 0.5, 0.8):
        assert slerp(a, b, fraction).norm().item() == pytest.approx(a.norm().item(), rel=1e-5)


def test_slerp_moves_at_a_constant_angle():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(slerp(a, b, 1 / 3), torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))


def test_slerp_of_parallel_ends_is_a_line():
    a = draw_noise(1, SHAPE)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)


def test_a_great_circle_has_both_ends_and_equal_angles():
    a, b = (draw_noise(seed, SHAPE) for seed in (1, 2))
    b = b * a.norm() / b.norm()
    circle = great_circle(a, b, 5)
    assert torch.equal(circle[0], a)
    assert torch.equal(circle[-1], b)
    flat = circle.flatten(1) / a.norm()
    torch.testing.assert_close(flat.norm(dim=1), torch.ones(5))
    cosines = (flat[1:] * flat[:-1]).sum(1)
    torch.testing.assert_close(cosines, cosines[:1].expand(4))
    assert torch.equal(great_circle(a, b, 3)[1], circle[2])


def test_a_circle_of_one_frame_is_its_beginning():
    a, b = (draw_noise(seed, SHAPE) for seed in (1, 2))
    assert torch.equal(great_circle(a, b, 1), a[None])


def test_a_circle_of_no_frames_is_an_error():
    with pytest.raises(ValueError, match="frames is 0"):
        great_circle(torch.ones(2), torch.ones(2), 0)


def test_seeds_equal_mod_2_to_the_32_are_one_seed() -> None:
    """As the docstring says; were it to change, pictures would."""
    assert torch.equal(draw_noise(7, (4,)), draw_noise(7 + 2**32, (4,)))
    assert not torch.equal(draw_noise(7, (4,)), draw_noise(8, (4,)))
