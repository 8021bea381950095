"""Records state the sampler as it ran: counted evaluations of the networks, guidance with its interval or schedule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tok1d.config.load import load_recipe
from tok1d.config.sampling import Decoding, SampleSettings, Sampling
from tok1d.data.folder import FolderImages
from tok1d.data.images import ImageSource, open_images
from tok1d.data.subset import subset
from tok1d.data.transforms import Transform
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import InputError
from tok1d.evaluate.generation import balanced_labels, evaluate_generation
from tok1d.evaluate.job import Job
from tok1d.evaluate.measures import Measuring, by_classifier
from tok1d.evaluate.reconstruction import Classified, evaluate_reconstruction
from tok1d.evaluate.request import Reconstructions, Samples
from tok1d.inference.sampling import counted, decoder_options, guidance_of
from tok1d.losses.pixel import psnr_per_image
from tok1d.tokenizers.base import TokenSpec
from tok1d.tokenizers.prefix import token_counts
from tok1d.zoo import store
from tok1d.zoo.record import Record, guidance_text
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]
DIT = ["model={name: dit, num_tokens: 4, token_dim: 4, num_classes: 10, dim: 16, depth: 1, heads: 2}"]


def random_model(recipe: str, *overrides: str) -> Any:
    torch.manual_seed(0)
    model = store.build_model(load_recipe(recipe, overrides).model).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def reconstructed(
    model: Any, images: Any, classifier: Any = None, *, pad: int = 0, job: Job | None = None, **options: Any
) -> list[Record]:
    """Records of reconstructions with the metrics of a run's report."""
    measuring = Measuring(by_classifier(classifier, "reconstruction", pad), job=job or Job())
    return evaluate_reconstruction(model, images, Reconstructions(**options), measuring)


def sampled(
    generator: Any,
    tokenizer: Any,
    images: Any,
    classifier: Any,
    *,
    pad: int = 0,
    guidance: float | Guidance = 1.0,
    **options: Any,
) -> list[Record]:
    """Records of samples with the metrics of a run's report."""
    measuring = Measuring(by_classifier(classifier, "generation", pad))
    if isinstance(guidance, Guidance):
        return evaluate_generation(generator, tokenizer, images, Samples(**options), measuring, guidance=guidance)
    return evaluate_generation(generator, tokenizer, images, Samples(guidance=guidance, **options), measuring)


def test_evaluations_are_counted_by_rows_until_the_block_ends() -> None:
    network = nn.Linear(2, 2)
    with counted(network) as evaluations:
        network(torch.zeros(3, 2))
        network(torch.zeros(6, 2))
    network(torch.zeros(5, 2))
    assert evaluations.rows == 9
    other = nn.Linear(2, 2)
    with counted(network, other, network) as evaluations:
        other(network(torch.zeros(4, 2)))
    assert evaluations.rows == 8
    with pytest.raises(RuntimeError), counted(network):
        network(torch.zeros(1, 3))
    assert not network._forward_pre_hooks


def test_guidance_in_words() -> None:
    for settings, text in (
        ({"guidance": 1.0}, "1.0"),
        ({"guidance": 2.5}, "2.5"),
        ({"guidance": 0.0}, "0.0"),
        ({"guidance": 2.5, "guidance_interval": [0.2, 0.8]}, "2.5 in 0.2..0.8"),
        ({"guidance": 4.0, "guidance_schedule": "linear"}, "4 linear"),
        ({"guidance": 3.0, "guidance_schedule": "power_cosine", "guidance_power": 2.5}, "3 power_cosine 2.5"),
        ({"guidance": 2.0, "weak_model": "sit@ab"}, "2 against sit@ab"),
        ({"sampler": "euler"}, ""),
        (None, ""),
    ):
        assert guidance_text(settings) == text


