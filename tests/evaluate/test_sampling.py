"""Records state the sampler as it ran: counted evaluations of the networks, guidance with its interval or schedule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tok1d.config.load import load_recipe
from tok1d.data.folder import FolderImages
from tok1d.data.images import ImageSource, open_images
from tok1d.data.subset import subset
from tok1d.data.transforms import Transform
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.evaluate.generation import balanced_labels, evaluate_generation
from tok1d.evaluate.job import Job
from tok1d.evaluate.reconstruction import Judged, evaluate_reconstruction
from tok1d.inference.sampling import counted, decoder_options, guidance_text, sampling_options
from tok1d.losses.pixel import psnr_per_image
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo import store
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
DIT = ["model={name: dit, num_tokens: 4, token_dim: 4, num_classes: 10, dim: 16, depth: 1, heads: 2}"]


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
    other = nn.Linear(2, 2)
    with counted(network, other, network) as evaluations:
        other(network(torch.zeros(4, 2)))
    assert evaluations.rows == 8
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


def test_a_decoder_in_one_pass_takes_no_options(tiny: Tiny) -> None:
    model = random_model(tiny("maetok"))
    assert decoder_options(model, guidance=Guidance(1.0, (0.2, 0.8))) == {}
    for options, message in (
        ({"steps": 3}, "x-steps: .*got 3"),
        ({"guidance": 2.0}, "x-guidance: .*got 2.0"),
        ({"solver": "heun"}, "x-solver: .*got heun"),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            decoder_options(model, prefix="x-", **options)  # type: ignore[arg-type]
    taken = decoder_options(random_model(tiny("tokenizer")), steps=3)
    assert taken == {"steps": 3, "guidance": 1.0, "solver": "euler"}


def test_prefixes_belong_to_ordered_tokens() -> None:
    ordered, unordered = TokenSpec(6, 2, ordered=True), TokenSpec(6, 2)
    assert token_counts(ordered) == [1, 2, 4, 6] and token_counts(ordered, [0, 3]) == [0, 3]
    assert token_counts(unordered) == token_counts(unordered, [6]) == [6]
    with pytest.raises(InputError, match=r"^keep: these tokens have no order, all 6 are needed; got 3$"):
        token_counts(unordered, [6, 3])


def test_a_border_is_not_measured(tiny: Tiny, fashion: None) -> None:
    """Whatever is painted on the border changes no number, and the judge sees the images of its own size."""
    model, judge = random_model(tiny("maetok")), random_model(tiny("classifier"))
    plain = open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=6), "test")
    padded = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=6), "test")
    decode, values = model.decode, []
    for border in (0.0, 0.7):

        def painted(*args: Any, border: float = border, **options: Any) -> torch.Tensor:
            inner = decode(*args, **options)[..., 2:-2, 2:-2]
            return nn.functional.pad(inner, (2, 2, 2, 2), value=border)

        model.decode = painted
        records = evaluate_reconstruction(model, padded, judge=judge, pad=2)
        values.append([record.value for record in records])
        assert {(r.sampler, r.steps, r.guidance) for r in records} == {(None, None, None)}
        assert [r.keep for r in records[:-1]] == [4] * 4
    assert values[0] == values[1]
    within, alone = Judged(judge, 2), Judged(judge)
    within.update(*padded.batch(range(6)))
    alone.update(*plain.batch(range(6)))
    assert within.agreement == alone.agreement and within.distance(alone) == pytest.approx(0, abs=1e-6)


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
    images = open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=3), "test")
    records = evaluate_reconstruction(model, images, keep=[0, 4], batch_size=2, **options)
    assert {(r.name, r.keep) for r in records} == {(name, keep) for name in ("psnr", "mse") for keep in (0, 4)}
    assert {(r.sampler, r.guidance, r.steps) for r in records} == {(sampler, guidance, options["steps"])}
    assert {r.reference for r in records} == {f"3 test images {images.fingerprint()}"}


def test_records_say_how_many_images_could_not_be_read(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where another process, which can read them again, goes on with the blocks."""
    model, folder = random_model(tiny("tokenizer")), tmp_path / "images"
    folder.mkdir()
    for number in range(70):
        Image.new("L", (28, 28), number).save(folder / f"{number:02d}.png")
    file = folder / "03.png"
    content, opened = file.read_bytes(), [FolderImages(folder, Transform(28, 1)) for _ in range(2)]
    file.write_bytes(bytes(len(content)))
    for part, images in enumerate(opened):
        job = Job(tmp_path / "parts", (part, 2))
        records = evaluate_reconstruction(model, subset(images, 69), keep=[4], steps=1, batch_size=64, job=job)
        told = capsys.readouterr().err
        if part == 0:
            assert not records and f"skipped {file}: " in told
            file.write_bytes(content)
    assert not told and [record.note for record in records] == 2 * ["1 unreadable image replaced by another"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 100])
