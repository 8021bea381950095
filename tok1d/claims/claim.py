"""Claims as data: the dataclasses of a claim file (tok1d/claims/data/*.yaml, or a file of the user's own)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from tok1d.claims.regime import Condition, ErrorBelowPca
from tok1d.config.fields import build, convert, option
from tok1d.config.text import show
from tok1d.errors import ConfigError

ScaleName = Literal["quick", "small"]
SCALES: tuple[ScaleName, ...] = get_args(ScaleName)
ARM = re.compile(r"<([\w.-]+)>")  # in an override: the model folder of another arm, trained with the same seed
NAME = re.compile(r"[\w.-]+")


@dataclass
class Arm:
    """One side of a comparison: a recipe with overrides, which is trained once for each seed."""

    recipe: str = option(help="name of a packaged recipe, or a YAML file", path="path")
    overrides: list[str] = option([], "key=value; <ARM> stands for the model folder of another arm, as tokenizer=<ARM>")
    quick: list[str] = option([], "further overrides of the scale quick")
    small: list[str] = option([], "further overrides of the scale small")
    step_seconds: float = option(help="estimated time of a training step on one CPU core, in seconds", ge=0)

    @property
    def needs(self) -> list[str]:
        """The arms whose models this one starts from or is trained on."""
        texts = [*self.overrides, *self.quick, *self.small]
        return list(dict.fromkeys(name for text in texts for name in ARM.findall(text)))


@dataclass
class Scale:
    """The overrides of one size of the trainings, by kind of model."""

    tokenizer: list[str] = option([], "overrides of arms that are tokenizers")
    generator: list[str] = option([], "overrides of arms that are generators")
    num: int = option(1000, "test images, or samples, of a measurement", ge=2)


@dataclass
class Scales:
    """The two sizes: quick for a first look, small for the figures of the page."""

    quick: Scale = option(help="the short trainings")
    small: Scale = option(help="the long trainings")

    def of(self, name: ScaleName) -> Scale:
        """The scale of a name."""
        return self.quick if name == "quick" else self.small


@dataclass
class Measurement:
    """A statistic of `tok1d.claims.statistics` and its settings; a statistic refuses settings that it does not read."""

    name: str = option(help="one of the statistics")
    keep: int | None = option(None, "number of leading tokens; null: all", ge=0)
    evaluate: list[str] = option([], "key=value of the recipe's section evaluate, such as guidance=2")
    pooling: Literal["concatenated", "averaged"] | None = option(None, "probe: features of the tokens; concatenated")
    components: int | None = option(None, "number of Gaussians; mixture_nll: 20, mode_error: 16", ge=1)
    dims: int | None = option(None, "mixture_nll: number of principal components; 16", ge=1)
    variant: str | None = option(
        None, "condition_followed: variant of tok1d analyze swap; swapped; order_loss: order of the tokens; in order"
    )

    @property
    def settings(self) -> dict[str, object]:
        """The settings that are given, without the name."""
        fields = [field.name for field in dataclasses.fields(self) if field.name != "name"]
        return {name: getattr(self, name) for name in fields if getattr(self, name) not in (None, [])}


@dataclass
class Term:
    """An arm in a comparison, with settings that replace those of the claim's statistic."""

    arm: str = option(help="name of an arm")
    name: str = option("", "name of the rows; default: that of the arm")
    keep: int | None = option(None, "as in the statistic", ge=0)
    evaluate: list[str] = option([], "as in the statistic")
    components: int | None = option(None, "as in the statistic", ge=1)
    variant: str | None = option(None, "as in the statistic")

    @property
    def label(self) -> str:
        """The name of its rows."""
        return self.name or self.arm

    def measurement(self, common: Measurement) -> Measurement:
        """The statistic with the settings of this term."""
        own = {name: value for name in ("keep", "components", "variant") if (value := getattr(self, name)) is not None}
        return dataclasses.replace(common, **own, evaluate=[*common.evaluate, *self.evaluate])


def terms(value: object, key: str) -> list[Term]:
    """A list of terms, each the name of an arm or a mapping."""
    if not isinstance(value, list):
        raise ConfigError(f"{key}: expected a list of arms, got {show(value)}")
    return [
        build(Term, each if isinstance(each, Mapping) else {"arm": each}, f"{key}[{i}]") for i, each in enumerate(value)
    ]


def seeds_of(value: object, key: str) -> list[int]:
    """A list of different seeds, at least one."""
    found = convert(list[int], value, key)
    assert isinstance(found, list)
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise ConfigError(f"{key}: expected different seeds of at least 0, got {found}")
    return found


def scales_of(value: object, key: str) -> list[ScaleName]:
    """A list of different scales, at least one."""
    found = convert(list[ScaleName], value, key)
    assert isinstance(found, list)
    if not found or len(set(found)) < len(found):
        raise ConfigError(f"{key}: expected one or both of {', '.join(SCALES)}, got {found}")
    return found