def test_a_deterministic_decoder_takes_no_options(tiny: Tiny) -> None:
    model = random_model(tiny("maetok"))
    assert decoder_options(model, Decoding(guidance_interval=(0.2, 0.8))) == {}
    for options, message in (
        ({"steps": 3}, "x-steps: .*got 3"),
        ({"guidance": 2.0}, "x-guidance: .*got 2.0"),
        ({"sampler": "heun"}, "x-sampler: .*got heun"),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            decoder_options(model, Decoding(**options), prefix="x-")  # type: ignore[arg-type]
    taken = decoder_options(random_model(tiny("tokenizer")), Decoding(steps=3))
    assert taken == {"steps": 3, "guidance": Guidance(1.0), "sampler": "euler"}


def test_prefixes_belong_to_ordered_tokens() -> None:
    ordered, unordered = TokenSpec(6, 2, ordered=True), TokenSpec(6, 2)
    assert token_counts(ordered) == [1, 2, 4, 6] and token_counts(ordered, [0, 3]) == [0, 3]
    assert token_counts(unordered) == token_counts(unordered, [6]) == [6]
    with pytest.raises(InputError, match=r"^keep: these tokens have no order, expected all 6, got 3$"):
        token_counts(unordered, [6, 3])


def test_a_border_is_not_measured(tiny: Tiny, fashion: None) -> None:
    """Pixels of the border change no metric, and the classifier receives images of its own size."""
    model, classifier = random_model(tiny("maetok")), random_model(tiny("classifier"))
    plain = open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=6), "test")
    padded = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=6), "test")
    decode, values = model.decode, []
    for border in (0.0, 0.7):

        def painted(*args: Any, border: float = border, **options: Any) -> torch.Tensor:
            inner = decode(*args, **options)[..., 2:-2, 2:-2]
            return nn.functional.pad(inner, (2, 2, 2, 2), value=border)

        model.decode = painted
        records = reconstructed(model, padded, classifier, pad=2)
        values.append([record.value for record in records])
        assert {(r.sampling, r.decoding) for r in records} == {(None, None)}
        assert [r.keep for r in records[:-1]] == [4] * 4
    assert values[0] == values[1]
    within, alone = Classified(classifier, 2), Classified(classifier)
    within.update(*padded.batch(range(6)))
    alone.update(*plain.batch(range(6)))
    assert within.agreement == alone.agreement and within.distance(alone) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "options", "sampler", "guidance"),
    [
        ([], {"steps": 4}, "euler, 4 evaluations an image", "1.0"),
        ([], {"steps": 4, "sampler": "heun"}, "heun, 7 evaluations an image", "1.0"),
        ([], {"steps": 4, "guidance": 2.0}, "euler, 8 evaluations an image", "2.0"),
        (
            [],
            {"steps": 4, "guidance": 2.0, "guidance_interval": (0.0, 0.6)},  # times 0, 0.25, 0.5; not 0.75
            "euler, 7 evaluations an image",
            "2 in 0..0.6",
        ),
        (["model.objective=ddpm"], {"steps": 3}, "ancestral, 3 evaluations an image", "1.0"),
        (
            ["model.objective=ddpm"],
            {"steps": 3, "sampler": "ddim", "guidance": 0.5},
            "ddim, 6 evaluations an image",
            "0.5",
        ),
    ],
)
def test_reconstruction_records_state_the_sampler(
    tiny: Tiny, fashion: None, overrides: list[str], options: dict[str, Any], sampler: str, guidance: Any
) -> None:
    model = random_model(tiny("tokenizer"), *overrides)
    images = open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=3), "test")
    records = reconstructed(model, images, keep=[0, 4], batch_size=2, **options)
    assert {(r.name, r.keep) for r in records} == {(name, keep) for name in ("psnr", "mse") for keep in (0, 4)}
    assert {(r.sampler_text, r.guidance_text, r.decoder_steps) for r in records} == {
        (sampler, guidance, options["steps"])
    }
    assert {str(r.reference) for r in records} == {f"3 test images {images.fingerprint()}"}


