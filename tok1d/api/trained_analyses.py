"""Analyses that train small generators: `tok1d analyze learnability`, `order` and `modes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from tok1d.analyze.judged import judges
from tok1d.api.subjects import Analysis, Collected, Say, Subject
from tok1d.data.subset import subset
from tok1d.studies.learnability import check_learnable, learnability, plot_learnability
from tok1d.studies.modes import mode_errors, plot_modes
from tok1d.studies.order import check_order, order, plot_orders
from tok1d.studies.request import Learning, ModeSettings, Ordering


def learnabilities(subjects: Sequence[Subject], how: Learning, say: Say) -> Analysis:
    """How easily a small generator learns the tokens: held-out loss over steps, and distances of its samples."""
    trains = [each.training() for each in subjects]
    for each, train in zip(subjects, trains, strict=True):
        check_learnable(each.tokenizer, each.name, how, train.num_classes)
    measures = [judges(each.tokenizer, each.data, how.network, ("fd",)) for each in subjects]
    collected = Collected("learnability", say)
    for each, train, measured in zip(subjects, trains, measures, strict=True):
        result = learnability(each.tokenizer, train, each.images, how, measured, name=each.name)
        trained = subset(train, result.num_train).fingerprint()
        settings = {"training": trained, "train_batch": how.train_batch, "guidance": how.guidance}
        collected.add(each, result, how.seed, **settings)
        for reason in measured.missing.values():
            collected.note(each, f"no distances: {reason}")
    return collected.finished(plot_learnability(collected.found))


def orders(subjects: Sequence[Subject], how: Ordering, say: Say) -> Analysis:
    """Held-out loss of a small causal generator on the tokens in order, reversed, and in one fixed random order."""
    trains = [each.training() for each in subjects]
    for each, train in zip(subjects, trains, strict=True):
        check_order(each.tokenizer, each.name, how, train.num_classes)
    collected = Collected("order", say)
    for each, train in zip(subjects, trains, strict=True):
        result = order(each.tokenizer, train, each.images, how, name=each.name)
        trained = subset(train, result.num_train).fingerprint()
        collected.add(each, result, how.seed, training=trained, train_batch=how.train_batch)
    return collected.finished(plot_orders(collected.found))


def modes(subjects: Sequence[Subject], how: ModeSettings, say: Say) -> Analysis:
    """Error of a small SiT on synthetic tokens with a known score; needs no tokenizer, so `subjects` is empty."""
    lines: list[str] = []

    def both(line: str) -> None:
        lines.append(line)
        say(line)

    found = mode_errors(how, both)
    body = {"settings": asdict(how), **found.to_json()}
    return Analysis("modes", f"{found.said()}.", body, plot_modes(found), lines)
