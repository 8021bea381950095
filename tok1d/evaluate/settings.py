"""The settings that a metric's value depends on, and the order of their usual effect."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """A setting that two numbers may differ in.

    Args:
        title: its name in tables.
        reason: why a difference in it changes the number; figures in it are published, with their source.
        decides: numbers that differ in it measure different things and cannot be compared.
    """

    title: str
    reason: str
    decides: bool = False


# In the order in which a difference usually matters. The order follows public threads in which a number did not
# reproduce: reference and crop, number of images, sampler and guidance, latent normalisation, EMA, effective batch.
SETTINGS: dict[str, Setting] = {
    "metric": Setting(
        "metric",
        "two metrics are two quantities: rFID is against validation images, gFID against training statistics",
        True,
    ),
    "data": Setting("data set", "different images are a different task", True),
    "network": Setting("feature network", "distances in the features of two networks have different units", True),
    "network_hash": Setting("network's weights", "the same graph with other weights is another feature network", True),
    "reference": Setting(
        "reference set",
        "another reference is another distance: MAR's tokenizer has 1.22 against training images (paper), 0.53 "
        "against validation images (LTH14/mar issue 3)",
        True,
    ),
    "crop": Setting(
        "crop and resize",
        "reconstructions against images that were cropped otherwise: 2.2 instead of 1.5 (showlab/D-AR issue 3)",
        True,
    ),
    "num_images": Setting(
        "number of images", "a Fréchet distance from fewer images is biased upwards; 50,000 are the rule"
    ),
    "keep": Setting("tokens kept", "fewer tokens carry less of the image"),
    "label": Setting(
        "label given to the tokenizer", "a tokenizer conditioned on the true class has more information than its tokens"
    ),
    "sampler": Setting("sampler", "SiT-XL without guidance: 8.3 by the SDE, 9.5 by the ODE (willisma/SiT issue 31)"),
    "steps": Setting("sampling steps", "few steps leave a discretisation error that training does not remove"),
    "guidance": Setting(
        "guidance scale",
        "MAETok's SiT-XL: gFID 2.31 without, 1.67 with guidance (paper); the best scale differs by model",
    ),
    "guidance_schedule": Setting(
        "guidance schedule", "the same scale, constant instead of growing, guides twice as much on average"
    ),
    "guidance_interval": Setting("guidance interval", "guidance at high noise costs diversity (arXiv 2404.07724)"),
    "temperature": Setting("temperature", "it trades diversity against fidelity as guidance does"),
    "decoder_sampler": Setting("decoder's sampler", "a diffusion decoder adds its own error to every image"),
    "decoder_steps": Setting("decoder's steps", "a diffusion decoder with few steps blurs"),
    "decoder_guidance": Setting("decoder's guidance", "it sharpens reconstructions and moves rFID"),
    "token_normalisation": Setting(
        "token normalisation",
        "statistics applied on one side only ruin samples: FID 130 (hustvl/LightningDiT issue 34)",
    ),
    "weights": Setting(
        "averaged (EMA) or raw weights", "raw weights, or a young average, sample worse (LTH14/mar issue 36)"
    ),
    "ema_decay": Setting(
        "EMA decay", "0.9999 needs about 100,000 steps to forget the initial weights (LTH14/mar issue 36)"
    ),
    "train_batch": Setting("effective batch of the training", "learning rate and number of epochs depend on it"),
    "train_steps": Setting("length of the training", "longer training changes the model, not the evaluation"),
    "classes": Setting("classes of the samples", "random classes are not equally frequent"),
    "note": Setting("note", "see its text"),
    "implementation": Setting(
        "implementation",
        "ports of the ADM suite disagree on sFID and Inception Score (openai/guided-diffusion issue 159)",
    ),
    "rounding": Setting("8-bit rounding", "truncation instead of rounding darkens by half a grey level"),
    "precision": Setting("precision", "images decoded in bf16 have steps of 1/256 near white"),
    "batch_size": Setting("images at a time", "noise generated for a whole batch gives different samples"),
    "seed": Setting("seed", "different samples: differences below the spread between seeds mean nothing"),
    "tokenizer": Setting("tokenizer", "its decoder makes the measured images and bounds their quality"),
    "weights_hash": Setting("model", "different weights: usually the purpose of the comparison"),
}
VERSION = "version of "  # and the name of a library


def setting(key: str) -> Setting:
    """The description of a setting; of settings that are not described here, its name."""
    if key.startswith(VERSION):
        return Setting(key, "versions of a library differ in rounding and random numbers")
    return SETTINGS.get(key, Setting(key.replace("_", " "), "a setting of the record"))


def rank(key: str) -> int:
    """Position in the order of usual effect, from 0."""
    order = list(SETTINGS)
    if key in SETTINGS:
        return order.index(key)
    return len(order) if key.startswith(VERSION) else order.index("implementation")
