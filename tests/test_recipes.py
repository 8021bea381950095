"""Every recipe of the package resolves, builds on the meta device and forecasts; published sizes have their counts."""

import re
from dataclasses import replace
from functools import cache, partial
from itertools import product
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.fields import to_mapping
from tok1d.config.load import load_recipe, recipe_names
from tok1d.cost.forecast import count_parameters, forecast, images_of_epoch, meta_batch
from tok1d.cost.measure import count_flops, use_stand_ins
from tok1d.diffusion.solver import time_grid
from tok1d.errors import ConfigError
from tok1d.generators.autoregressive import EpsilonLlamaGenConfig
from tok1d.nn.block import swiglu_hidden
from tok1d.tokenizers.query_encoder import EncoderConfig
from tok1d.tokenizers.token_dit import DecoderConfig
from tok1d.train.optim import learning_rate
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.adapters.semanticist import ar_config, decoder_config, encoder_config
from tok1d.zoo.adapters.semanticist_names import from_published, to_published

SMALL = ("fashion_mnist/", "emoji/", "own/")  # their cards state measured times
IMAGENET = [name for name in recipe_names() if name.startswith("imagenet")]
TOKENIZERS = [name for name in IMAGENET if name.startswith("imagenet256/semanticist")]
GENERATORS = [name for name in IMAGENET if name.startswith("imagenet256/epsilon_llamagen")]
SMAP = [name for name in IMAGENET if "/smap_" in name]
CARDS = [name for name in IMAGENET if "/card_" in name]
TITOK = [name for name in IMAGENET if "/titok_" in name]
OF_IDS = [name for name in IMAGENET if name.split("/")[1].startswith(("llamagen", "maskgit"))]
KNOWN = (*TOKENIZERS, *GENERATORS, *SMAP, *CARDS, *TITOK, *OF_IDS)
OTHERS = [name for name in IMAGENET if name not in KNOWN]  # MAETok, SoftVQ, SiT and related models
L = "imagenet256/semanticist_l"
OURS = [f"{L}_128x32", f"{L}_no_repa", "captioned256/maetok_b_128", f"{L}_muon", "imagenet256/maetok_b_128_muon"]
AR = "imagenet256/epsilon_llamagen_l"
NO_REPA = ("model.decoder.align_depth=0", 'model.alignment.teacher=""')


@cache
def built(name: str, *overrides: str) -> Any:
    recipe = load_recipe(name, overrides)
    with torch.device("meta"):
        return store.build_model(recipe.model)


def counts(name: str, *overrides: str) -> dict[str, int]:
    return count_parameters(built(name, *overrides), load_recipe(name, overrides).kind)[0]


def stacks(recipe: Any) -> dict[str, int]:
    """The stacks of blocks of a recipe's model, by the key of their depth."""
    parts = {"tokenizer": ("encoder.", "decoder."), "generator": ("", "head.")}.get(recipe.kind, ())
    keys = [f"{part}depth" for part in parts if part != "head." or hasattr(recipe.model, "head")]
    return {f"model.{key}": attrgetter(key)(recipe.model) for key in keys}


def shallow(name: str, *overrides: str) -> Any:
    """The recipe with stacks of one block, which are forecast in a second."""
    recipe = load_recipe(name)
    depths = [f"{key}=1" for key in stacks(recipe)]
    if getattr(getattr(recipe.model, "decoder", None), "align_depth", 0):
        depths.append("model.decoder.align_depth=1")
    return load_recipe(name, [*depths, *overrides])


@cache
def shallow_forecast(name: str) -> Any:
    return forecast(shallow(name))


@cache
def flops_of_block(name: str, key: str) -> int:
    """FLOPs per image of one more block of a stack; of one more block on each side for a U-ViT, by block."""
    more = 3 if "uvit" in getattr(load_recipe(name).model, "trunk", "") or "usit" in name else 2
    recipe = shallow(name, f"{key}={more}")
    with torch.device("meta"):
        model = store.build_model(recipe.model)
    use_stand_ins(model)
    sizes = [*recipe.data.image_sizes] or [None]
    total = sum(count_flops(model, partial(meta_batch, recipe, size=size)) for size in sizes) // len(sizes)
    return (total - shallow_forecast(name).measured.flops_per_image) // (more - 1)


FIRST: dict[str, str] = {}  # by what the cost of a stack's blocks depends on: the first recipe with these settings


def like(name: str, key: str) -> str:
    """The first recipe whose blocks of a stack cost the same."""
    recipe = load_recipe(name)
    model = to_mapping(recipe.model)
    stack: Any = model if key == "model.depth" else model[key.split(".")[1]]
    own = {k: v for k, v in stack.items() if k != "depth" and not isinstance(v, dict | list)}
    sizes = [recipe.data.image_size, recipe.data.image_sizes, recipe.num_tokens]
    sizes += [model.get(name) for name in ("num_tokens", "condition_on", "stage")]
    return FIRST.setdefault(f"{key} {model['name']} {sizes} {own}", name)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_resolves_builds_and_forecasts(name: str) -> None:
    recipe = load_recipe(name)
    result = shallow_forecast(name)
    assert images_of_epoch(recipe) == result.num_images
    assert (result.num_images is None) == name.startswith("own/"), "the user's images are not known"
    assert result.run_flops > 0 and result.memory() > result.state_bytes > 0
    assert (result.cache_bytes is not None) == (recipe.kind == "generator" and result.num_images is not None)
    card = recipe.card
    assert card.about and card.cost, "what it is and what it takes"


