"""The alignment loss: its extremes, the resampling of grids, and what it trains in a Semanticist."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.errors import ConfigError, InputError
from tok1d.losses.alignment import AlignmentConfig, alignment_loss, resize_tokens
from tok1d.losses.features import Teacher
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.semanticist import Semanticist, SemanticistConfig
from tok1d.tokenizers.token_dit import DecoderConfig

WIDTH = 5


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_equal_directions_are_the_minimum_at_any_scale(scale: float) -> None:
    features = randn(3, 9, 6)
    torch.testing.assert_close(alignment_loss(scale * features, features), -torch.ones(3))
    torch.testing.assert_close(alignment_loss(-scale * features, features), torch.ones(3))


def test_orthogonal_features_give_zero_and_samples_stay_apart() -> None:
    student, teacher = torch.zeros(2, 4, 6), torch.zeros(2, 4, 6)
    student[..., :3], teacher[..., 3:] = randn(2, 4, 3), randn(2, 4, 3, seed=1)
    teacher[1] = student[1]
    torch.testing.assert_close(alignment_loss(student, teacher), torch.tensor([0.0, -1.0]))


def test_half_precision_features_do_not_overflow() -> None:
    features = torch.full((1, 4, 768), 300.0, dtype=torch.float16)  # their squared norm is above 65504
    torch.testing.assert_close(alignment_loss(features, features), -torch.ones(1))


@pytest.mark.parametrize(("count", "num"), [(4, 9), (16, 4), (49, 16)])
def test_a_constant_grid_stays_constant(count: int, num: int) -> None:
    value = randn(2, 1, 3)
    torch.testing.assert_close(resize_tokens(value.expand(2, count, 3), num), value.expand(2, num, 3))


def test_resampling_keeps_rows_and_columns_apart() -> None:
    rows = torch.arange(4.0).view(4, 1, 1).expand(4, 4, 1)
    grid = torch.cat([rows, rows.transpose(0, 1)], dim=-1).reshape(1, 16, 2)
    resized = resize_tokens(grid, 64).view(8, 8, 2)
    torch.testing.assert_close(resized[..., 0], resized[..., 1].T)
    assert (resized[:, 0, 0].diff() > 0).all() and not resized[0, :, 0].diff().any()
    torch.testing.assert_close(resize_tokens(grid, 4), resize_tokens(grid.flip(1), 4).flip(1))


def test_an_equal_count_is_left_alone_and_others_have_to_be_squares() -> None:
    tokens = randn(2, 7, 3)
    assert resize_tokens(tokens, 7) is tokens
    for count, num in ((7, 9), (9, 7)):
        with pytest.raises(InputError, match=f"got {count} and {num}"):
            resize_tokens(randn(1, count, 2), num)


def teacher(width: int = WIDTH) -> Teacher:
    """A random linear map of 4x4 patches, a 3x3 grid; dropout would show a teacher in training mode."""
    torch.manual_seed(7)
    layers = nn.Conv2d(1, width, 4, stride=4), nn.Flatten(2), nn.Dropout(0.5)
    network = nn.Sequential(*layers)
    network.forward = lambda x: nn.Sequential.forward(network, x).transpose(1, 2)  # type: ignore[method-assign]
    return Teacher(network, image_size=12, mean=[0.5], std=[0.25])


def config(objective: Any = "flow", **changes: Any) -> SemanticistConfig:
    small = SemanticistConfig(
        image_size=8,
        channels=1,
        num_tokens=4,
        token_dim=3,
        encoder=EncoderConfig(patch=4, dim=12, depth=1, heads=2, drop_path=0.0),
        decoder=DecoderConfig(patch=4, dim=12, depth=2, heads=2, align_depth=1, align_hidden=16, align_dim=WIDTH),
        alignment=AlignmentConfig(teacher="toy", weight=0.5),
        objective=objective,
    )
    return replace(small, **changes)


def tokenizer(objective: str = "flow", *, moved: bool = True, **changes: Any) -> Semanticist:
    torch.manual_seed(0)
    model = Semanticist(config(objective, **changes))
    for parameter in model.parameters() if moved else ():  # away from the zeros of adaLN-Zero
        nn.init.normal_(parameter, std=0.3)
    model.teacher = teacher()
    return model


@pytest.fixture(params=["flow", "ddpm"])
def model(request: pytest.FixtureRequest) -> Semanticist:
    return tokenizer(request.param)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_gradients_reach_the_encoder_and_not_the_teacher(model: Semanticist, images: Tensor) -> None:
    losses = model.losses((images, torch.zeros(8)), progress=1.0)
    assert set(losses) == ({"loss_flow"} if model.config.objective == "flow" else {"loss_mse", "loss_vb"}) | {
        "loss_align"
    }
    losses["loss_align"].backward()
    for reached in (model.encoder.queries, model.bottleneck.proj.weight, model.decoder.projector[0].weight):  # type: ignore[index]
        assert reached.grad is not None and reached.grad.any()
    assert model.decoder.out.weight.grad is None, "the loss ends at its block"
    assert model.teacher is not None
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.network.parameters())


def test_every_parameter_gets_a_gradient_with_a_teacher_and_every_trainable_one_without(images: Tensor) -> None:
    for alignment in (AlignmentConfig(teacher="toy"), AlignmentConfig()):
        model = tokenizer(alignment=alignment)
        torch.stack([*model.losses((images, torch.zeros(8)), 1.0).values()]).sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == (set() if alignment.teacher else {"projector"})


def test_one_decoder_pass_serves_both_losses(model: Semanticist, images: Tensor) -> None:
    calls: list[int] = []
    model.decoder.blocks[0].register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    tokens, noise = model.encode(images), randn(8, 1, 8, 8)
    t = torch.full((8,), 300) if model.config.objective == "ddpm" else torch.full((8,), 0.3)
    assert model.teacher is not None
    features = model.teacher_features(images)
    both = model.denoising_rows(images, tokens, t=t, noise=noise, features=features)
    assert calls == [8]
    x_t = model.chain.noised(images, noise, t) if model.config.objective == "ddpm" else 0.3 * images + 0.7 * noise
    _, states = model.decoder.forward_aligned(x_t, t, tokens)
    torch.testing.assert_close(both.pop("loss_align"), 0.5 * alignment_loss(states, features))
    torch.testing.assert_close(both, model.denoising_rows(images, tokens, t=t, noise=noise))


def test_the_teacher_is_no_part_of_the_model(model: Semanticist) -> None:
    plain = Semanticist(replace(model.config, alignment=AlignmentConfig()))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert len([*model.parameters()]) == len([*plain.parameters()]) and plain.teacher is None
    model.train()
    assert model.teacher is not None and not any(part.training for part in model.teacher.network.modules())


def test_a_few_steps_raise_the_similarity_of_a_fixed_batch(images: Tensor) -> None:
    model = tokenizer(moved=False, alignment=AlignmentConfig(teacher="toy"))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    similarity = []
    for _ in range(30):
        torch.manual_seed(0)
        losses = model.losses((images, torch.zeros(8)), progress=1.0)
        similarity.append(-losses["loss_align"].item())
        optimizer.zero_grad()
        torch.stack([*losses.values()]).sum().backward()
        optimizer.step()
    assert similarity[-1] > similarity[0] + 0.3


def test_the_weight_scales_the_loss(images: Tensor) -> None:
    values = []
    for weight in (0.5, 1.5):
        model = tokenizer(alignment=AlignmentConfig(teacher="toy", weight=weight))
        torch.manual_seed(3)
        values.append(model.losses((images, torch.zeros(8)), 1.0)["loss_align"])
    torch.testing.assert_close(values[1], 3 * values[0])


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_given_random_numbers_decide_which_tokens_are_all_dropped(progress: float) -> None:
    model = tokenizer()
    model.config.nested.drop_after = 0.1
    dropped = ~model.training_mask(3, progress, torch.device("cpu"), u=torch.tensor([0.05, 0.1, 0.9])).any(1)
    assert dropped.tolist() == [True, False, False]


def test_a_model_is_made_and_decodes_without_its_teacher(images: Tensor) -> None:
    model = Semanticist(config(steps=2)).eval()
    assert model.decode(model.encode(images)).shape == images.shape and model.teacher is None


def test_contradictions_are_reported_in_one_line(images: Tensor) -> None:
    config().check()
    with pytest.raises(ConfigError, match=r"^decoder\.align_depth: "):
        config(decoder=DecoderConfig(patch=4, dim=12, depth=2, heads=2)).check()
    with pytest.raises(ConfigError, match=r"^teacher: "):
        AlignmentConfig(weights="dino.pth").check()
    model = tokenizer()
    model.teacher = teacher(width=6)
    with pytest.raises(ConfigError, match=rf"align_dim: expected 6, the width of toy, got {WIDTH}$"):
        model.losses((images, torch.zeros(8)), 1.0)
