"""The pretrained networks that trained a model, which are not feature networks of its metrics.

A model trained towards the features of a network is close to its targets in them, so a distance or an agreement in
these features would measure the training loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tok1d.config.load import stored_tree
from tok1d.errors import InputError
from tok1d.zoo import store
from tok1d.zoo.pretrained.networks import NetworkName, parse_network

TEACHER = "teacher:"


def training_networks(*recipes: str) -> dict[str, str]:
    """The networks that trained models, as recipes name them, with the keys of their names ("perceptual.network").

    Models from which a training started, and the tokenizer of a generator, count too, as far as their folders are on
    this machine.

    Args:
        recipes: of the models (YAML), as their cards have them; texts of another kind have no networks.
    """
    found: dict[str, str] = {}
    waiting, seen = list(recipes), set[str]()
    while waiting:
        text = waiting.pop(0)
        if text in seen:
            continue
        seen.add(text)
        tree = stored_tree(text)
        for key, network in _named(tree):
            found.setdefault(network, key)
        waiting += [_recipe_of(tree[key]) for key in ("init_from", "tokenizer") if isinstance(tree.get(key), str)]
    return found


def why_not(text: str, trained: Mapping[str, str]) -> str:
    """Why the network of a text, as `open_network` reads it, is not measured with; "" if it did not train the model.

    Networks of timm are compared by name, because recipes do not state the contents of weight files: an architecture
    with the same tag, or with any tag where one name has none, is the same network.

    Args:
        trained: from `training_networks`.
    """
    for other, key in trained.items():
        if _same(_identity(text), _identity(other)):
            return (
                f"{text}: this model was trained with that network ({key}: {other}), which would measure its own loss; "
                "choose another network"
            )
    return ""


def _recipe_of(model: object) -> str:
    """The recipe of a model on this machine; "" for any other."""
    name = str(model)
    if name not in store.bundled_names() and not (Path(name) / "config.json").is_file():
        return ""
    return store.read_config(store.resolve(name))[1].recipe


def _named(tree: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Keys and names of the networks of a recipe's losses."""
    model, perceptual, adversarial = (_mapping(tree, key) for key in ("model", "perceptual", "adversarial"))
    if model.get("stage") != "finetune":  # stage two has neither auxiliary decoders nor alignment
        teacher, auxiliary = _mapping(model, "alignment").get("teacher"), model.get("auxiliary")
        if teacher:
            yield "model.alignment.teacher", str(teacher)
        for each in auxiliary if isinstance(auxiliary, list) else []:
            target = str(each.get("target", "")) if isinstance(each, dict) else ""
            if target.startswith(TEACHER):
                yield "model.auxiliary", target.removeprefix(TEACHER)
    for weight, key in (("weight", "network"), ("logits", "classifier")):
        if perceptual.get(weight) and perceptual.get(key):
            yield f"perceptual.{key}", str(perceptual[key])
    backbone = _mapping(adversarial, "discriminator").get("backbone")
    if adversarial.get("weight") and backbone:
        yield "adversarial.discriminator.backbone", str(backbone)


def _mapping(tree: Mapping[str, object], key: str) -> dict[str, object]:
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def _identity(text: str) -> tuple[str, str]:
    """The kind of a network, and its name or folder."""
    folder = text.removeprefix("model:")
    if folder in store.bundled_names() or (Path(folder) / "config.json").is_file():
        return "model", str(store.resolve(folder))
    try:
        named = parse_network(text) or NetworkName(text)
    except InputError:  # reported where the network is opened
        named = NetworkName(text)
    return "timm", named.timm.removeprefix("hf-hub:").rpartition("/")[2]


def _same(a: tuple[str, str], b: tuple[str, str]) -> bool:
    if a == b or a[0] != b[0] or a[0] != "timm":
        return a == b
    (here, _, tag), (there, _, other) = a[1].partition("."), b[1].partition(".")
    return here == there and (not tag or not other)