def test_every_image_counts_once_whatever_the_batches(tiny: Tiny, fashion: None, batch_size: int) -> None:
    """No padding, no mean of means: without noise to start from, the numbers do not depend on the batches."""
    model = random_model(tiny("tokenizer"), "model.flow.temperature=0")
    images = open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=6), "test")
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
    judge, images = (
        random_model(tiny("classifier")),
        open_images(ImageSource("fashion_mnist", image_size=28, channels=1), "test"),
    )
    values = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(global_seed)
        records = evaluate_generation(generator, tokenizer, images, judge, num=20, seed=seed, batch_size=8)
        values.append([record.value for record in records])
    assert values[0] == values[1] != values[2]


def test_generation_records_state_both_samplers(tiny: Tiny, fashion: None) -> None:
    generator, tokenizer = random_model(tiny("generator", tokenizer="x")), random_model(tiny("tokenizer"))
    judge = random_model(tiny("classifier"))
    images = open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=12), "test")

    def protocol(**options: Any) -> tuple[Any, Any]:
        records = evaluate_generation(generator, tokenizer, images, judge, num=10, keep=[1, 3], **options)
        ((sampler, guidance),) = {(r.sampler, r.guidance) for r in records}
        return sampler, guidance

    assert protocol() == ("euler 2 steps, 2 evaluations a token; euler, 2 evaluations an image", 1.0)
    sampler, guidance = protocol(
        guidance=3.0,
        sampler="sde",
        steps=5,
        temperature=0.9,
        decoder_solver="heun",
        decoder_steps=3,
        decoder_guidance=2.0,
    )
    assert sampler == "sde 5 steps, 10 evaluations a token, temperature 0.9; heun, 10 evaluations an image"
    assert guidance == "3 linear, decoder 2"
    assert protocol(guidance=Guidance(0.5))[1] == "0.5 constant"


@pytest.mark.parametrize(
    ("overrides", "options", "sampler", "guidance"),
    [
        ([], {}, "sde 2 steps, 2 evaluations a sequence", 1.0),
        ([], {"sampler": "heun", "steps": 4, "guidance": 2.0}, "heun 4 steps, 14 evaluations a sequence", 2.0),
        (
            [],
            {"sampler": "euler", "steps": 4, "guidance": Guidance(3.0, (0.25, 0.5))},  # times 0, .25, .5, .75
            "euler 4 steps, 6 evaluations a sequence",
            "3 in 0.25..0.5",
        ),
        (DIT, {"steps": 3}, "ancestral 3 steps, 3 evaluations a sequence", 1.0),
        (["model.guidance_free=true"], {"guidance": 2.0}, "sde 2 steps, 2 evaluations a sequence", 2.0),
    ],
)
def test_records_of_whole_sequences(
    tiny: Tiny, fashion: None, overrides: list[str], options: dict[str, Any], sampler: str, guidance: Any
) -> None:
    generator, tokenizer = random_model(tiny("sit", tokenizer="x"), *overrides), random_model(tiny("maetok"))
    judge = random_model(tiny("classifier"))
    images = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=12), "test")
    records = evaluate_generation(generator, tokenizer, images, judge, num=10, pad=2, **options)
    assert [(r.name, r.keep) for r in records] == [("label_agreement", 4), ("fd@fashion-mnist-cnn", 4)]
    assert {(r.sampler, r.guidance, r.steps) for r in records} == {(sampler, guidance, None)}


IDS = "num_tokens: 4, vocab_size: 16, num_classes: 10, dim: 16, depth: 1, heads: 2"