@dataclass(eq=False)  # compared by identity
class Claim:
    """A statement of a paper and how it is tested: the sum of the statistic over `plus` minus that over `minus`.

    With `by` it is tested by the correlation of two statistics over the arms of `plus`.
    """

    id: str = option(help="short name, unique")
    section: str = option(help="of the paper: section, figure, table or appendix")
    statement: str = option(help="what the paper says, in our words")
    statistic: Measurement = option(help="what is measured of every arm")
    plus: list[Term] = option(help="arms that are added", build=terms)
    minus: list[Term] = option([], "arms that are subtracted; none with by", build=terms)
    expected: Literal["higher", "lower"] = option(help="side of 0 on which the paper puts the difference")
    margin: float = option(help="smallest difference or correlation that counts, in the unit of the statistic", gt=0)
    by: Measurement | None = option(
        None, "a second statistic: the claim is about its correlation with the first over the arms of plus"
    )
    seeds: list[int] = option([0], "seeds; rows of one seed are paired", build=seeds_of)
    spread: float | None = option(
        None, "with one seed: standard deviation of the difference between seeds, measured elsewhere", gt=0
    )
    spread_from: str = option(
        "", "with one seed: id of a claim of this file with several seeds and this statistic; its spread is used"
    )
    scales: list[ScaleName] = option(list(SCALES), "sizes of the trainings at which it is measured", build=scales_of)
    headline: bool = option(False, "measured before the others")
    regime: list[Condition] = option([], "conditions under which the statement can show")
    missing: str = option("", "why the library cannot train or measure the arms yet; the claim is then only listed")

    @property
    def terms(self) -> list[tuple[int, Term]]:
        """The terms with their signs."""
        return [*((1, term) for term in self.plus), *((-1, term) for term in self.minus)]

    def check(self) -> None:
        """Raise ConfigError on an id or a comparison that cannot be used."""
        if not NAME.fullmatch(self.id):
            raise ConfigError(f"id: expected letters, digits, -, _ and ., got {show(self.id)}")
        labels = [term.label for _, term in self.terms]
        if self.by is not None:
            if len(self.plus) < 4 or self.minus:
                raise ConfigError(
                    f"by: a correlation needs at least 4 arms in plus and none in minus, got {len(self.plus)} and "
                    f"{len(self.minus)}"
                )
            labels += [f"{label}-by" for label in labels]
        elif not self.plus or not self.minus:
            raise ConfigError(f"{'minus' if self.plus else 'plus'}: expected at least one arm, got []")
        for condition in self.regime:
            for arm in condition.arms if isinstance(condition, ErrorBelowPca) else ():
                if arm not in (known := [term.arm for _, term in self.terms]):
                    raise ConfigError(f"regime: {condition.name}: expected arms of {', '.join(known)}, got {show(arm)}")
        if len(self.seeds) > 1 and (self.spread is not None or self.spread_from):
            raise ConfigError(f"spread: expected one seed beside a spread, got the seeds {self.seeds}")
        for label in labels:
            if not NAME.fullmatch(label):
                raise ConfigError(f"name: expected letters, digits, -, _ and . in the name of a row, got {show(label)}")
            if labels.count(label) > 1:
                raise ConfigError(f"minus: two terms have rows of the name {label}; give one a name of its own")


@dataclass(eq=False)  # compared by identity
class ClaimFile:
    """The claims of one paper, and the arms that they compare."""

    paper: str = option(help="short name of the paper")
    arxiv: str = option("", "number on arXiv")
    scales: Scales = option(help="the sizes of the trainings")
    arms: dict[str, Arm] = option(help="the recipes that are compared, by name")
    claims: list[Claim] = option(help="the claims")

    def check(self) -> None:
        """Raise ConfigError on a name of an arm that is not there, or arms that need each other."""
        for name, arm in self.arms.items():
            for other in arm.needs:
                if other not in self.arms:
                    raise ConfigError(f"arms.{name}.overrides: <{other}> is no arm, expected {self._names}")
            if name in self._above(name):
                raise ConfigError(f"arms.{name}.overrides: the arm needs itself, by {', '.join(arm.needs)}")
        for i, claim in enumerate(self.claims):
            if claim.spread_from:
                self._check_spread(claim, f"claims[{i}].spread_from")
            for key, found in (("plus", claim.plus), ("minus", claim.minus)):
                for j, term in enumerate(found):
                    if term.arm not in self.arms:
                        raise ConfigError(
                            f"claims[{i}].{key}[{j}]: expected one of the arms {self._names}, got {show(term.arm)}"
                        )

    def claim(self, name: str) -> Claim | None:
        """The claim of an id."""
        return next((claim for claim in self.claims if claim.id == name), None)

    def _check_spread(self, claim: Claim, key: str) -> None:
        other = self.claim(claim.spread_from)
        if (
            other is None
            or len(other.seeds) < 2
            or other.statistic.name != claim.statistic.name
            or other.by is not None
        ):
            raise ConfigError(
                f"{key}: expected a claim of this file with several seeds and the statistic {claim.statistic.name}, "
                f"got {show(claim.spread_from)}"
            )

    @property
    def _names(self) -> str:
        return ", ".join(self.arms) or "(none)"

    def _above(self, name: str) -> set[str]:
        """All arms that an arm needs, itself only if it needs itself."""
        found: set[str] = set()
        waiting = list(self.arms[name].needs)
        while waiting:
            other = waiting.pop()
            if other not in found and other in self.arms:
                found.add(other)
                waiting += self.arms[other].needs
        return found


@dataclass(frozen=True)
class Listed:
    """A claim and the file that it belongs to."""

    claim: Claim
    file: ClaimFile
