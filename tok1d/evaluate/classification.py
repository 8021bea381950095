"""Accuracy of a trained classifier on a set of images."""

from __future__ import annotations

import torch

from tok1d.config.classes import agreement, model_classes, stated
from tok1d.data.images import ImageSet
from tok1d.data.labels import image_classes, mapped
from tok1d.errors import InputError
from tok1d.evaluate.metrics import accuracy
from tok1d.evaluate.networks import CNN
from tok1d.evaluate.reference import describe_images
from tok1d.zoo.record import ModelProtocol, Record


@torch.no_grad()
def evaluate_classifier(
    model: CNN, images: ImageSet, *, batch_size: int = 500, protocol: ModelProtocol | None = None
) -> list[Record]:
    """Return one record, "accuracy": the share of the images that the classifier assigns to their class, in [0, 1].

    Raises:
        InputError: images of other classes.
    """
    found = agreement(image_classes(images), model_classes(model))
    if not found.agrees:
        raise InputError(f"{found.said}; expected images of the classifier's classes")
    device, num_correct = next(model.parameters()).device, 0.0
    for start in range(0, len(images), batch_size):
        x, labels = images.batch(range(start, min(start + batch_size, len(images))))
        num_correct += float(accuracy(model(x.to(device)), mapped(labels, found.places).to(device))) * len(labels)
    return [
        Record(
            name="accuracy",
            value=num_correct / len(images),
            num_images=len(images),
            reference=describe_images(images),
            class_names=stated(images.class_names),
            **(protocol or ModelProtocol()),
        )
    ]
