"""The tiny models of the record of identity and what is asked of them, as data in the keys of commit 5fc28ea.

A restructuring leaves this file as it is; `names.py` translates.
"""

from typing import Any

Mapping = dict[str, Any]

VIT = {"patch": 8, "dim": 16, "depth": 2, "heads": 2}
SCALED = {**VIT, "layer_scale": 1.0, "drop_path": 0.1}
ROTARY = {**SCALED, "absolute": False, "rotary": "mixed"}
AXIAL = {**VIT, "layer_scale": 0.0, "rotary": "axial", "registers": 2, "class_token": False}
IMAGES = {"image_size": 32, "channels": 1, "num_tokens": 4, "token_dim": 4}
TEXT = {"kind": "text", "encoder": "nobody/asks", "dim": 5, "length": 6}
KL, PLAIN = {"name": "kl", "weight": 0.01}, {"name": "plain"}
VQ = {"name": "vq", "size": 16, "l2": True, "entropy": 0.1}
REVIVED = {"name": "vq", "size": 16, "l2": False, "revival": True}
SOFTVQ = {"name": "softvq", "size": 8, "num_codebooks": 2}
FLOW_OPTIONS: list[Mapping] = [
    {"steps": 3},
    {"steps": 3, "keep": 0},
    {"steps": 3, "keep": 2, "guidance": 2.0},
    {"steps": 2, "keep": 1, "solver": "heun", "rows": True},
    {"steps": 3, "solver": "euler", "guidance": 1.5, "interval": (0.2, 0.7)},
]
DDPM_OPTIONS: list[Mapping] = [
    {"steps": 3, "keep": 0},
    {"steps": 4, "keep": 2, "guidance": 2.0},
    {"steps": 3, "solver": "ddim", "guidance": 1.5, "interval": (0.2, 0.7), "rows": True},
]
WHOLE: list[Mapping] = [{}, {"size": 40}]
ORDERED: list[Mapping] = [{}, {"keep": 0}, {"keep": 1}, {"keep": 3}, {"size": 40, "keep": 2}]


def semanticist(objective: str, **changes: Any) -> Mapping:
    """A Semanticist of 28 px."""
    small = {"patch": 7, "dim": 16, "depth": 2, "heads": 2}
    nested = {"after": 0.4, "drop_before": 0.3, "drop_after": 0.2}
    whole = {**IMAGES, "name": "semanticist", "image_size": 28, "encoder": small, "decoder": small, "nested": nested}
    return {**whole, "objective": objective, "steps": 3, **changes}


def maetok(bottleneck: Mapping, **changes: Any) -> Mapping:
    """A MAETok, or kin."""
    return {"name": "maetok", **IMAGES, "bottleneck": bottleneck, "encoder": SCALED, "decoder": ROTARY, **changes}


def smap(bottleneck: Mapping, **changes: Any) -> Mapping:
    """A SMAP."""
    return {
        **{"name": "smap", **IMAGES, "num_classes": 10, "label_dropout": 0.2, "bottleneck": bottleneck},
        **{"encoder": VIT, "decoder": AXIAL, **changes},
    }


def titok(bottleneck: Mapping, **changes: Any) -> Mapping:
    """A TiTok."""
    return {"name": "titok", **IMAGES, "bottleneck": bottleneck, "encoder": VIT, "decoder": VIT, **changes}


LEGACY: Mapping = {
    **{"name": "titok_legacy", **IMAGES, "bottleneck": VQ, "encoder": VIT, "decoder": VIT, "codes": 11},
    "pixels": {"code_dim": 6, "width": 32, "mult": [1, 1, 2, 2], "blocks": 1},
}
AUXILIARY = [
    {"target": "hog", "cell": 4, "depth": 1},
    {"target": "pixels", "depth": 0, "weight": 0.5},
    {"target": "text", "dim": 12, "depth": 1},
    {"target": "teacher:fashion-mnist-cnn", "dim": 64, "depth": 1, "image_size": 28},
]
TEACHER = {"teacher": "fashion-mnist-cnn", "image_size": 28}
ALIGNED = {"patch": 7, "dim": 16, "depth": 2, "heads": 2, "align_depth": 1, "align_hidden": 8, "align_dim": 64}

