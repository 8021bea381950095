"""A finished run of an arm, with what its measurements need: model, images and feature networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from tok1d import devices
from tok1d.claims.claim import Measurement
from tok1d.config.load import recipe_from_text, to_yaml
from tok1d.config.recipe import Recipe
from tok1d.data.base import ImageSet
from tok1d.data.subset import subset
from tok1d.errors import InputError
from tok1d.evaluate.feature_networks import open_network
from tok1d.evaluate.features import INCEPTION, FrozenNetwork
from tok1d.evaluate.measures import Measures, own_networks
from tok1d.evaluate.of_recipe import evaluate_model, uses_bundled
from tok1d.evaluate.protocol import CLASSIFIER, classifier_for
from tok1d.evaluate.request import Reconstructions, Samples
from tok1d.generators.base import Generator
from tok1d.tokenizers.base import Tokenizer
from tok1d.train.images import open_split
from tok1d.zoo import store


@dataclass
class Trained:
    """A finished run.

    Args:
        recipe: of the training, in its folder.
        num: test images, or samples, of a measurement.
        of: of a generator, the run of its tokenizer.
    """

    recipe: Recipe
    num: int
    of: Trained | None = None

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return Path(self.recipe.out)

    @cached_property
    def device(self) -> str:
        """A GPU if there is one."""
        return devices.pick_device(None)

    @cached_property
    def model(self) -> Tokenizer | Generator:
        """The trained model, in eval mode."""
        return cast("Tokenizer | Generator", store.load(self.run / "model", device=self.device))

    @property
    def generator(self) -> Generator:
        """The trained generator."""
        assert self.recipe.kind == "generator", "checked before the training"
        return cast(Generator, self.model)

    @property
    def tokens(self) -> Trained:
        """The run of the tokenizer: this one, or that of a generator."""
        return self if self.of is None else self.of

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run, or that of a generator."""
        return cast(Tokenizer, self.tokens.model)

    def images(self, split: str, num: int | None = None) -> ImageSet:
        """Images of the recipe's data, as many as a measurement uses, or `num`.

        Args:
            split: "train" or "test".
        """
        return subset(open_split(self.recipe, "train" if split == "train" else "test"), num or self.num)

    def records(self, how: Measurement, keep: int | None = None) -> dict[str, float]:
        """The values of the recipe's evaluation by name, the first of each, from `keep` (default: all) tokens.

        The section evaluate of the recipe is changed by the overrides of the measurement.

        Raises:
            Tok1dError: an override or a number of tokens that the model does not have.
        """
        # A generator may model the first tokens only.
        length = self.generator.config.num_tokens if self.recipe.kind == "generator" else self.tokenizer.spec.length
        most = length if keep is None else keep
        recipe = self.evaluated([*how.evaluate, f"keep=[{most}]"])
        found: dict[str, float] = {}
        train = lambda: open_split(self.recipe, "train")  # noqa: E731
        for record in evaluate_model(recipe, self.model, open_split(self.recipe, "test"), train):
            if record.value is not None and record.keep == most:
                found.setdefault(record.name.partition("@")[0], record.value)
            elif record.value is None and record.note:
                raise InputError(f"{self.run}: {record.name} is not available, {record.note}")
        return found

    def evaluated(self, overrides: Sequence[str]) -> Recipe:
        """The recipe with the number of images of a measurement and overrides of its section evaluate."""
        wanted = [f"num_images={self.num}", f"num_samples={self.num}", *overrides]
        return recipe_from_text(to_yaml(self.recipe), "recipe", [f"evaluate.{text}" for text in wanted])

    def samples(self, how: Measurement) -> Samples:
        """The samples of a measurement, as the recipe's section evaluate with its overrides makes them."""
        recipe = self.evaluated(how.evaluate)
        config = recipe.evaluate
        decoding = vars(config.decoding(generator=True))
        if self.tokenizer.spec.deterministic:
            decoding |= {"steps": None}
        return Samples(
            **vars(config.sampling),
            **{f"decoder_{name}": value for name, value in decoding.items()},
            num_samples=config.num_samples,
            keep=(recipe.model.num_tokens if how.keep is None else how.keep,),
            batch_size=config.batch_size,
            seed=recipe.seed,
        )

    def reconstructions(self, how: Measurement) -> Reconstructions:
        """The reconstructions of a measurement, as the recipe's section evaluate with its overrides makes them."""
        config = self.evaluated(how.evaluate).evaluate
        decoding = vars(config.decoding(generator=False))
        if self.tokenizer.spec.deterministic:
            decoding = {**decoding, "steps": None}
        keep = self.tokenizer.spec.length if how.keep is None else how.keep
        return Reconstructions(**decoding, keep=(keep,), batch_size=config.batch_size, seed=self.recipe.seed)

    def measures(self, *metrics: str) -> Measures:
        """Metrics of features with the network of the recipe's evaluation."""
        data = self.recipe.data
        if uses_bundled(self.recipe):
            networks: list[FrozenNetwork] = own_networks(
                classifier_for(data.name, data, self.device, pad=data.pad), data.pad
            )
        else:
            networks = [open_network(self.judge, device=self.device, pad=data.pad, download=False)]
        return Measures(metrics, networks, data.pad)

    @property
    def judge(self) -> str:
        """The name of the feature network that measures."""
        return CLASSIFIER if uses_bundled(self.recipe) else self.recipe.evaluate.network or INCEPTION
