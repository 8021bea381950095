"""The tiny trainings and the commands of the record of identity, as data in the keys of commit 5fc28ea.

A restructuring leaves this file as it is; `names.py` translates. In texts, @FASHION, @FOLDER and @TEXT are the folders
of images and of a text encoder that `runs.py` makes, @OUT is a folder of the command's own.
"""

from typing import Any

from cases import AXIAL, HEAD, KL, REVIVED, SCALED, VIT, VQ

Recipe = dict[str, Any]

FASHION_28 = {"name": "fashion_mnist", "root": "@FASHION"}
FASHION_32 = {**FASHION_28, "image_size": 32, "pad": 2}
FOLDER = {"name": "folder", "root": "@FOLDER", "image_size": 32, "channels": 3, "crop": "random_scale", "flip": True}
TRAIN: Recipe = {"batch_size": 8, "lr": 0.002, "schedule": "constant", "ema": 0.9, "log_every": 1}
PAINTED = {"num_images": 16, "batch_size": 8, "steps": 3}
DRAWN = {"num_samples": 20, "batch_size": 10, "steps": 3}
GREY = {"image_size": 32, "channels": 1, "num_tokens": 4, "token_dim": 4}
PATCH = {"name": "patch", "width": 4, "layers": 1}
BLUR = {"name": "blur_patch", "width": 32, "stages": 1}
SMALL = {"patch": 7, "dim": 16, "depth": 2, "heads": 2}


def tokenizer(model: Recipe, data: Recipe, train: Recipe | None = None, **more: Any) -> Recipe:
    """A tokenizer's recipe."""
    base = {"kind": "tokenizer", "seed": 3, "data": data, "model": model, "evaluate": PAINTED}
    return {**base, "train": {**TRAIN, **(train or {})}, **more}


def generator(model: Recipe, source: str, data: Recipe, train: Recipe | None = None, **more: Any) -> Recipe:
    """A generator's recipe; `source` is its tokenizer."""
    base = {"kind": "generator", "seed": 4, "data": data, "model": model, "tokenizer": source, "evaluate": DRAWN}
    return {**base, "train": {**TRAIN, **(train or {})}, **more}


SEMANTICIST = {
    **{"name": "semanticist", **GREY, "image_size": 28, "objective": "flow", "steps": 3},
    **{"encoder": SMALL, "decoder": SMALL, "nested": {"after": 0.4, "drop_after": 0.2}},
}
ALIGNED = {
    **{**SEMANTICIST, "objective": "ddpm"},
    "decoder": {**SMALL, "align_depth": 1, "align_hidden": 8, "align_dim": 64},
    "alignment": {"teacher": "fashion-mnist-cnn", "image_size": 28},
}
MAETOK = {
    **{"name": "maetok", **GREY, "channels": 3, "encoder": SCALED, "decoder": {**SCALED, "absolute": False}},
    "auxiliary": [{"target": "hog", "cell": 4, "depth": 1}, {"target": "pixels", "depth": 0}],
}
SMAP = {"name": "smap", **GREY, "num_classes": 10, "bottleneck": KL, "encoder": VIT, "decoder": AXIAL}
TITOK = {"name": "titok", **GREY, "bottleneck": VQ, "encoder": VIT, "decoder": VIT}
SEQUENCE = {"num_tokens": 16, "token_dim": 16, "num_classes": 10, "dim": 16, "depth": 3, "heads": 2, "steps": 3}
CAUSAL = {"num_classes": 10, "token_dim": 16, "dim": 16, "depth": 2, "heads": 2}
FLOW_HEAD = {**HEAD, "sampler": "euler"}
IDS = {"num_tokens": 4, "vocab_size": 16, "num_classes": 10, "dim": 16, "depth": 3, "heads": 2}
STRICT = {"weight_decay": 0.05, "decay": "tables_too", "accumulate": 2, "clip": 0.1}
ANNEALED = {"schedule": "cosine", "warmup": 1, "lr_min": 0.001, "warmup_init": 0.0005}
TEXT = {"kind": "text", "encoder": "@TEXT", "dim": 16, "length": 12}

