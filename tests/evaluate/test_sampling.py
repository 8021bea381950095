"""Records state the sampler as it ran: counted evaluations of the networks, guidance with its interval or schedule."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tok1d.config import load_recipe
from tok1d.data.images import open_images
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.evaluate.generation import balanced_labels, evaluate_generation
from tok1d.evaluate.metrics import psnr_per_image
from tok1d.evaluate.reconstruction import evaluate_reconstruction
from tok1d.evaluate.sampling import counted, guidance_text, solver_options
from tok1d.zoo import store

Tiny = Callable[..., str]


def random_model(recipe: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe, overrides).model).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def test_evaluations_are_counted_by_rows_until_the_block_ends() -> None:
    network = nn.Linear(2, 2)
    with counted(network) as evaluations:
        network(torch.zeros(3, 2))
        network(torch.zeros(6, 2))
    network(torch.zeros(5, 2))
    assert evaluations.per(3) == "3" and evaluations.per(2) == "4.5"
    with pytest.raises(RuntimeError), counted(network):
        network(torch.zeros(1, 3))
    assert not network._forward_pre_hooks


def test_guidance_in_words() -> None:
    assert guidance_text(1) == guidance_text(Guidance(1.0, interval=(0.2, 0.8))) == 1.0
    assert guidance_text(2.5) == 2.5 and guidance_text(0) == 0.0
    assert guidance_text(Guidance(2.5, interval=(0.2, 0.8))) == "2.5 in 0.2..0.8"
    assert guidance_text(4, over_tokens=True) == "4 linear"
    assert guidance_text(Guidance(4.0, schedule="constant"), over_tokens=True) == "4 constant"
    assert guidance_text(1, over_tokens=True) == 1.0


def test_a_decoder_without_a_solver_takes_none() -> None:
    assert solver_options(nn.Linear(1, 1), None) == {}
    with pytest.raises(InputError, match="paints without one, got 'heun'"):
        solver_options(nn.Linear(1, 1), "heun")


@pytest.mark.parametrize(
    ("overrides", "options", "sampler", "guidance"),
    [
        ([], {"steps": 4}, "euler, 4 evaluations an image", 1.0),
        ([], {"steps": 4, "solver": "heun"}, "heun, 7 evaluations an image", 1.0),
        ([], {"steps": 4, "guidance": 2.0}, "euler, 8 evaluations an image", 2.0),
        (
            [],
            {"steps": 4, "guidance": Guidance(2.0, interval=(0.0, 0.6))},  # times 0, 0.25, 0.5; not 0.75
            "euler, 7 evaluations an image",
            "2 in 0..0.6",
        ),
        (["model.objective=ddpm"], {"steps": 3}, "ancestral, 3 evaluations an image", 1.0),
        (
            ["model.objective=ddpm"],
            {"steps": 3, "solver": "ddim", "guidance": 0.5},
            "ddim, 6 evaluations an image",
            0.5,
        ),
    ],
)
def test_reconstruction_records_state_the_sampler(
    tiny: Tiny, fashion: None, overrides: list[str], options: dict[str, Any], sampler: str, guidance: Any
) -> None:
    model = random_model(tiny("tokenizer"), *overrides)
    images = open_images("fashion_mnist", "test", image_size=28, channels=1, limit=3)
    records = evaluate_reconstruction(model, images, keep=[0, 4], batch_size=2, **options)
    assert {(r.name, r.keep) for r in records} == {(name, keep) for name in ("psnr", "mse") for keep in (0, 4)}
    assert {(r.sampler, r.guidance, r.steps) for r in records} == {(sampler, guidance, options["steps"])}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 100])
def test_every_image_counts_once_whatever_the_batches(tiny: Tiny, fashion: None, batch_size: int) -> None:
    """No padding, no mean of means: without noise to start from, the numbers do not depend on the batches."""
    model = random_model(tiny("tokenizer"), "model.flow.temperature=0")
    images = open_images("fashion_mnist", "test", image_size=28, channels=1, limit=6)
    sizes: list[int] = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    records = evaluate_reconstruction(model, images, keep=[4], batch_size=batch_size)
    assert sum(sizes) == 6 and max(sizes) <= batch_size
    with torch.no_grad():
        x, _ = images.batch(range(6))
        y = model.decode(model.encode(x))
    expected = {"mse": (y - x).square().mean().item(), "psnr": psnr_per_image(y, x).mean().item()}
    for record in records:
        assert record.value == pytest.approx(expected[record.name], rel=1e-4) and record.num_images == 6


def test_samples_are_balanced_over_the_classes_and_repeatable(tiny: Tiny, fashion: None) -> None:
    assert balanced_labels(23, 10).bincount().tolist() == [3, 3, 3] + [2] * 7
    generator, tokenizer = random_model(tiny("generator", tokenizer="x")), random_model(tiny("tokenizer"))
    judge, images = random_model(tiny("classifier")), open_images("fashion_mnist", "test", image_size=28, channels=1)
    values = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(global_seed)
        records = evaluate_generation(generator, tokenizer, images, judge, num=20, seed=seed, batch_size=8)
        values.append([record.value for record in records])
    assert values[0] == values[1] != values[2]


def test_generation_records_state_both_samplers(tiny: Tiny, fashion: None) -> None:
    generator, tokenizer = random_model(tiny("generator", tokenizer="x")), random_model(tiny("tokenizer"))
    judge = random_model(tiny("classifier"))
    images = open_images("fashion_mnist", "test", image_size=28, channels=1, limit=12)

    def protocol(**options: Any) -> tuple[Any, Any]:
        records = evaluate_generation(generator, tokenizer, images, judge, num=10, keep=[1, 3], **options)
        ((sampler, guidance),) = {(r.sampler, r.guidance) for r in records}
        return sampler, guidance

    assert protocol() == ("euler 2 steps, 2 evaluations a token; euler, 2 evaluations an image", 1.0)
    sampler, guidance = protocol(
        guidance=3.0, head_sampler="sde", head_steps=5, temperature=0.9, solver="heun", steps=3, decoder_guidance=2.0
    )
    assert sampler == "sde 5 steps, 10 evaluations a token, temperature 0.9; heun, 10 evaluations an image"
    assert guidance == "3 linear, decoder 2"
    assert protocol(guidance=Guidance(0.5))[1] == "0.5 constant"