# Name -> the model, its condition ("", class, text), what decoding is asked for, and the batch's third entry.
TOKENIZERS: dict[str, tuple[Mapping, str, list[Mapping], str]] = {
    "semanticist_flow": (semanticist("flow"), "", FLOW_OPTIONS, ""),
    "semanticist_cosine": (
        semanticist("flow", flow={"path": "cosine", "prediction": "noise", "shift": 2.0}, normalise=False),
        *("", FLOW_OPTIONS, ""),
    ),
    "semanticist_ddpm": (semanticist("ddpm"), "", DDPM_OPTIONS, ""),
    "semanticist_aligned": (semanticist("ddpm", decoder=ALIGNED, alignment=TEACHER), "", DDPM_OPTIONS[:1], ""),
    "semanticist_unnested": (semanticist("flow", nested={"enabled": False}), "", FLOW_OPTIONS[:1], ""),
    "maetok_plain": (maetok(PLAIN, auxiliary=AUXILIARY), "", WHOLE, "words"),
    "maetok_all": (
        maetok(PLAIN, auxiliary=AUXILIARY[:2], aux_loss_on="all", head="conv", reconstruction="l1"),
        *("", WHOLE, ""),
    ),
    "maetok_aligned": (maetok(PLAIN, alignment={**TEACHER, "dim": 64, "hidden": 8}), "", WHOLE, ""),
    "maetok_image_tokens": (maetok(PLAIN, num_tokens=0, mask={"distribution": "truncnorm"}), "", WHOLE[:1], ""),
    "maetok_kl": (maetok(KL), "", WHOLE, ""),
    "maetok_vq": (maetok(VQ, mask={"low": 0.0, "high": 0.0}), "", WHOLE, ""),
    "maetok_softvq": (maetok(SOFTVQ), "", WHOLE, ""),
    "maetok_finetune": (maetok(PLAIN, stage="finetune"), "", WHOLE, ""),
    "smap_kl": (smap(KL), "class", ORDERED, ""),
    "smap_vq": (smap(REVIVED, tail_drop={"keep_per": "sample", "zero_prob": 0.1}), "class", ORDERED, ""),
    "smap_softvq": (smap(SOFTVQ), "class", ORDERED, ""),
    "smap_unconditional": (smap(KL, use_condition=False, label_dropout=0.0), "", ORDERED, ""),
    "smap_text": (smap(KL, condition=TEXT), "text", ORDERED, ""),
    "titok_kl": (titok(KL), "", WHOLE, ""),
    "titok_vq": (titok({**VQ, "l2": False}), "", WHOLE, ""),
    "titok_text": (titok(KL, text=True, text_length=6, text_dim=5), "text", WHOLE, "text"),
    "titok_legacy": (LEGACY, "", WHOLE, "codes"),
    "titok_legacy_finetune": ({**LEGACY, "stage": "finetune"}, "", WHOLE, ""),
}

SEQUENCE = {"num_tokens": 4, "token_dim": 4, "num_classes": 10, "dim": 16, "depth": 3, "heads": 2, "steps": 3}
IDS = {"num_tokens": 4, "vocab_size": 16, "num_classes": 10, "dim": 16, "depth": 3, "heads": 2}
HEAD = {"width": 16, "depth": 2, "steps": 3, "batch_mul": 2}
CAUSAL_OPTIONS: list[Mapping] = [
    {"sampler": "sde"},
    {"sampler": "sde", "temperature": 0.7, "guidance": 2.0, "schedule": "power_cosine", "power": 2.0},
    {"sampler": "euler", "guidance": 1.5, "length": 2, "rows": True},
    {"sampler": "heun", "guidance": 2.0, "schedule": "linear"},
    {"sampler": "euler", "null": True},
]
ANCESTRAL: list[Mapping] = [{"temperature": 0.8}, {"guidance": 2.0, "length": 3, "rows": True}, {"null": True}]
FLOW_SAMPLES: list[Mapping] = [
    {"sampler": "sde"},
    {"sampler": "sde", "temperature": 0.7, "guidance": 2.0, "interval": (0.25, 1.0), "rows": True},
    {"sampler": "euler", "guidance": 1.5},
    {"sampler": "heun", "steps": 2, "guidance": 2.0, "interval": (0.1, 0.8)},
    {"sampler": "euler", "weak": True, "guidance": 1.5},
    {"sampler": "heun", "null": True},
]
DDPM_SAMPLES: list[Mapping] = [
    {"sampler": "ancestral"},
    {"sampler": "ancestral", "temperature": 0.7, "guidance": 2.0, "interval": (0.25, 1.0), "rows": True},
    {"sampler": "ddim", "guidance": 1.5, "steps": 4},
    {"sampler": "ddim", "weak": True, "guidance": 1.5},
    {"null": True},
]
ID_SAMPLES: list[Mapping] = [
    {},
    {"guidance": 2.0, "temperature": 0.7, "rows": True},
    {"guidance": 1.5, "interval": (0.3, 0.8), "top_k": 5},
    {"guidance": 3.0, "schedule": "linear", "top_p": 0.6, "length": 3},
    {"greedy": True, "guidance": 2.0},
    {"null": True},
]
MASKED_SAMPLES: list[Mapping] = [
    {"steps": 3},
    {"steps": 3, "guidance": 2.0, "temperature": 0.5, "rows": True},
    {"steps": 4, "guidance": 2.0, "schedule": "power_cosine", "power": 3.0, "annealing": False},
    {"steps": 4, "temperature": 0.05, "guidance": 4.0, "interval": (0.3, 0.8), "schedule": "constant"},
    {"null": True},
]