# Name -> (names of runs whose models are read, the recipe); "@NAME" stands for the model of such a run.
RUNS: dict[str, tuple[tuple[str, ...], Recipe]] = {
    "semanticist_flow": ((), tokenizer(SEMANTICIST, FASHION_28, {"proxies_every": 2, "evaluate_every": 1})),
    "semanticist_aligned": ((), tokenizer(ALIGNED, FASHION_28, ANNEALED)),
    "maetok": (
        (),
        tokenizer(MAETOK, FOLDER, STRICT, adversarial={"weight": 0.4, "start": 1, "discriminator": PATCH}),
    ),
    "maetok_finetune": (
        ("maetok",),
        tokenizer(
            {**MAETOK, "auxiliary": [], "stage": "finetune"},
            *({**FOLDER, "crop": "random"}, ANNEALED),
            adversarial={"weight": 0.4, "start": 1, "adaptive": False, "discriminator": PATCH},
            init_from="@maetok",
        ),
    ),
    "smap_kl": (
        (),
        tokenizer(
            *(SMAP, {**FASHION_32, "image_sizes": [32, 40], "flip": True}),
            adversarial={
                **{"weight": 0.5, "start": 1, "warmup": 2, "loss": "non_saturating", "lecam_of": "means"},
                **{"diff_aug": True, "consistency": 1.0, "discriminator": BLUR},
            },
        ),
    ),
    "smap_vq": ((), tokenizer({**SMAP, "bottleneck": REVIVED}, FASHION_32, {"ema": 0})),
    "smap_init_from": (("smap_vq",), tokenizer({**SMAP, "bottleneck": REVIVED}, FASHION_32, init_from="@smap_vq")),
    "smap_text": (
        (),
        tokenizer({**SMAP, "condition": TEXT}, {**FASHION_32, "captions": "labels"}),
    ),
    "titok_vq": ((), tokenizer(TITOK, FASHION_32)),
    "titok_kl": ((), tokenizer({**TITOK, "bottleneck": KL}, FASHION_32, STRICT)),
    "epsilon_llamagen": (
        (),
        generator(
            {"name": "epsilon_llamagen", "num_tokens": 6, **CAUSAL, "head": FLOW_HEAD},
            *("fashion-mnist-semanticist", FASHION_28),
            **{"num_tokens": 6, "cache_views": "center+flip"},
        ),
    ),
    "card": (
        (),
        generator(
            {"name": "card", "num_tokens": 16, **CAUSAL, "class_dim": 96, "head": {**FLOW_HEAD, "condition": "adaln"}},
            *("fashion-mnist-smap", FASHION_28, ANNEALED),
            cache_dtype="bfloat16",
        ),
    ),
    "sit": ((), generator({"name": "sit", **SEQUENCE}, "fashion-mnist-maetok", FASHION_28)),
    "sit_sampled": (
        (),
        generator({"name": "sit", **SEQUENCE}, "fashion-mnist-smap", FASHION_28, STRICT, sample_latents=True),
    ),
    "dit": (
        (),
        generator(
            *({"name": "dit", **SEQUENCE}, "fashion-mnist-maetok", FASHION_28),
            **{"cache_views": "tencrop", "cache_dtype": "float16", "draws": "released"},
        ),
    ),
    "lightningdit": (
        (),
        generator(
            *({"name": "lightningdit", **SEQUENCE}, "fashion-mnist-maetok", FASHION_28), **{"cache_views": "random"}
        ),
    ),
    "usit": (
        (),
        generator({"name": "usit", **SEQUENCE, "statistics": "none"}, "fashion-mnist-maetok", FASHION_28, cache="none"),
    ),
    "llamagen": (("smap_vq",), generator({"name": "llamagen", **IDS}, "@smap_vq", FASHION_32)),
    "maskgit": (("titok_vq",), generator({"name": "maskgit", **IDS}, "@titok_vq", FASHION_32)),
    "cnn": (
        (),
        {
            **{"kind": "classifier", "data": {**FASHION_28, "crop": "random"}, "model": {"name": "cnn", "width": 8}},
            "train": {**TRAIN, "weight_decay": 0.05},
        },
    ),
}

SEM, MAE, KLS = "fashion-mnist-semanticist", "fashion-mnist-maetok", "fashion-mnist-smap"
EPS, CARD, SIT = "fashion-mnist-epsilon-llamagen", "fashion-mnist-card", "fashion-mnist-sit"
DATA = ("--data-root", "@FASHION", "--device", "cpu")
HERE = ("--device", "cpu")
PAINT = ("evaluate", "reconstruction")
DRAW = ("evaluate", "generation")
MEASURED = ("fashion_mnist", *DATA, "--out", "@OUT/records.json", "--quiet", "--batch-size", "10")
SMALL_DRAW = (*MEASURED, "--num-samples", "20")
FEATURES = ("--metrics", "labels,fd,sfd,kid,score,precision,recall,density,coverage")