@pytest.mark.parametrize("name", [*TOKENIZERS, *GENERATORS])
def test_published_recipe_states_what_it_reproduces_and_adds_up(name: str) -> None:
    recipe, model = load_recipe(name), built(name)
    assert bool(recipe.card.reproduces) == bool(recipe.card.paper) == (name not in OURS)
    assert recipe.card.ours == "not run at this scale"
    train = recipe.train
    assert train.batch_size * train.accumulate == 8 * 256 and train.steps == 400 * (1_281_103 // 2048)
    assert (recipe.data.image_size, recipe.data.num_images) == (256, 1_281_167)
    if recipe.kind == "tokenizer":
        assert recipe.model.num_tokens * recipe.model.token_dim == 4096
        assert train.lr == pytest.approx(2.5e-5 * 2048 / 256)
        assert recipe.evaluate.keep in ([], [1, 4, 16, 64, 256]) and recipe.model.num_tokens == model.spec.length
        assert recipe.model.nested.after * train.steps == 50 * 625
    else:
        tokenizer = load_recipe(recipe.tokenizer.removeprefix("runs/").removesuffix("/model"))  # type: ignore[union-attr]
        assert recipe.num_tokens == recipe.model.num_tokens == 32 <= tokenizer.model.num_tokens
        assert recipe.model.token_dim == tokenizer.model.token_dim
        assert recipe.cache_views == "tencrop"


@pytest.mark.parametrize("name", OTHERS)
def test_maetok_recipe_states_what_it_reproduces_and_adds_up(name: str) -> None:
    recipe = load_recipe(name)
    card, data, train, size = recipe.card, recipe.data, recipe.train, 512 if "512/" in name else 256
    assert bool(card.reproduces) == bool(card.paper) == (name not in OURS) and card.ours == "not run at this scale"
    assert (data.image_size, data.num_images) == (size, 1_281_167)
    if recipe.kind == "generator":
        tokenizer = made_by(recipe.tokenizer)
        assert tokenizer.data.image_size == size
        assert (recipe.model.num_tokens, recipe.model.token_dim) == (tokenizer.model.length, tokenizer.model.token_dim)
        return
    assert train.lr == pytest.approx(1e-4 * (train.batch_size / 256 if "maetok" in name else 1))
    assert recipe.perceptual.weight == 1 and recipe.adversarial.weight > 0 and train.weight_decay == 1e-4
    if recipe.model.stage == "finetune":
        assert train.steps == 50_000 and recipe.adversarial.start == 0
        assert not recipe.model.auxiliary
        first = made_by(recipe.init_from)
        same = ("image_size", "num_tokens", "token_dim", "bottleneck", "encoder", "decoder", "mask")
        assert all(getattr(recipe.model, key) == getattr(first.model, key) for key in same)
        assert recipe.adversarial.discriminator == first.adversarial.discriminator
    elif "maetok" in name:
        assert train.steps == (250_000 if "ablation" in name else 500_000)


@pytest.mark.parametrize("name", CARDS)
def test_card_recipe_states_what_it_reproduces_and_adds_up(name: str) -> None:
    recipe = load_recipe(name)
    card, model, train, large = recipe.card, recipe.model, recipe.train, "512/" in name
    assert card.reproduces and card.paper and card.ours == "not run at this scale"
    assert (recipe.data.image_size, recipe.data.num_images) == (512 if large else 256, 1_281_167)
    assert (train.batch_size, train.steps, train.lr, train.clip) == (2048, 250_000, 4e-4, 3.0)
    assert (recipe.evaluate.guidance, model.head.steps, model.guidance_schedule) == (
        3.5 if large else 2.7,
        25,
        "constant",
    )
    assert recipe.num_tokens == model.num_tokens == recipe.evaluate.keep[0] == 128
    assert recipe.sample_latents == ("softvq" not in name)
    assert load_recipe(name, ["num_tokens=64"]).model.num_tokens == 64, "one number for every token budget"
    independent = "independent" in name or "unconditioned" in name
    assert model.class_source == ("independent" if independent else "shared")
    first = made_by(recipe.tokenizer).model
    assert first.condition_on == ("none" if "unconditioned" in name else "both")


@pytest.mark.parametrize("name", ["epsilon_llamagen", "sit", "card", "card_words"])
def test_generators_of_emoji_agree_with_their_tokenizers(name: str) -> None:
    recipe = load_recipe(f"emoji/{name}")
    first = made_by(
        {"emoji-smap": "emoji/smap_words", "emoji-maetok": "emoji/maetok_finetune"}.get(
            recipe.tokenizer, recipe.tokenizer
        )
    )
    assert (recipe.data.name, recipe.data.image_size, recipe.data.channels) == ("emoji", 64, 3)
    for key in ("name", "image_size", "channels", "captions", "classes"):
        assert getattr(recipe.data, key) == getattr(first.data, key)
    assert (first.model.num_tokens, first.model.token_dim) == (recipe.model.num_tokens, recipe.model.token_dim)
    words = name == "card_words"
    assert recipe.model.num_classes == (0 if words else 9) and recipe.reads_captions == words
    if words:
        assert recipe.model.condition == first.model.condition and first.model.label_dropout > 0
    elif name == "card":
        assert (first.model.num_classes, first.model.encoder.dim) == (9, recipe.model.class_dim)


@pytest.mark.parametrize("name", ["epsilon_llamagen", "sit", "card"])
def test_generators_of_own_images_agree_with_their_tokenizers(name: str) -> None:
    recipe = load_recipe(f"own/{name}")
    first = made_by(recipe.tokenizer)
    for key in ("name", "root", "image_size", "channels", "crop", "background", "pad"):
        assert getattr(recipe.data, key) == getattr(first.data, key)
    assert (first.model.num_tokens, first.model.token_dim) == (recipe.model.num_tokens, recipe.model.token_dim)
    assert recipe.classes_from_data and first.classes_from_data == (name == "card")
    assert name != "card" or first.model.encoder.dim == recipe.model.class_dim
    size = load_recipe(f"own/{recipe.tokenizer.split('/')[2]}", ["data.image_size=96", "data.channels=1"]).model
    assert (size.image_size, size.channels) == (96, 1), "typed once"


def test_fine_tuning_of_emoji_continues_its_first_stage() -> None:
    second = load_recipe("emoji/maetok_finetune")
    first = made_by(second.init_from)
    assert second.model.stage == "finetune" and not second.model.auxiliary
    assert all(getattr(second.model, key) == getattr(first.model, key) for key in ("encoder", "decoder", "num_tokens"))


@pytest.mark.parametrize("name", [*CARDS, "fashion_mnist/card"])
def test_card_and_its_tokenizer_agree(name: str) -> None:
    recipe = load_recipe(name)
    bundled = recipe.tokenizer == "fashion-mnist-smap"
    model, first = recipe.model, load_recipe("fashion_mnist/smap_long") if bundled else made_by(recipe.tokenizer)
    tokenizer = first.model
    assert (tokenizer.name, tokenizer.bottleneck.name) == ("smap", "softvq" if "softvq" in name else "kl")
    assert (tokenizer.num_tokens, tokenizer.token_dim) == (model.num_tokens, model.token_dim)
    assert (tokenizer.num_classes, tokenizer.encoder.dim) == (model.num_classes, model.class_dim)
    assert (first.data.image_size, first.data.pad) == (recipe.data.image_size, recipe.data.pad)


def test_recipes_of_captions_agree_and_leave_the_encoder_to_be_named() -> None:
    first, second = (load_recipe(f"fashion_mnist/{name}_text") for name in ("smap", "card"))
    assert made_by(second.tokenizer).model == first.model
    assert first.model.condition == second.model.condition and first.data.captions == second.data.captions == "labels"
    assert first.model.condition.is_text and first.model.condition.encoder == ""
    for name in ("smap", "card"):
        with pytest.raises(ConfigError, match=r"^model\.condition\.encoder: no text encoder is bundled, expected"):
            build_task(load_recipe(f"fashion_mnist/{name}_text"))


# The paper states 234, 568 and 1100 million.
@pytest.mark.parametrize(
    ("size", "trunk", "head", "paper", "off"),
    [
        ("b", 199_825_152, 35_733_520, 234e6, 0.7),
        ("l", 480_119_552, 72_209_936, 568e6, -2.8),
        ("xl", 946_028_288, 151_182_352, 1100e6, -0.3),
    ],
)
def test_card_counts(size: str, trunk: int, head: int, paper: float, off: float) -> None:
    for folder in ("imagenet256", "imagenet512"):
        assert counts(f"{folder}/card_{size}") == {"trunk": trunk, "head": head}
    assert 100 * ((trunk + head) / paper - 1) == pytest.approx(off, abs=0.06)
    frozen = 1000 * 768
    trained = sum(p.numel() for p in built(f"imagenet256/card_{size}").parameters())
    assert (
        trained + frozen
        == trunk + head
        == sum(counts(f"imagenet256/card_{size}", "model.class_source=independent").values())
    )


@pytest.mark.parametrize("name", TITOK)
def test_titok_recipe_states_what_it_reproduces_and_adds_up(name: str) -> None:
    recipe = load_recipe(name)
    card, data, train, adversarial = recipe.card, recipe.data, recipe.train, recipe.adversarial
    assert card.reproduces and "rFID" in card.paper and card.ours == "not run at this scale"
    assert (data.image_size, data.num_images, recipe.model.image_size) == (256, 1_281_167, 256)
    assert (train.lr, train.lr_min, train.beta2, train.weight_decay) == (1e-4, 1e-5, 0.999, 1e-4)
    assert (
        adversarial.discriminator.name == "blur_patch" and adversarial.lecam_of == "means" and not adversarial.adaptive
    )
    assert str(recipe.model.num_tokens) in card.about and recipe.perceptual.logits == 0.1
    if recipe.model.name == "titok_legacy":
        # Where it starts from holds what it trains: the published weights of the same name.
        assert recipe.init_from == f"models/{name.split('/')[1]}" and recipe.model.stage == "finetune"
        assert (train.steps, train.batch_size, adversarial.weight, adversarial.start) == (500_000, 256, 0.01, 20_000)
        assert recipe.perceptual.weight == 0 and recipe.model.bottleneck.l2
    else:
        assert (train.steps, train.batch_size, adversarial.weight, adversarial.start) == (650_000, 1024, 0.1, 200_000)
        assert recipe.perceptual.weight == 1 and recipe.model.bottleneck.name == ("vq" if "_vq" in name else "kl")


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("l32", 641.1),
        ("b64", 204.8),
        ("s128", 83.7),
        ("bl128_vq", 390.2),
        ("sl256_vq", 330.3),
        ("ll32_vae", 606.9),
        ("bl128_vae", 389.6),
    ],
)
def test_titok_counts(name: str, millions: float) -> None:
    assert sum(counts(f"imagenet256/titok_{name}").values()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_titok_s_pixel_decoder_and_codes() -> None:
    decoder = built("imagenet256/titok_l32").decoder
    assert sum(weight.numel() for weight in decoder.painter.parameters()) / 1e6 == pytest.approx(30.5, abs=0.05)
    assert decoder.codebook.shape == (1024, 256) and decoder.painter.scale == 16
    # Fewer tokens are fewer queries and places: nothing else is another size.
    shorter = 64 * (2 * 768 + 1024)
    assert sum(counts("imagenet256/titok_bl64_vq").values()) + shorter == sum(
        counts("imagenet256/titok_bl128_vq").values()
    )


@pytest.mark.parametrize("name", OF_IDS)
def test_recipe_of_ids_states_what_it_reproduces_and_adds_up(name: str) -> None:
    recipe = load_recipe(name)
    card, data, train, model = recipe.card, recipe.data, recipe.train, recipe.model
    assert card.reproduces and card.paper and card.ours == "not run at this scale"
    assert (data.image_size, data.num_images) == (256, 1_281_167) and recipe.evaluate.num_samples == 50_000
    with torch.device("meta"):
        spec = store.build_model(made_by(recipe.tokenizer).model).spec
    assert (model.num_tokens, model.vocab_size) == (spec.length, spec.vocab_size)
    if "maskgit" in name:
        assert (train.steps, train.batch_size, train.lr, train.lr_min) == (500_000, 2048, 2e-4, 1e-5)
    elif "3b" in name:
        assert (train.steps, train.batch_size, train.lr) == (250_000, 2048, 1e-4 * 2048 / 256)
    else:
        assert (train.steps, train.lr) == (300 * (1_281_167 // 256), 1e-4)


@pytest.mark.parametrize(
    ("name", "millions", "digits"),
    [
        ("llamagen_b", 98.3, 1),
        ("llamagen_l", 326.1, 1),
        ("llamagen_xl", 753.7, 1),
        ("llamagen_xxl", 1386, 0),
        ("llamagen_3b", 3044, 0),
        ("maskgit_l32", 177.2, 1),
        ("maskgit_b64", 177.2, 1),
        ("maskgit_s128", 295, 0),
        ("maskgit_smap_b_128", 183.6, 1),
    ],
)
def test_counts_of_generators_of_ids(name: str, millions: float, digits: int) -> None:
    assert round(sum(counts(f"imagenet256/{name}").values()) / 1e6, digits) == millions


def made_by(model: Any) -> Any:
    """The recipe whose run makes a model folder."""
    return load_recipe(model.removeprefix("runs/").removesuffix("/model"))


MAE = "imagenet256/maetok_ablation"


@pytest.mark.parametrize(
    ("name", "targets", "depth", "masked", "bottleneck", "tokens"),
    [
        ("", 3, 3, (0.4, 0.6), "plain", 128),
        ("_pixel", 0, None, (0.4, 0.6), "plain", 128),
        ("_hog", 1, 3, (0.4, 0.6), "plain", 128),
        ("_dino", 1, 3, (0.4, 0.6), "plain", 128),
        ("_clip", 1, 3, (0.4, 0.6), "plain", 128),
        ("_ratio_0_60", 1, 3, (0.0, 0.6), "plain", 128),
        ("_ratio_10_40", 1, 3, (0.1, 0.4), "plain", 128),
        ("_ratio_20_60", 1, 3, (0.2, 0.6), "plain", 128),
        ("_ratio_40_40", 1, 3, (0.4, 0.4), "plain", 128),
        ("_ratio_40_60", 1, 3, (0.4, 0.6), "plain", 128),
        ("_depth_0", 3, 0, (0.4, 0.6), "plain", 128),
        ("_depth_1", 3, 1, (0.4, 0.6), "plain", 128),
        ("_depth_6", 3, 6, (0.4, 0.6), "plain", 128),
        ("_depth_12", 3, 12, (0.4, 0.6), "plain", 128),
        ("_ae", 0, None, (0.0, 0.0), "plain", 128),
        ("_vae", 0, None, (0.0, 0.0), "kl", 128),
        ("_vae_mask", 3, 3, (0.4, 0.6), "kl", 128),
        ("_256", 3, 3, (0.4, 0.6), "plain", 256),
        ("_image_tokens", 3, 3, (0.4, 0.6), "plain", 256),
        ("_no_mask", 3, 3, (0.0, 0.0), "plain", 128),
        ("_image_tokens_no_mask", 3, 3, (0.0, 0.0), "plain", 256),
        ("_image_tokens_pixel", 0, None, (0.4, 0.6), "plain", 256),
    ],
)
def test_maetok_ablations_differ_in_what_they_state(
    name: str, targets: int, depth: int | None, masked: tuple[float, float], bottleneck: str, tokens: int
) -> None:
    model = load_recipe(MAE + name).model
    assert len(model.auxiliary) == targets and {each.depth for each in model.auxiliary} == ({depth} - {None})
    assert ((model.mask.low, model.mask.high), model.bottleneck.name) == (masked, bottleneck)
    assert model.length == tokens and model.num_tokens == (0 if "image" in name else tokens)
    assert model.aux_loss_on == ("all" if "no_mask" in name else "masked")


@pytest.mark.parametrize("name", ["_ape", "_rope"])
def test_the_ablation_of_positions_mixes_resolutions(name: str) -> None:
    recipe = load_recipe(MAE + name)
    assert recipe.data.image_sizes == [256, 512]
    assert {part.absolute for part in (recipe.model.encoder, recipe.model.decoder)} == {name == "_ape"}


def test_captioned_images_of_the_paper_are_of_512_pixels() -> None:
    first, second = load_recipe("captioned512/maetok_b_128"), load_recipe("captioned512/maetok_b_128_finetune")
    assert {recipe.model.image_size for recipe in (first, second)} == {512} and first.learns_words
    assert made_by(second.init_from).model == first.model and not second.learns_words
    assert second.model.stage == "finetune" and "LAION-COCO" in second.card.reproduces
    *three, text = first.model.auxiliary
    assert three == load_recipe("imagenet512/maetok_b_128").model.auxiliary and text.target == "text"


def test_captioned_images_have_a_fourth_target() -> None:
    recipe, imagenet = load_recipe("captioned256/maetok_b_128"), load_recipe("imagenet256/maetok_b_128")
    assert not recipe.card.reproduces and not recipe.card.paper, "the paper has none at 256 px"
    *three, text = recipe.model.auxiliary
    assert three == imagenet.model.auxiliary and (text.target, text.dim, text.depth) == ("text", 49_408, 3)
    assert recipe.data.captions and recipe.learns_words and recipe.card.ours == "not run at this scale"
    # The decoder of the target text, and nothing else, is more: 3 blocks, its own tokens, 49408 logits.
    more = {k: n - counts("imagenet256/maetok_b_128")[k] for k, n in counts("captioned256/maetok_b_128").items()}
    assert {part for part, count in more.items() if count} == {"auxiliary"}
    block = 12 * 768**2 + (3 + 1 + 4 + 1) * 768 + 2 * 2 * 768 + 2 * 768  # products, biases, norms, layer scale
    around = (32 + 1) * 768 + 768 + 128 * 768 + 2 * 768 + 768 + 2 * 3 * 768 // 2  # tokens, masks, norm, class, turns
    assert more["auxiliary"] == 3 * block + around + 769 * 49_408


@pytest.mark.parametrize(
    ("name", "total", "unread"),
    [
        # Published files also count the decoder's patch embedding and, beside rotations, its table of positions.
        ("imagenet256/maetok_b_128_finetune", 172_681_760, 768 * (3 * 256 + 1) + 257 * 768),
        ("imagenet512/maetok_b_128_finetune", 173_861_408, 768 * (3 * 256 + 1) + 1025 * 768),
        ("imagenet256/softvq_s_64", 44_839_200, 384 * (3 * 256 + 1)),
        ("imagenet256/softvq_b_64", 173_563_680, 768 * (3 * 256 + 1)),
        ("imagenet256/softvq_bl_64", 391_334_432, 1024 * (3 * 256 + 1)),
        ("imagenet256/softvq_l_64", 608_924_448, 1024 * (3 * 256 + 1)),
        ("imagenet256/softvq_l_32", 609_940_288, 1024 * (3 * 256 + 1)),
        ("imagenet256/sit_b", 130_426_400, 0),
        ("imagenet256/sit_l", 457_988_128, 0),
        ("imagenet256/sit_xl", 675_000_608, 0),
        ("imagenet512/sit_xl", 675_000_608, 0),
        # With 256 tokens the published table adds fixed positions; this one has rotations alone.
        ("imagenet256/lightningdit_xl", 675_256_736 - 256 * 1152, 0),
    ],
)
def test_maetok_counts(name: str, total: int, unread: int) -> None:
    overrides = ['model.alignment.teacher=""'] if "softvq" in name else []
    assert sum(counts(name, *overrides).values()) + unread == total


@pytest.mark.parametrize("name", SMAP)
def test_smap_recipe_states_what_it_reproduces_and_adds_up(name: str) -> None:
    recipe, size = load_recipe(name), 512 if "512/" in name else 256
    card, data, train, model = recipe.card, recipe.data, recipe.train, recipe.model
    assert card.reproduces.startswith("SMAP (arXiv 2603.25249)") and card.paper and card.ours == "not run at this scale"
    assert (data.image_size, data.num_images, data.crop, data.flip) == (size, 1_281_167, "random_scale", True)
    # 100 epochs of 5004 steps, 20 of them warm-up, to within a thousandth.
    assert (train.batch_size, train.steps, train.warmup) == (256, 500_000, 100_000)
    assert (recipe.perceptual.weight, recipe.adversarial.weight, recipe.adversarial.start) == (1, 0.2, 20_000)
    kind, tokens = re.fullmatch(r"smap_[sbl](?:_std)?_([a-z]+)_(\d+)(?:_no_[a-z]+)?", name.split("/")[1]).groups()  # type: ignore[union-attr]
    assert (model.bottleneck.name, model.num_tokens) == (kind, int(tokens))
    assert recipe.evaluate.keep[0] == 0 and recipe.evaluate.keep[-1] == model.num_tokens
    assert model.token_dim == (64 if kind == "vq" else 16)
    assert (size // model.encoder.patch, size // model.decoder.patch) == (16, 16)
    assert model.condition_on == ("none" if name.endswith("no_condition") else "both")
    assert model.tail_drop.enabled == (not name.endswith("no_truncation"))
    if kind == "vq":
        assert (model.bottleneck.size, model.bottleneck.l2, model.bottleneck.revival) == (8192, False, True)
    if kind == "softvq":
        assert (model.bottleneck.size, model.bottleneck.num_codebooks) == (2048, 4)


# The fit to the paper's sizes, in millions: encoder, decoder and class table with its projection; totals by bottleneck.
@pytest.mark.parametrize(
    ("size", "shape", "parts", "kl", "softvq", "vq", "paper", "error"),
    [
        ("b", "", (86.07, 303.51, 1.56), 391.1, 391.3, 391.7, 391, 0.001),
        ("s", "", (86.07, 100.13, 0.77), 187.0, 187.1, 187.5, 185, 0.012),
        ("l", "", (265.87, 303.51, 1.03), 570.4, 570.5, 571.0, 568, 0.005),
        ("s", "_std", (86.07, 85.96, 0.77), 172.8, 172.9, 173.4, 185, 0.067),
        ("l", "_std", (303.66, 303.51, 1.03), 608.2, 608.3, 608.8, 568, 0.072),
    ],
)
def test_smap_counts(
    size: str, shape: str, parts: tuple[float, ...], kl: float, softvq: float, vq: float, paper: float, error: float
) -> None:
    name = f"imagenet256/smap_{size}{shape}_kl_128"
    found = {part: count / 1e6 for part, count in counts(name).items()}
    # The reference counts the linear layer to the tokens and the class's positions into one part or another.
    assert found["encoder"] + found["bottleneck"] == pytest.approx(parts[0], abs=0.02)
    assert found["decoder"] == pytest.approx(parts[1], abs=0.01)
    assert found["condition"] == pytest.approx(parts[2], abs=0.01)
    others = {
        "kl": [],
        "softvq": ["model.bottleneck={name: softvq, size: 2048, num_codebooks: 4}"],
        "vq": ["model.bottleneck={name: vq, size: 8192, l2: false}", "model.token_dim=64"],
    }
    totals = {kind: sum(counts(name, *overrides).values()) / 1e6 for kind, overrides in others.items()}
    for kind, expected in (("kl", kl), ("softvq", softvq), ("vq", vq)):
        assert totals[kind] == pytest.approx(expected, abs=0.06), kind
    assert totals["kl"] / paper == pytest.approx(1, abs=error)
    at_512 = counts(name, "data.image_size=512", "model.encoder.patch=32", "model.decoder.patch=32")
    widths = [getattr(load_recipe(name).model, part).dim for part in ("encoder", "decoder")]
    # Of each four times as many pixels, the weights of the patches and of the head, whose bias grows too.
    grown = 3 * 3 * 16**2 * (sum(widths) + 1) / 1e6
    assert sum(at_512.values()) / 1e6 - totals["kl"] == pytest.approx(grown, abs=1e-6)


def test_the_published_shift_of_lightningdit_s_times_is_a_recipe() -> None:
    """Published: t' = s t / (1 + (s - 1) t) with s = 0.3 and t from 0 (noise) to 1 (tokens), in equal steps of t."""
    model = load_recipe("imagenet256/lightningdit_xl_shifted").model
    t = torch.linspace(0, 1, model.steps + 1, dtype=torch.float64)
    published = 0.3 * t / (1 + (0.3 - 1) * t)
    torch.testing.assert_close(time_grid(model.steps, shift=model.time_shift).double(), published, atol=1e-6, rtol=0)


def test_checkpoints_that_the_paper_needs_are_kept() -> None:
    for name, step in (("sit_xl", 2_000_000), ("sit_l_ablation", 100_000), ("lightningdit_xl", 100_000)):
        train = load_recipe(f"imagenet256/{name}").train
        assert train.keep_every and step % train.keep_every == 0 and train.keep_every % train.save_every == 0
    half, whole = load_recipe("imagenet256/sit_xl_2m"), load_recipe("imagenet256/sit_xl")
    assert half.model == whole.model and replace(half.train, steps=whole.train.steps) == whole.train


def test_maskgit_on_smap_in_8_and_64_steps_is_one_model() -> None:
    few, many = (load_recipe(f"imagenet256/maskgit_smap_b_128{end}") for end in ("_8_steps", ""))
    assert (few.model.steps, many.model.steps) == (8, 64) and few.train == many.train
    sampling = {key: getattr(many.model, key) for key in ("steps", "noise", "guidance_schedule", "annealing")}
    assert replace(few.model, **sampling) == many.model and few.tokenizer == many.tokenizer


def test_guidance_free_training_is_all_that_its_recipe_adds() -> None:
    free, plain = load_recipe("imagenet256/sit_xl_guidance_free"), load_recipe("imagenet256/sit_xl")
    assert free.model.guidance_free and replace(free.model, guidance_free=False) == plain.model
    assert (free.train, free.evaluate) == (plain.train, plain.evaluate)


@pytest.mark.parametrize("name", ["imagenet256/usit_2b", "imagenet512/usit_2b"])
def test_usit_2b_has_about_1_58_billion(name: str) -> None:
    assert sum(counts(name).values()) == pytest.approx(1_580.4e6, rel=1e-3)


@pytest.mark.parametrize("first", [f"{L}_released", "imagenet256/semanticist_xl_released"])
def test_released_tokenizer_schedule_ends_at_14_6_percent(first: str) -> None:
    train = load_recipe(first).train
    assert train.weight_decay == 0.05 and learning_rate(0, train) == 0.0 and not train.ema_ramp
    assert learning_rate(62_500, train) == 2e-4
    assert learning_rate(train.steps, train) / 2e-4 == pytest.approx(0.146, abs=5e-4)
    paper = load_recipe(L).train
    assert paper.weight_decay == 0 and learning_rate(paper.steps - 1, paper) == 0


def test_released_generator_never_leaves_its_warm_up() -> None:
    released, paper = load_recipe(f"{AR}_released").train, load_recipe(AR).train
    assert (released.ema_ramp, released.ema, paper.ema_ramp) == (False, 0.999, True)
    for step in (0, 1, 100_000, 249_999):
        assert learning_rate(step, released) == pytest.approx(8e-4 * step / (100 * 20_018), rel=1e-12)
    assert learning_rate(62_500, paper) == learning_rate(249_999, paper) == pytest.approx(1e-4 * 2048 / 256)


SHAPES = ["256x16", "128x32", "64x64", "32x128", "16x256"]


def test_the_four_shapes_of_the_paper_are_named_and_evaluated_by_tokens() -> None:
    """The paper's d128x32 are 32 tokens of 128 numbers; 128 tokens of 32 are none of its shapes."""
    for shape in SHAPES:
        tokens, dim = map(int, shape.split("x"))
        recipe = load_recipe(L if shape == "256x16" else f"{L}_{shape}")
        assert (recipe.model.num_tokens, recipe.model.token_dim, recipe.evaluate.keep) == (tokens, dim, [])
        assert (f"token shape d{dim}x{tokens} " in recipe.card.reproduces) == (shape != "128x32")


def test_the_ablation_of_repa_is_a_pair_of_the_paper_s_shape() -> None:
    with_repa, without = (load_recipe(f"{L}_64x64{end}") for end in ("", "_no_repa"))
    assert all("figure 11" in recipe.card.reproduces for recipe in (with_repa, without))
    assert with_repa.model.alignment.teacher and not without.model.alignment.teacher
    model = without.model
    repa = {"decoder": with_repa.model.decoder, "alignment": with_repa.model.alignment}
    assert replace(model, **repa) == with_repa.model and without.evaluate == with_repa.evaluate
    assert without.train == with_repa.train


@pytest.mark.parametrize(
    ("shape", "encoder", "projection"),
    [
        ("256x16", 86_237_952, 12_304),
        ("128x32", 86_041_344, 24_608),
        ("64x64", 85_943_040, 49_216),
        ("32x128", 85_893_888, 98_432),
        ("16x256", 85_869_312, 196_864),
    ],
)
def test_encoder_counts(shape: str, encoder: int, projection: int) -> None:
    found = counts(L if shape == "256x16" else f"{L}_{shape}")
    assert (found["encoder"], found["bottleneck"]) == (encoder, projection)


# With the fixed sine-cosine table, which the published files hold: 64 positions of the decoder's width.
@pytest.mark.parametrize(
    ("size", "decoder", "projector", "at_16x256"),
    [
        ("S", 32_571_264, 6_558_464, None),
        ("B", 129_724_032, 7_344_896, 129_908_352),
        ("L", 457_050_240, 7_869_184, 457_296_000),
        ("XL", 673_944_960, 8_131_328, 674_221_440),
    ],
)
def test_decoder_counts(size: str, decoder: int, projector: int, at_16x256: int | None) -> None:
    sized = f"model.decoder.size={size}"
    found, tables = count_parameters(built(L, sized), "tokenizer")
    assert (found["decoder"], found["projector"]) == (decoder, projector)
    assert tables == {"decoder": 64 * DecoderConfig.SIZES[size]["dim"]}
    plain = counts(L, sized, *NO_REPA)
    assert plain["decoder"] == decoder and "projector" not in plain
    if at_16x256 is not None:
        assert counts(f"{L}_16x256", sized, *NO_REPA)["decoder"] == at_16x256


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.split("_")[1] in ("b", "xl")])
def test_a_decoder_of_another_size_is_named_so(name: str) -> None:
    size = name.split("_")[1].upper()
    decoder = load_recipe(name).model.decoder
    assert {key: getattr(decoder, key) for key in ("dim", "depth", "heads")} == DecoderConfig.SIZES[size]


@pytest.mark.parametrize(
    ("size", "total", "trunk", "head"),
    [
        ("B", 264_518_416, 85_786_368, 178_732_048),
        ("L", 488_566_800, 309_441_536, 179_125_264),
        ("XL", 912_381_200, 732_862_720, 179_518_480),
        ("XXL", 1_540_680_208, 1_360_768_512, 179_911_696),
        ("XXXL", 3_990_838_800, 3_809_354_240, 181_484_560),
        ("1B", 1_313_375_248, None, None),
        ("3B", 3_174_534_800, None, None),
        ("7B", 6_664_555_536, None, None),
    ],
)
def test_generator_counts(size: str, total: int, trunk: int | None, head: int | None) -> None:
    named = f"imagenet256/epsilon_llamagen_{size.lower()}"
    found = counts(named) if named in GENERATORS else counts(AR, f"model.size={size}")
    assert sum(found.values()) == total
    if trunk is not None:
        assert found == {"trunk": trunk, "head": head}


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith(SMALL)])
def test_the_cost_on_the_card_is_the_forecast(name: str) -> None:
    """The cost is linear in the depth of every stack: that of stacks of one block, and of the other blocks."""
    recipe = load_recipe(name)
    images = recipe.train.batch_size * recipe.train.accumulate
    blocks = sum((depth - 1) * flops_of_block(like(name, key), key) for key, depth in stacks(recipe).items())
    flops = shallow_forecast(name).run_flops + blocks * images * recipe.train.steps
    batch = "8 x 256" if images == 2048 and name in (*TOKENIZERS, *GENERATORS) else f"{images:,}"
    stated = re.match(r"([\d,]+) EFLOP for ([\d,]+) steps of ([\d,x ]+) (?:images|sequences) \(", recipe.card.cost)
    assert stated and stated.groups() == (f"{flops / 1e18:,.0f}", f"{recipe.train.steps:,}", batch)


