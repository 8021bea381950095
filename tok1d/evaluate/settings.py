"""The settings that the value of a metric depends on, in the order of their usual effect."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """A setting in which two numbers can differ.

    Args:
        title: its name in tables.
        reason: why a difference changes the number; figures are published ones, with their source.
        decides: numbers that differ in this setting measure different quantities and cannot be compared.
        of_pairs: the reason for metrics of an image and its original (PSNR), where it is another one.
    """

    title: str
    reason: str
    decides: bool = False
    of_pairs: str = ""


# Sorted by the usual effect of a difference, the largest first. The order follows public issues about numbers that
# could not be reproduced: reference and crop, number of images, sampler and guidance, normalisation, EMA, batch size.
SETTINGS: dict[str, Setting] = {
    "metric": Setting(
        "metric",
        "two metrics are two quantities: rFID compares with validation images, gFID with training statistics",
        True,
    ),
    "data": Setting("data set", "numbers for different images are results of different tasks", True),
    "network": Setting("feature network", "distances of features have a different scale for each network", True),
    "network_hash": Setting(
        "network's weights", "the same architecture with other weights is another feature network", True
    ),
    "reference": Setting(
        "reference set",
        "the distance depends on the reference: MAR's tokenizer has 1.22 against training images (paper) and 0.53 "
        "against validation images (LTH14/mar issue 3)",
        True,
        "the mean is over other images",
    ),
    "crop": Setting(
        "crop and resize",
        "a comparison with images that were cropped in another way gave 2.2 instead of 1.5 (showlab/D-AR issue 3)",
        True,
        "other crops have other pixels: plain borders are easy, enlarged images are smooth",
    ),
    "num_images": Setting(
        "number of images",
        "a Fréchet distance of fewer images is biased upwards; 50,000 images are usual",
        of_pairs="the mean of fewer images has a larger statistical error, but no bias",
    ),
    "keep": Setting("tokens kept", "fewer tokens hold less information about the image"),
    "label": Setting(
        "condition of the tokenizer",
        "with the true class as condition, the decoder has more information than the tokens",
    ),
    "sampler": Setting(
        "sampler", "SiT-XL without guidance: 8.3 with the SDE sampler, 9.5 with the ODE sampler (willisma/SiT issue 31)"
    ),
    "steps": Setting("sampling steps", "few steps cause a discretisation error that training does not remove"),
    "guidance": Setting(
        "guidance scale",
        "MAETok's SiT-XL: gFID 2.31 without and 1.67 with guidance (paper); the best scale depends on the model",
    ),
    "guidance_schedule": Setting(
        "guidance schedule",
        "at the same scale, a constant schedule guides about twice as much as one that grows linearly",
    ),
    "guidance_interval": Setting(
        "guidance interval", "guidance at high noise levels reduces diversity (arXiv 2404.07724)"
    ),
    "temperature": Setting("temperature", "like guidance, a lower temperature raises fidelity and reduces diversity"),
    "decoder_sampler": Setting(
        "decoder's sampler", "the sampler of a diffusion decoder adds its own error to every image"
    ),
    "decoder_steps": Setting("decoder's steps", "with few steps, a diffusion decoder gives blurred images"),
    "decoder_guidance": Setting(
        "decoder's guidance",
        "guidance of the decoder sharpens reconstructions and changes rFID",
        of_pairs="guidance moves reconstructions away from the mean of the possible images, which has the lowest error",
    ),
    "token_normalisation": Setting(
        "token normalisation",
        "statistics that only training or only sampling applies give unusable samples: FID 130 (hustvl/LightningDiT "
        "issue 34)",
    ),
    "weights": Setting(
        "averaged (EMA) or raw weights",
        "raw weights, or averages over few steps, give worse samples (LTH14/mar issue 36)",
        of_pairs="averaged weights usually have a lower error than raw ones",
    ),
    "ema_decay": Setting(
        "EMA decay",
        "with a decay of 0.9999 the initial weights affect the average for about 100,000 steps (LTH14/mar issue 36)",
        of_pairs="a high decay averages over more steps, in short trainings over steps with higher errors",
    ),
    "train_batch": Setting("effective batch size", "learning rate and number of epochs depend on it"),
    "train_steps": Setting("length of the training", "longer training changes the model, not the evaluation"),
    "classes": Setting("classes of the samples", "random classes are not equally frequent"),
    "note": Setting("note", "see the text of the note"),
    "implementation": Setting(
        "implementation",
        "ports of the ADM suite disagree on sFID and Inception Score (openai/guided-diffusion issue 159)",
    ),
    "rounding": Setting("8-bit rounding", "truncation instead of rounding darkens images by half a grey level"),
    "precision": Setting("precision", "images decoded in bf16 have steps of 1/256 near white"),
    "batch_size": Setting("batch size", "noise that is generated for a whole batch depends on the batch size"),
    "seed": Setting("seed", "other random numbers: a difference below the spread over seeds is not significant"),
    "tokenizer": Setting("tokenizer", "its decoder produces the measured images and limits their quality"),
    "weights_hash": Setting("model", "other weights: usually the purpose of the comparison"),
}
VERSION = "version of "  # prefix of the settings that are versions of libraries


def setting(key: str) -> Setting:
    """The description of a setting; one that is not listed here is described by its name."""
    if key.startswith(VERSION):
        return Setting(key, "versions of a library can differ in rounding and random numbers")
    if is_of_training(key):
        return Setting(key, _REASONS.get(key, "a setting of the training: the two models differ"))
    return SETTINGS.get(key, Setting(key.replace("_", " "), "a setting of the record"))


# Reasons for settings of a training, by their key in recipes.
_REASONS = {
    "train.lr": "a higher learning rate trains faster, until the training becomes unstable",
    "model.mask.low": "masked patches make the reconstruction harder in training and the tokens easier to generate",
    "model.mask.high": "masked patches make the reconstruction harder in training and the tokens easier to generate",
    "model.auxiliary": "further targets such as HOG use a part of the tokens' capacity",
    "model.num_tokens": "more tokens hold more information about the image",
    "model.token_dim": "more numbers per token hold more information about the image",
    "init_from": "a model that starts from trained weights has had their training, too",
}


def is_of_training(key: str) -> bool:
    """Whether a setting is a dotted key of a recipe, or one of its keys outside of sections."""
    return ("." in key and not key.startswith(VERSION)) or key in ("init_from", "num_tokens", "row_order", "kind")


def rank(key: str) -> int:
    """Position of a setting in the order of usual effect, from 0."""
    order = list(SETTINGS)
    if is_of_training(key):
        return order.index("weights")
    if key in SETTINGS:
        return order.index(key)
    return len(order) if key.startswith(VERSION) else order.index("implementation")
