"""Analyses of the tokens of several tokenizers, without a training: `tok1d analyze prefix`, `spectrum`, `swap`, ..."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tok1d.analyze.budget import budgets, check_budget, plot_budgets
from tok1d.analyze.components import Components
from tok1d.analyze.idle import plot_uses, token_uses
from tok1d.analyze.increments import TIMES, check_increments, increments, plot_increments
from tok1d.analyze.judged import judges, settings_of_each
from tok1d.analyze.mixture import (
    COMPONENTS,
    NATS,
    check_mixture,
    common_dims,
    fit_space,
    plot_mixtures,
    token_batches,
)
from tok1d.analyze.prefix import check_prefix, check_times, judged, plot_prefixes, prefix
from tok1d.analyze.probe import plot_probes, probe
from tok1d.analyze.request import (
    Budgets,
    IncrementProducts,
    JudgedReconstructions,
    Maps,
    MixtureFits,
    PrefixCurves,
    Probes,
    Spectra,
    Swaps,
    TokenUses,
    label_of,
)
from tok1d.analyze.semantics import METRICS, check_networks, plot_semantics, semantics
from tok1d.analyze.spectrum import plot_spectra, spectrum
from tok1d.analyze.swap import check_swap, class_means, swap
from tok1d.analyze.swap_plots import plot_swaps, swap_picture
from tok1d.analyze.token_map import plot_maps, token_map
from tok1d.api.subjects import Analysis, Collected, Say, Subject, fitting, lengths_of
from tok1d.data.subset import subset
from tok1d.evaluate import protocol
from tok1d.images.framing import padding_of


def prefixes(subjects: Sequence[Subject], how: PrefixCurves, say: Say) -> Analysis:
    """How much the first k tokens lower the denoising loss or the squared error, relative to all tokens."""
    subjects, without = fitting(subjects, lambda each: check_prefix(each.tokenizer, how.partial), say)
    check_times([each.tokenizer for each in subjects], how.times)
    lengths = [lengths_of(how.keep, each.tokenizer) for each in subjects]
    collected = Collected("prefix", say)
    for each, keep in zip(subjects, lengths, strict=True):
        own = replace(how, label=label_of(each, subjects, how.label))
        collected.add(each, prefix(each.tokenizer, each.images, own, keep=keep, name=each.name), how.seed)
        shared = {"num_images": how.num, "batch_size": how.batch_size, "seed": how.seed}
        if said := judged(each.tokenizer, each.images, pad=padding_of(each.tokenizer), **shared):
            collected.note(each, said)
    return collected.finished(plot_prefixes(collected.found), without)


def increment_products(subjects: Sequence[Subject], how: IncrementProducts, say: Say) -> Analysis:
    """Correlations and energies of the increments that the tokens add to the prediction."""
    subjects, without = fitting(subjects, lambda each: check_increments(each.tokenizer), say)
    check_times([each.tokenizer for each in subjects], how.times)
    lengths = [lengths_of(how.keep, each.tokenizer) for each in subjects]
    collected = Collected("increments", say)
    for each, keep in zip(subjects, lengths, strict=True):
        result = increments(
            each.tokenizer,
            each.images,
            keep=keep,
            num_images=how.num,
            num_times=how.times or TIMES,
            batch_size=how.batch_size,
            seed=how.seed,
            label=label_of(each, subjects, how.label),
            name=each.name,
        )
        collected.add(each, result, how.seed)
    return collected.finished(plot_increments(collected.found), without)


def spectra(subjects: Sequence[Subject], how: Spectra, say: Say) -> Analysis:
    """Power spectra of reconstructions by number of tokens, and semantic agreement beside them."""
    settings = settings_of_each(
        [each.tokenizer for each in subjects], how, partial=how.partial, components=how.components
    )
    measures = [judges(e.tokenizer, e.data, how.network, ("semantic",), e.images.class_names) for e in subjects]
    collected = Collected("spectrum", say)
    for each, own, measured in zip(subjects, settings, measures, strict=True):
        fitted = each.training() if how.components else None
        result = spectrum(each.tokenizer, each.images, own, measured, training=fitted, name=each.name)
        collected.add(each, result, how.seed)
        for reason in measured.missing.values():
            collected.note(each, f"no semantic agreement: {reason}")
    return collected.finished(plot_spectra(collected.found))


def probes(subjects: Sequence[Subject], how: Probes, say: Say) -> Analysis:
    """Accuracy of linear probes on the first tokens."""
    collected = Collected("probe", say)
    for each in subjects:
        train = each.training()
        own = replace(how, label=label_of(each, subjects, how.label))
        result = probe(each.tokenizer, train, each.images, own, name=each.name)
        trained = subset(train, result.num_train).fingerprint()
        collected.add(each, result, None, training=trained)
    return collected.finished(plot_probes(collected.found))


def maps(subjects: Sequence[Subject], how: Maps, say: Say) -> Analysis:
    """Maps of the tokens coloured by class."""
    collected = Collected("map", say)
    for each in subjects:
        own = replace(how, label=label_of(each, subjects, how.label))
        result = token_map(each.tokenizer, each.images, own, name=each.name)
        collected.add(each, result, how.seed)
    return collected.finished(plot_maps(collected.found))


def judged_classes(subjects: Sequence[Subject], how: JudgedReconstructions, say: Say) -> Analysis:
    """Accuracy of a network on reconstructions by number of tokens."""
    settings = settings_of_each([each.tokenizer for each in subjects], how)
    measures = [judges(e.tokenizer, e.data, how.network, METRICS, e.images.class_names) for e in subjects]
    for measured in measures:
        check_networks(measured)
    collected = Collected("semantics", say)
    for each, own, measured in zip(subjects, settings, measures, strict=True):
        result = semantics(each.tokenizer, each.images, own, measured)
        collected.add(each, result, how.seed)
    return collected.finished(plot_semantics(collected.found))


def mixtures(subjects: Sequence[Subject], how: MixtureFits, say: Say) -> Analysis:
    """Gaussian mixtures of the principal components of the tokens, for all models in the same number of dimensions."""
    subjects, without = fitting(subjects, lambda each: check_mixture(each.tokenizer), say)
    spaces, rows, sets, labels, seeds = {}, {}, {}, {}, how.seeds or (0,)
    for each in subjects:
        chosen = sets[each.name] = subset(each.training(), how.num_train), subset(each.images, how.num)
        shared = {"label": label_of(each, subjects, how.label), "batch_size": how.batch_size}
        made = [token_batches(each.tokenizer, images, name=each.name, **shared) for images in chosen]
        rows[each.name], labels[each.name] = [batches for batches, _ in made], made[0][1]
        spaces[each.name] = Components.of(rows[each.name][0], "mixtures")
    dims = common_dims(spaces, how.variance) if how.dims is None else how.dims
    collected = Collected("mixture", say)
    for each in subjects:
        fitted, heldout = rows[each.name]
        result = fit_space(
            spaces[each.name], fitted, how.components or COMPONENTS, dims=dims, covariance=how.covariance,
            seeds=seeds, heldout=heldout, name=each.name,
        )  # fmt: skip
        training, label = sets[each.name][0].fingerprint(), labels[each.name]
        collected.add(each, result, seeds[0], seeds=list(seeds), training=training, label=label)
    say(NATS)
    return collected.finished(plot_mixtures(collected.found), without)


def swaps(subjects: Sequence[Subject], how: Swaps, say: Say) -> Analysis:
    """Tokens decoded with another class, or from the class alone, to see what class and tokens determine."""
    subjects, without = fitting(subjects, lambda each: check_swap(each.tokenizer, each.images, how.label), say)
    collected, pictures = Collected("swap", say), {}
    for each in subjects:
        place, pad = next(each.tokenizer.parameters()).device, padding_of(each.tokenizer)
        means = class_means(each.training(), how.num_train, name=f"{each.name}, means")
        classifier = protocol.classifier_for(each.data, each.tokenizer.config, place, pad=pad)
        paired = {"num_images": how.num, "batch_size": how.batch_size}
        result = swap(
            each.tokenizer, each.images, classifier, keep=how.keep, pad=pad, label=how.label, means=means,
            name=each.name, **paired,
        )  # fmt: skip
        keep = max(how.keep, default=each.tokenizer.spec.length)
        pictures[f"{each.name}, {keep} tokens"] = swap_picture(
            each.tokenizer, each.images, keep=keep, label=how.label, means=means, **paired
        )
        collected.add(each, result, None)
    return collected.finished(plot_swaps(collected.found, pictures), without)


def uses(subjects: Sequence[Subject], how: TokenUses, say: Say) -> Analysis:
    """What each token adds: the error without it, with another image's, and what earlier tokens predict of it."""
    collected = Collected("idle", say)
    for each in subjects:
        shared = {"num_images": how.num, "batch_size": how.batch_size, "seed": how.seed}
        label = label_of(each, subjects, how.label)
        collected.add(each, token_uses(each.tokenizer, each.images, label=label, name=each.name, **shared), how.seed)
    return collected.finished(plot_uses(collected.found))


def budget_curves(subjects: Sequence[Subject], how: Budgets, say: Say) -> Analysis:
    """As many tokens as an image needs: the error beside that of as many tokens for every image."""
    subjects, without = fitting(subjects, lambda each: check_budget(each.tokenizer), say)
    collected = Collected("budget", say)
    for each in subjects:
        own = replace(how, label=label_of(each, subjects, how.label))
        collected.add(each, budgets(each.tokenizer, each.images, own, name=each.name), how.seed)
    return collected.finished(plot_budgets(collected.found), without)