def test_records_state_how_many_images_could_not_be_read(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when another process, which can read them again, continues the blocks."""
    model, folder = random_model(tiny("tokenizer")), tmp_path / "images"
    folder.mkdir()
    for number in range(70):
        Image.new("L", (28, 28), number).save(folder / f"{number:02d}.png")
    file = folder / "03.png"
    content, opened = file.read_bytes(), [FolderImages(folder, Transform(28, 1)) for _ in range(2)]
    assert len({images.fingerprint() for images in opened}) == 1, "from here on the file is other than its print"
    file.write_bytes(bytes(len(content)))
    for part, images in enumerate(opened):
        job = Job(tmp_path / "parts", (part, 2))
        records = reconstructed(model, subset(images, 69), keep=[4], steps=1, batch_size=64, job=job)
        reported = capsys.readouterr().err
        if part == 0:
            assert not records and f"skipped {file}: " in reported
            file.write_bytes(content)
    assert not reported and [record.note for record in records] == 2 * ["1 unreadable image replaced by another"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 100])
def test_every_image_counts_once_whatever_the_batches(tiny: Tiny, fashion: None, batch_size: int) -> None:
    """No padding and no mean of means: without starting noise, the metrics do not depend on the batch size."""
    model = random_model(tiny("tokenizer"), "model.flow.temperature=0")
    images = open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=6), "test")
    sizes: list[int] = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    records = reconstructed(model, images, keep=[4], batch_size=batch_size)
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
    classifier, images = (
        random_model(tiny("classifier")),
        open_images(ImageSource("fashion_mnist", image_size=28, channels=1), "test"),
    )
    values = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(global_seed)
        records = sampled(generator, tokenizer, images, classifier, num_samples=20, seed=seed, batch_size=8)
        values.append([record.value for record in records])
    assert values[0] == values[1] != values[2]


def test_generation_records_state_both_samplers(tiny: Tiny, fashion: None) -> None:
    generator, tokenizer = random_model(tiny("generator", tokenizer="x")), random_model(tiny("tokenizer"))
    classifier = random_model(tiny("classifier"))
    images = open_images(ImageSource("fashion_mnist", image_size=28, channels=1, limit=12), "test")

    def protocol(**options: Any) -> tuple[Any, Any]:
        records = sampled(generator, tokenizer, images, classifier, num_samples=10, keep=[1, 3], **options)
        ((sampler, guidance),) = {(r.sampler_text, r.guidance_text) for r in records}
        return sampler, guidance

    assert protocol() == ("euler 2 steps, 2 evaluations a token; euler, 2 evaluations an image", "1.0")
    sampler, guidance = protocol(
        guidance=3.0,
        sampler="sde",
        steps=5,
        temperature=0.9,
        decoder_sampler="heun",
        decoder_steps=3,
        decoder_guidance=2.0,
    )
    assert sampler == "sde 5 steps, 10 evaluations a token, temperature 0.9; heun, 10 evaluations an image"
    assert guidance == "3 linear, decoder 2"
    assert protocol(guidance=Guidance(0.5))[1] == "0.5 constant"


@pytest.mark.parametrize(
    ("overrides", "options", "sampler", "guidance"),
    [
        ([], {}, "sde 2 steps, 2 evaluations a sequence", "1.0"),
        ([], {"sampler": "heun", "steps": 4, "guidance": 2.0}, "heun 4 steps, 14 evaluations a sequence", "2.0"),
        (
            [],
            {"sampler": "euler", "steps": 4, "guidance": Guidance(3.0, (0.25, 0.5))},  # times 0, .25, .5, .75
            "euler 4 steps, 6 evaluations a sequence",
            "3 in 0.25..0.5",
        ),
        (DIT, {"steps": 3}, "ancestral 3 steps, 3 evaluations a sequence", "1.0"),
        (["model.guidance_free=true"], {"guidance": 2.0}, "sde 2 steps, 2 evaluations a sequence", "2.0"),
    ],
)
def test_records_of_whole_sequences(
    tiny: Tiny, fashion: None, overrides: list[str], options: dict[str, Any], sampler: str, guidance: Any
) -> None:
    generator, tokenizer = random_model(tiny("sit", tokenizer="x"), *overrides), random_model(tiny("maetok"))
    classifier = random_model(tiny("classifier"))
    images = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=12), "test")
    records = sampled(generator, tokenizer, images, classifier, num_samples=10, pad=2, **options)
    assert [(r.name, r.keep) for r in records] == [("label_agreement", 4), ("fd@fashion-mnist-cnn", 4)]
    assert {(r.sampler_text, r.guidance_text, r.decoder_steps) for r in records} == {(sampler, guidance, None)}


IDS = "num_tokens: 4, vocab_size: 16, num_classes: 10, dim: 16, depth: 1, heads: 2"


@pytest.mark.parametrize(
    ("model", "options", "sampler", "guidance"),
    [
        ("llamagen", {}, "categorical, 1 evaluations a token", "1.0"),
        (
            "llamagen",
            {"top_k": 5, "top_p": 0.9, "temperature": 0.8, "guidance": Guidance(2.0, (0.0, 0.5))},
            "categorical, 2 evaluations a token, top-k 5, top-p 0.9, temperature 0.8",
            "2 constant in 0..0.5",
        ),
        ("maskgit", {}, "maskgit 8 steps, 8 evaluations a sequence, noise 9.5, annealed", "1.0"),
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
    classifier = random_model(tiny("classifier"))
    images = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=12), "test")
    records = sampled(generator, tokenizer, images, classifier, num_samples=10, pad=2, **options)
    assert [(r.name, r.keep) for r in records] == [("label_agreement", 4), ("fd@fashion-mnist-cnn", 4)]
    assert {(r.sampler_text, r.guidance_text, r.decoder_steps) for r in records} == {(sampler, guidance, None)}


def test_options_that_a_generator_does_not_have_are_named(tiny: Tiny) -> None:
    sit = random_model(tiny("sit", tokenizer="x"))
    ids = random_model(tiny("sit", tokenizer="x"), f"model={{name: llamagen, {IDS}}}")
    SampleSettings(steps=3).check_read_by(sit.kind, "sit")
    SampleSettings(top_k=1, top_p=0.5).check_read_by(ids.kind, "llamagen")
    assert SampleSettings(steps=3).given() == {"steps": 3}
    for model, prefix, options, message in (
        (sit, "--", {"top_k": 3}, "--top-k: sit does not use it, leave it out; got 3"),
        (sit, "evaluate.", {"top_p": 0.5}, "evaluate.top_p: sit does not use it, leave it out; got 0.5"),
        (ids, "--", {"sampler": "euler"}, "--sampler: llamagen does not use it, leave it out; got euler"),
    ):
        with pytest.raises(InputError) as caught:
            SampleSettings(**options).check_read_by(model.kind, model.config.name, prefix)
        assert str(caught.value) == message


def test_guidance_from_settings(tiny: Tiny) -> None:
    causal, sit = random_model(tiny("generator", tokenizer="x")), random_model(tiny("sit", tokenizer="x"))
    assert guidance_of(causal, Sampling()) == Guidance(2.0, schedule="linear")
    assert guidance_of(causal, Sampling(guidance_schedule="constant", guidance=3.0)) == Guidance(3.0)
    assert guidance_of(sit, Sampling(unconditional=True)) == Guidance(1.0)
    assert guidance_of(sit, Sampling(guidance_interval=(0.2, 0.8))) == Guidance(2.0, (0.2, 0.8))
    with pytest.raises(InputError, match="needs a --weak-model"):
        guidance_of(sit, Sampling(unconditional=True, guidance=2.0))


def test_a_weak_model_is_counted_and_named(tiny: Tiny, fashion: None) -> None:
    generator, weak = (random_model(tiny("sit", tokenizer="x"), f"model.dim={dim}") for dim in (16, 8))
    tokenizer, classifier = random_model(tiny("maetok")), random_model(tiny("classifier"))
    images = open_images(ImageSource("fashion_mnist", image_size=32, channels=1, pad=2, limit=12), "test")
    guidance = Guidance(2.0, weak_model=weak)
    records = sampled(generator, tokenizer, images, classifier, num_samples=10, pad=2, guidance=guidance)
    assert records[0].sampler_text == "sde 2 steps, 4 evaluations a sequence"
    assert records[0].guidance_text == f"2 against sit@{fingerprint(weak)}"


@pytest.mark.parametrize(("kind", "tokenizer", "pad"), [("sit", "maetok", 2), ("generator", "tokenizer", 0)])
def test_without_classes_only_the_distance_is_measured(
    tiny: Tiny, fashion: None, kind: str, tokenizer: str, pad: int
) -> None:
    classifier, decoder = random_model(tiny("classifier")), random_model(tiny(tokenizer))
    images = open_images(ImageSource("fashion_mnist", image_size=28 + 2 * pad, channels=1, pad=pad, limit=12), "test")
    conditional = random_model(tiny(kind, tokenizer="x"))
    received: list[Any] = []
    sample = conditional.sample

    def spy(cond: Any = None, **options: Any) -> Any:
        received.append((cond, options["num"]))
        return sample(cond, **options)

    conditional.sample = spy
    blind = random_model(tiny(kind, tokenizer="x"), "model.num_classes=0")
    for model, options in ((conditional, {"unconditional": True}), (blind, {})):
        records = sampled(model, decoder, images, classifier, num_samples=7, batch_size=4, pad=pad, **options)
        assert [(r.name, r.note.split("; few images")[0], r.num_images) for r in records] == [
            ("fd@fashion-mnist-cnn", "unconditional", 7)
        ]
    assert received == [(None, 4), (None, 3)]