def test_the_cost_by_blocks_is_that_of_the_whole() -> None:
    name = "imagenet256/smap_s_kl_128"
    blocks = sum((depth - 1) * flops_of_block(name, key) for key, depth in stacks(load_recipe(name)).items())
    assert shallow_forecast(name).run_flops + blocks * 256 * 500_000 == forecast(load_recipe(name)).run_flops


# Published layouts, written down from the key tables of the released files: name -> shape.


def linear(name: str, out: int, into: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def published_encoder(tokens: int, width: int, depth: int, patch: int, side: int) -> dict[str, tuple[int, ...]]:
    length = 1 + (side // patch) ** 2 + tokens
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.cls_token": (1, 1, width),
        "encoder.slot_embed": (1, tokens, width),
        "encoder.pos_embed": (1, length, width),
        "encoder.patch_embed.proj.weight": (width, 3, patch, patch),
        "encoder.patch_embed.proj.bias": (width,),
    }
    norms = ["encoder.norm"]
    for i in range(depth):
        block = f"encoder.blocks.{i}."
        norms += [f"{block}norm1", f"{block}norm2"]
        shapes |= linear(f"{block}attn.qkv", 3 * width, width) | linear(f"{block}attn.proj", width, width)
        shapes |= linear(f"{block}mlp.fc1", 4 * width, width) | linear(f"{block}mlp.fc2", width, 4 * width)
    return shapes | {f"{norm}.{kind}": (width,) for norm, kind in product(norms, ("weight", "bias"))}


def published_decoder(
    tokens: int, dim: int, width: int, depth: int, *, projector: bool, latent: int = 16, patch: int = 2
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "dit.null_cond": (1, tokens, dim),
        "dit.x_embedder.proj.weight": (width, latent, patch, patch),
        "dit.x_embedder.proj.bias": (width,),
        **linear("dit.t_embedder.mlp.0", width, 256),
        **linear("dit.t_embedder.mlp.2", width, width),
        **linear("dit.autoenc_cond_embedder", width, dim),
        **linear("dit.final_layer.adaLN_modulation.1", 2 * width, width),
        **linear("dit.final_layer.linear", 2 * latent * patch**2, width),
    }
    for i in range(depth):
        block = f"dit.blocks.{i}."
        shapes |= linear(f"{block}attn.qkv", 3 * width, width) | linear(f"{block}attn.proj", width, width)
        shapes |= linear(f"{block}mlp.fc1", 4 * width, width) | linear(f"{block}mlp.fc2", width, 4 * width)
        shapes |= linear(f"{block}adaLN_modulation.1", 6 * width, width)
    if projector:
        shapes |= linear("dit.projector.0", 2048, width) | linear("dit.projector.2", 2048, 2048)
        shapes |= linear("dit.projector.4", 768, 2048)
    return shapes


def published_generator(width: int, depth: int, tokens: int = 32, dim: int = 16) -> dict[str, tuple[int, ...]]:
    hidden, head = swiglu_hidden(width), 1536
    shapes: dict[str, tuple[int, ...]] = {
        "cls_embedding.embedding_table.weight": (1001, width),
        **linear("z_proj", width, dim),
        "z_proj_ln.weight": (width,),
        "norm.weight": (width,),
        "pos_embed_learned": (1, tokens + 1, width),
        "diffusion_pos_embed_learned": (1, tokens, width),
    }
    for i in range(depth):
        layer = f"layers.{i}."
        shapes |= linear(f"{layer}attention.wqkv", 3 * width, width, bias=False)
        shapes |= linear(f"{layer}attention.wo", width, width, bias=False)
        shapes |= linear(f"{layer}feed_forward.w1", hidden, width, bias=False)
        shapes |= linear(f"{layer}feed_forward.w3", hidden, width, bias=False)
        shapes |= linear(f"{layer}feed_forward.w2", width, hidden, bias=False)
        shapes |= {f"{layer}attention_norm.weight": (width,), f"{layer}ffn_norm.weight": (width,)}
    net = "diffloss.net."
    shapes |= linear(f"{net}time_embed.mlp.0", head, 256) | linear(f"{net}time_embed.mlp.2", head, head)
    shapes |= linear(f"{net}cond_embed", head, width) | linear(f"{net}input_proj", head, dim)
    for j in range(12):
        block = f"{net}res_blocks.{j}."
        shapes |= {f"{block}in_ln.weight": (head,), f"{block}in_ln.bias": (head,)}
        shapes |= linear(f"{block}adaLN_modulation.1", 3 * head, head)
        shapes |= linear(f"{block}mlp.0", head, 2 * head) | linear(f"{block}mlp.2", head, head)
    shapes |= linear(f"{net}final_layer.adaLN_modulation.1", 2 * head, head)
    return shapes | linear(f"{net}final_layer.linear", dim, 2 * head)


def check_round_trip(model: nn.Module, published: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Published -> ours -> published changes no name, and ours is the model's state; returns ours."""
    state = {name: torch.empty(shape, device="meta") for name, shape in published.items()}
    elsewhere = ("vae.encoder.conv_in.weight", "repa_encoder.norm.weight", "nested_sampler.arange")
    ours = from_published({**state, **{name: torch.empty(1, device="meta") for name in elsewhere}})
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    back = to_published(ours)
    assert back.keys() == state.keys() and all(back[name] is state[name] for name in state)
    return ours


@pytest.mark.parametrize("size", EncoderConfig.SIZES)
def test_published_encoders_of_every_size(size: str) -> None:
    side, patch = (224, 14) if size == "huge" else (256, 16)
    sizes = EncoderConfig.SIZES[size]
    overrides = (f"model.encoder.size={size}", f"model.encoder.patch={patch}")
    image = (f"data.image_size={side}", f"model.image_size={side}", "model.decoder.depth=8")
    model = built(L, *overrides, *image)
    published = published_encoder(256, sizes["dim"], sizes["depth"], patch, side) | linear(
        "encoder2slot", 16, sizes["dim"]
    )
    ours = check_round_trip(model, published | published_decoder(256, 16, 1024, 8, projector=True))
    config, image_sizes = encoder_config(ours, prefix="encoder.")
    assert (config.dim, config.depth, config.heads, config.patch) == (*sizes.values(), patch)
    assert image_sizes == {"image_size": side, "channels": 3, "num_tokens": 256}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("projector", [True, False])
@pytest.mark.parametrize("size", DecoderConfig.SIZES)
def test_published_tokenizers_of_every_size(size: str, projector: bool, shape: str) -> None:
    tokens, dim = map(int, shape.split("x"))
    sizes = DecoderConfig.SIZES[size]
    name = L if shape == "256x16" else f"{L}_{shape}"
    model = built(name, "model.encoder.depth=1", f"model.decoder.size={size}", *(() if projector else NO_REPA))
    published = published_encoder(tokens, 768, 1, 16, 256) | linear("encoder2slot", dim, 768)
    decoder = published_decoder(tokens, dim, sizes["dim"], sizes["depth"], projector=projector)
    ours = check_round_trip(model, published | decoder)
    config, _ = decoder_config(ours, prefix="decoder.")
    assert config == model.config.decoder


@pytest.mark.parametrize("size", EpsilonLlamaGenConfig.SIZES)
def test_published_generators_of_every_size(size: str) -> None:
    sizes = EpsilonLlamaGenConfig.SIZES[size]
    model = built(AR, f"model.size={size}")
    ours = check_round_trip(model, published_generator(sizes["dim"], sizes["depth"]))
    found = ar_config(ours)
    assert (found.dim, found.depth, found.heads, found.num_classes) == (*sizes.values(), 1000)