def epsilon(head: Mapping, **changes: Any) -> Mapping:
    """An epsilon-LlamaGen."""
    sizes = {name: value for name, value in SEQUENCE.items() if name != "steps"}
    return {"name": "epsilon_llamagen", **sizes, "drop_path": 0.1, "head": {**HEAD, **head}, **changes}


def card(**changes: Any) -> Mapping:
    """A CARD."""
    sizes = {name: value for name, value in SEQUENCE.items() if name != "steps"}
    head = {**HEAD, "condition": "adaln", "sampler": "euler", "time_scale": 1000.0}
    return {"name": "card", **sizes, "class_dim": 6, "head": head, **changes}


TOLD = {"condition": TEXT, "num_classes": 0}
# Name -> the model, its condition, what sampling is asked for.
GENERATORS: dict[str, tuple[Mapping, str, list[Mapping]]] = {
    "epsilon_llamagen": (epsilon({"condition": "concat"}, class_tokens=2), "class", CAUSAL_OPTIONS),
    "epsilon_llamagen_adaln": (epsilon({"condition": "adaln", "times": "logit_normal"}), "class", CAUSAL_OPTIONS[:3]),
    "epsilon_llamagen_ddpm": (epsilon({"objective": "ddpm"}), "class", ANCESTRAL),
    "epsilon_llamagen_unconditional": (epsilon({}, num_classes=0), "", [{"num": 3}]),
    "card": (card(), "class", CAUSAL_OPTIONS),
    "card_dit6": (card(modulation="dit6", start="class", positions="rope1d"), "class", CAUSAL_OPTIONS[:2]),
    "card_lowrank6": (card(modulation="lowrank6", class_source="independent"), "class", CAUSAL_OPTIONS[:2]),
    "card_shared6": (card(modulation="shared6", statistics="channel"), "class", CAUSAL_OPTIONS[:2]),
    "card_text": (card(**TOLD), "text", CAUSAL_OPTIONS),
    "sit": ({"name": "sit", **SEQUENCE}, "class", FLOW_SAMPLES),
    "sit_cosine": (
        {"name": "sit", **SEQUENCE, "path": "cosine", "times": "lognormal", "positions": "2d", "qk_norm": True},
        *("class", FLOW_SAMPLES[:4]),
    ),
    "sit_guidance_free": ({"name": "sit", **SEQUENCE, "guidance_free": True}, "class", FLOW_SAMPLES[:2]),
    "dit": ({"name": "dit", **SEQUENCE}, "class", DDPM_SAMPLES),
    "dit_cosine": ({"name": "dit", **SEQUENCE, "schedule": "cosine", "positions": "2d"}, "class", DDPM_SAMPLES[:2]),
    "lightningdit": ({"name": "lightningdit", **SEQUENCE}, "class", FLOW_SAMPLES),
    "lightningdit_grid": (
        {"name": "lightningdit", **SEQUENCE, "rotary": "2d", "positions": "2d", "qk_norm": True, "shift": False},
        *("class", FLOW_SAMPLES[1:3]),
    ),
    "usit": ({"name": "usit", **SEQUENCE}, "class", FLOW_SAMPLES),
    "llamagen": ({"name": "llamagen", **IDS}, "class", ID_SAMPLES),
    "llamagen_2d": ({"name": "llamagen", **IDS, "rope": "2d", "kv_heads": 1, "drop_path": 0.1}, "class", ID_SAMPLES),
    "llamagen_text": ({"name": "llamagen", **IDS, **TOLD, "rope": "none"}, "text", ID_SAMPLES[:3]),
    "maskgit": ({"name": "maskgit", **IDS}, "class", MASKED_SAMPLES),
    "maskgit_uvit": (
        {"name": "maskgit", **IDS, "trunk": "uvit", "guidance_schedule": "power_cosine"},
        *("class", MASKED_SAMPLES),
    ),
}
CLASSIFIERS: dict[str, Mapping] = {"cnn": {"name": "cnn", "width": 8, "features": 16}}

# Bundled name -> what is asked of it.
BUNDLED: dict[str, list[Mapping]] = {
    "fashion-mnist-semanticist": FLOW_OPTIONS,
    "fashion-mnist-maetok": [{}, {"size": 42}],  # a multiple of its patches of 7 pixels
    "fashion-mnist-smap": [*ORDERED[:-1], {"size": 42, "keep": 2}],
    "fashion-mnist-epsilon-llamagen": CAUSAL_OPTIONS,
    "fashion-mnist-card": CAUSAL_OPTIONS,
    "fashion-mnist-sit": FLOW_SAMPLES,
    "fashion-mnist-cnn": [],
}