# Name -> the command line; @OUT holds what it writes, which is recorded.
COMMANDS: dict[str, tuple[str, ...]] = {
    "reconstruction/semanticist": (
        *(*PAINT, SEM, *MEASURED, "--num", "50", "--keep", "1,4,8", "--guidance", "1.5", "--steps", "3"),
    ),
    "reconstruction/semanticist_heun": (
        *(*PAINT, SEM, *MEASURED, "--num", "20", "--keep", "0,8", "--solver", "heun", "--steps", "2"),
        *("--guidance", "2", "--guidance-interval", "0.2,0.8", "--eight-bit", "--metrics", "psnr,mse,ssim,labels,fd"),
    ),
    "reconstruction/maetok": (*PAINT, MAE, *MEASURED, "--num", "50"),
    "reconstruction/smap": (*PAINT, KLS, *MEASURED, "--num", "50", "--keep", "0,4,16"),
    "reconstruction/smap_null": (*PAINT, KLS, *MEASURED, "--num", "20", "--keep", "4", "--label", "null"),
    "reconstruction/folder": (
        *(*PAINT, SEM, "@FOLDER", *HERE, "--out", "@OUT/records.json", "--quiet", "--batch-size", "10"),
        *("--keep", "2,8", "--steps", "3"),
    ),
    "generation/epsilon": (
        *(*DRAW, EPS, *SMALL_DRAW, *FEATURES, "--steps", "4", "--guidance", "2", "--sampler", "heun"),
    ),
    "generation/epsilon_keep": (
        *(*DRAW, EPS, *SMALL_DRAW, "--steps", "4", "--keep", "1,4", "--guidance", "1", "--sampler", "sde"),
        *("--temperature", "0.8", "--classes", "random", "--decoder-guidance", "1.5", "--decoder-steps", "2"),
    ),
    "generation/card": (*DRAW, CARD, *SMALL_DRAW, "--steps", "4", "--guidance", "1.5", "--split", "test"),
    "generation/sit": (
        *(*DRAW, SIT, *SMALL_DRAW, "--steps", "6", "--guidance", "2", "--guidance-interval", "0.25,1"),
        *("--sampler", "heun", "--classes", "train"),
    ),
    "generation/sit_weak": (*DRAW, SIT, *SMALL_DRAW, "--steps", "4", "--guidance", "1.5", "--weak-model", SIT),
    "generation/sit_unconditional": (*DRAW, SIT, *SMALL_DRAW, "--steps", "5", "--unconditional"),
    "grid/sit": (
        *("evaluate", "grid", SIT, "fashion_mnist", *DATA, "--out", "@OUT", "--quiet", "--batch-size", "10"),
        *("--num-samples", "20", "--guidance", "1,2", "--steps", "4"),
    ),
    "reconstruct/semanticist": (
        *("reconstruct", SEM, "fashion_mnist", *DATA, "--out", "@OUT", "--num", "3", "--keep", "0,2,8"),
        *("--steps", "3", "--guidance", "1.5", "--solver", "heun"),
    ),
    "reconstruct/maetok": ("reconstruct", MAE, "@FOLDER", *HERE, "--out", "@OUT", "--num", "3", "--size", "42"),
    "reconstruct/smap": ("reconstruct", KLS, "fashion_mnist", *DATA, "--out", "@OUT", "--num", "3", "--label", "null"),
    "generate/epsilon": (
        *("generate", EPS, *HERE, "--out", "@OUT", "--classes", "1,7", "--num", "2", "--decode-keep", "1,4"),
        *("--steps", "4", "--guidance-schedule", "linear", "--decoder-solver", "heun", "--decoder-steps", "2"),
    ),
    "generate/card": ("generate", CARD, *HERE, "--out", "@OUT", "--num", "1", "--steps", "4", "--keep", "8"),
    "generate/sit": (
        *("generate", SIT, *HERE, "--out", "@OUT", "--num", "1", "--steps", "5", "--guidance-interval", "0.2,0.9"),
    ),
    "generate/sit_unconditional": (
        *("generate", SIT, *HERE, "--out", "@OUT", "--num", "2", "--steps", "5", "--unconditional"),
    ),
    "encode/semanticist": (
        *("encode", SEM, "fashion_mnist", *DATA, "--out", "@OUT", "--views", "center+flip", "--num-tokens", "5"),
        *("--split", "test"),
    ),
    "encode/moments": ("encode", KLS, "fashion_mnist", *DATA, "--out", "@OUT", "--moments"),
    "encode/folder": (
        *("encode", MAE, "@FOLDER", *HERE, "--out", "@OUT", "--views", "tencrop", "--dtype", "bfloat16"),
    ),
    "prefix": ("analyze", "prefix", SEM, "fashion_mnist", *DATA, "--out", "@OUT", "--num", "8"),
    "increments": ("analyze", "increments", SEM, "fashion_mnist", *DATA, "--out", "@OUT", "--num", "8"),
    "swap": ("analyze", "swap", KLS, "fashion_mnist", *DATA, "--out", "@OUT", "--num", "12"),
    "mixture": (
        *("analyze", "mixture", SEM, "fashion_mnist", *DATA, "--out", "@OUT", "--num", "40", "--components", "1,2"),
        *("--dims", "4", "--covariance", "full"),
    ),
    "reference": ("reference", "fashion_mnist", *DATA, "--out", "@OUT/reference.npz", "--network", "fashion-mnist-cnn"),
}