@pytest.mark.parametrize(
    ("model", "options", "sampler", "guidance"),
    [
        ("llamagen", {}, "categorical, 1 evaluations a token", 1.0),
        (
            "llamagen",
            {"top_k": 5, "top_p": 0.9, "temperature": 0.8, "guidance": Guidance(2.0, (0.0, 0.5))},
            "categorical, 2 evaluations a token, top-k 5, top-p 0.9, temperature 0.8",
            "2 constant in 0..0.5",
        ),
        ("maskgit", {}, "maskgit 8 steps, 8 evaluations a sequence, noise 9.5, annealed", 1.0),
        # The first step's scale is 1, which needs no second call.
        (
            "maskgit",
            {"steps": 4, "guidance": 3.0, "temperature": 0.5},
            "maskgit 4 steps, 7 evaluations a sequence, noise 9.5, annealed, temperature 0.5",
            "3 linear",
        ),
        (
            "maskgit",
            {"steps": 2, "guidance": Guidance(3.0, schedule="power_cosine", power=2.5)},
            "maskgit 2 steps, 3 evaluations a sequence, noise 9.5, annealed",
            "3 power_cosine 2.5",
        ),
    ],
)
def test_records_of_ids(
    tiny: Tiny, fashion: None, model: str, options: dict[str, Any], sampler: str, guidance: Any
) -> None:
    generator = random_model(tiny("sit", tokenizer="x"), f"model={{name: {model}, {IDS}}}")
    tokenizer = random_model(tiny("maetok"), "model.bottleneck={name: vq, size: 16}")
    judge = random_model(tiny("classifier"))
    images = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=12), "test")
    records = evaluate_generation(generator, tokenizer, images, judge, num=10, pad=2, **options)
    assert [(r.name, r.keep) for r in records] == [("label_agreement", 4), ("fd@fashion-mnist-cnn", 4)]
    assert {(r.sampler, r.guidance, r.steps) for r in records} == {(sampler, guidance, None)}


def test_options_that_a_generator_does_not_have_are_named(tiny: Tiny) -> None:
    sit = random_model(tiny("sit", tokenizer="x"))
    ids = random_model(tiny("sit", tokenizer="x"), f"model={{name: llamagen, {IDS}}}")
    assert sampling_options(sit, steps=3, sampler=None, top_k=None) == {"steps": 3}
    assert sampling_options(ids, top_k=0, top_p=0.5) == {"top_k": 0, "top_p": 0.5}
    for model, prefix, options, message in (
        (sit, "--", {"top_k": 3}, "--top-k: sit has none, leave it out; got 3"),
        (sit, "evaluate.", {"top_p": 0.5}, "evaluate.top_p: sit has none, leave it out; got 0.5"),
        (ids, "--", {"sampler": "euler"}, "--sampler: llamagen has none, leave it out; got euler"),
    ):
        with pytest.raises(InputError) as caught:
            sampling_options(model, prefix, **options)
        assert str(caught.value) == message


def test_a_weak_model_is_counted_and_named(tiny: Tiny, fashion: None) -> None:
    generator, weak = (random_model(tiny("sit", tokenizer="x"), f"model.dim={dim}") for dim in (16, 8))
    tokenizer, judge = random_model(tiny("maetok")), random_model(tiny("classifier"))
    images = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=12), "test")
    guidance = Guidance(2.0, weak_model=weak)
    records = evaluate_generation(generator, tokenizer, images, judge, num=10, pad=2, guidance=guidance)
    assert records[0].sampler == "sde 2 steps, 4 evaluations a sequence"
    assert records[0].guidance == f"2 against sit@{fingerprint(weak)}"


@pytest.mark.parametrize(("kind", "tokenizer", "pad"), [("sit", "maetok", 2), ("generator", "tokenizer", 0)])
def test_without_classes_only_the_distance_is_measured(
    tiny: Tiny, fashion: None, kind: str, tokenizer: str, pad: int
) -> None:
    judge, decoder = random_model(tiny("classifier")), random_model(tiny(tokenizer))
    images = open_images(ImageSource("fashion_mnist", image_size=28 + 2 * pad, channels=1, pad=pad, limit=12), "test")
    conditional = random_model(tiny(kind, tokenizer="x"))
    told: list[Any] = []
    sample = conditional.sample

    def spy(cond: Any = None, **options: Any) -> Any:
        told.append((cond, options["num"]))
        return sample(cond, **options)

    conditional.sample = spy
    blind = random_model(tiny(kind, tokenizer="x"), "model.num_classes=0")
    for model, options in ((conditional, {"unconditional": True}), (blind, {})):
        records = evaluate_generation(model, decoder, images, judge, num=7, batch_size=4, pad=pad, **options)
        assert [(r.name, r.note, r.num_images) for r in records] == [("fd@fashion-mnist-cnn", "unconditional", 7)]
    assert told == [(None, 4), (None, 3)]
