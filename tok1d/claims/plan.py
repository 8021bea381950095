"""From claims to trainings: reading claim files, resolving the recipes of arms, and checking all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tok1d.claims.claim import ARM, ClaimFile, Listed, Measurement, ScaleName, Term
from tok1d.claims.statistics import STATISTICS
from tok1d.config.fields import build
from tok1d.config.fields import rows as fields_of
from tok1d.config.load import load_recipe, parse_tree
from tok1d.config.nearest import known_name
from tok1d.config.recipe import Recipe
from tok1d.errors import ConfigError, Tok1dError, reason_of
from tok1d.evaluate.of_recipe import forecast_notes
from tok1d.train.folder import FREE_KEYS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DATA = Path(__file__).parent / "data"
RUNS = "@runs@"  # stands for the folder of the trainings in a recipe before it is known
RUN_KEYS = {"cache"}  # keys that follow from the others


@dataclass(frozen=True)
class Plan:
    """An arm at a scale and seed, resolved to a recipe.

    Args:
        arm: its name.
        recipe: with `RUNS` for the folder of the trainings.
        name: of the base recipe.
        overrides: of the base recipe, with `RUNS`.
        of: the plans of the arms that it needs, by name.
    """

    arm: str
    recipe: Recipe
    name: str
    overrides: tuple[str, ...]
    of: dict[str, Plan]

    @cached_property
    def key(self) -> str:
        """12 hex digits that identify the training: equal for equal recipes, whatever their arm or claim is called."""
        return digest(settings(self.recipe, (*FREE_KEYS, *RUN_KEYS)))

    def at(self, runs: Path) -> Recipe:
        """The recipe of the training in its folder, `runs` / key."""
        place = str(runs)
        given = [text.replace(f"{RUNS}/", f"{place}/") for text in self.overrides]
        return load_recipe(self.name, [*given, f"out={place}/{self.key}"])

    @property
    def tokenizer(self) -> Plan | None:
        """Of a generator, the plan of its tokenizer."""
        return next((plan for plan in self.of.values() if self.recipe.tokenizer == f"{RUNS}/{plan.key}/model"), None)


@dataclass(frozen=True)
class RowPlan:
    """One row of a claim: an arm that is measured at one seed and scale; `by`: with the claim's second statistic."""

    listed: Listed
    term: Term
    seed: int
    scale: ScaleName
    by: bool = False

    @property
    def label(self) -> str:
        """The name of the row within its claim and seed."""
        return f"{self.term.label}-by" if self.by else self.term.label

    @property
    def num(self) -> int:
        """Test images, or samples, of its measurement."""
        return self.listed.file.scales.of(self.scale).num

    @property
    def statistic(self) -> Measurement:
        """The statistic with the settings of the term."""
        claim = self.listed.claim
        if self.by:
            assert claim.by is not None
            return claim.by
        return self.term.measurement(claim.statistic)

    @property
    def plan(self) -> Plan:
        """The training of the arm."""
        return resolve(self.listed.file, self.term.arm, self.scale, self.seed)

    @property
    def key(self) -> str:
        """12 hex digits that identify the training and the measurement; a stored row with another key is not used."""
        evaluate = settings(self.plan.recipe.evaluate)
        return digest([self.plan.key, settings(self.statistic), self.num, evaluate])

    def path(self, rows: Path) -> Path:
        """The file of the row in a folder of rows."""
        return rows / self.scale / self.listed.claim.id / f"{self.label}-seed{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.listed.claim.id}, {self.label}, seed {self.seed}, {self.scale}"


def settings(config: DataclassInstance, without: Sequence[str] = ()) -> dict[str, str]:
    """The fields of a configuration that are not at their defaults, and the names that choose classes, as text.

    So a field that is added later, with a default that changes nothing, leaves the keys of stored rows as they are.

    Args:
        without: dotted keys to leave out, with all keys inside them.
    """

    def counts(key: str) -> bool:
        return not any(key == each or key.startswith(f"{each}.") for each in without)

    return {
        row.key: row.value
        for row in fields_of(config)
        if counts(row.key) and (row.value != row.default or row.key.rpartition(".")[2] == "name")
    }


def digest(content: object) -> str:
    """12 hex digits of SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


@cache
def kind_of(recipe: str) -> str:
    """The kind of model that a recipe trains."""
    return load_recipe(recipe).kind


@cache
def resolve(file: ClaimFile, arm: str, scale: ScaleName, seed: int) -> Plan:
    """The plan of an arm; raises ConfigError as `load_recipe`, naming the arm."""
    given, sizes = file.arms[arm], file.scales.of(scale)
    of = {name: resolve(file, name, scale, seed) for name in given.needs}
    try:
        common = {"tokenizer": sizes.tokenizer, "generator": sizes.generator}
        texts = [
            *common.get(kind_of(given.recipe), []),
            *given.overrides,
            *(given.quick if scale == "quick" else given.small),
        ]
        overrides = [ARM.sub(lambda match: f"{RUNS}/{of[match[1]].key}/model", text) for text in texts]
        overrides.append(f"seed={seed}")
        recipe = load_recipe(given.recipe, [*overrides, f"out={RUNS}/{arm}"])
    except Tok1dError as error:
        raise ConfigError(f"arms.{arm}: {error}") from None
    plan = Plan(arm, recipe, given.recipe, tuple(overrides), of)
    if recipe.kind == "generator" and plan.tokenizer is None:
        raise ConfigError(f"arms.{arm}.overrides: a generator needs an arm as its tokenizer, expected tokenizer=<ARM>")
    if recipe.kind == "classifier":
        raise ConfigError(f"arms.{arm}.recipe: expected a tokenizer or a generator, got a classifier, {given.recipe}")
    return plan


def row_plans(listed: Listed, scale: ScaleName) -> list[RowPlan]:
    """All rows of a claim, one seed after the other; none at a scale that it does not have."""
    if scale not in listed.claim.scales:
        return []
    return [row for seed in listed.claim.seeds for row in seed_plans(listed, seed, scale)]


def seed_plans(listed: Listed, seed: int, scale: ScaleName) -> list[RowPlan]:
    """The rows of a seed: one for each term, and with a second statistic another one for each."""
    kinds = (False,) if listed.claim.by is None else (False, True)
    return [RowPlan(listed, term, seed, scale, by) for by in kinds for _, term in listed.claim.terms]


def read_file(path: Path) -> ClaimFile:
    """The claims of a file; raises ConfigError, one line with the file and the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the claims, {reason_of(error)}") from None
    tree = parse_tree(text, str(path))
    try:
        return build(ClaimFile, tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {_without_advice(str(error))}") from None


def _without_advice(message: str) -> str:
    """A message without the hint to a command that lists the keys of recipes."""
    return message.removesuffix(" (tok1d config RECIPE --fields lists all)")


def read_claims(own: Sequence[Path] = ()) -> dict[str, Listed]:
    """The packaged claims and those of the user's files by id; raises ConfigError, also for an id that occurs twice."""
    found: dict[str, Listed] = {}
    for path in [*sorted(DATA.glob("*.yaml")), *own]:
        file = read_file(path)
        for claim in file.claims:
            if claim.id in found:
                raise ConfigError(f"{path}: claims: the id {claim.id} is there twice; choose another")
            found[claim.id] = Listed(claim, file)
            try:
                check_statistic(Listed(claim, file))
            except ConfigError as error:
                raise ConfigError(f"{path}: claim {claim.id}: {error}") from None
    return found


def chosen(claims: dict[str, Listed], names: Sequence[str], scale: ScaleName | None = None) -> list[Listed]:
    """The claims of these ids, all without any; raises ConfigError for an unknown one.

    Args:
        scale: leave out claims that are not measured at this scale; a ConfigError if one of them is named.
    """
    found = [claims[known_name(name, claims, "claim")] for name in names] if names else list(claims.values())
    if scale is None:
        return found
    for each in found if names else ():
        if scale not in each.claim.scales:
            raise ConfigError(
                f"--scale: {each.claim.id} is measured at {' and '.join(each.claim.scales)} only, got {scale}; "
                f"add --scale {each.claim.scales[0]}"
            )
    return [each for each in found if scale in each.claim.scales]


def check_statistic(listed: Listed) -> None:
    """Check that the statistic exists and reads its settings; raises ConfigError."""
    claim = listed.claim
    found = [("statistic", term.measurement(claim.statistic)) for _, term in claim.terms]
    for key, measurement in [*found, *([("by", claim.by)] if claim.by is not None else [])]:
        statistic = STATISTICS[known_name(measurement.name, STATISTICS, f"{key}.name")]
        for name in measurement.settings:
            if name not in statistic.reads:
                read = ", ".join(statistic.reads) or "no setting"
                raise ConfigError(f"{key}.{name}: {measurement.name} reads {read}; leave it out")


def check(listed: Listed, *, models: bool = False) -> None:
    """Check that all recipes of a claim resolve and that its statistic is of its arms.

    Args:
        models: build the models, too, without values.

    Raises:
        ConfigError: naming the claim.
    """
    claim = listed.claim
    try:
        for scale in claim.scales:
            for row in seed_plans(listed, claim.seeds[0], scale):
                of, kind = STATISTICS[row.statistic.name].of, row.plan.recipe.kind
                if kind != of and not (row.by and kind == "generator"):  # of a generator's tokenizer
                    raise ConfigError(f"{row.term.arm}: {row.statistic.name} is of a {of}, got a {kind}")
                _check_evaluate(row)
                if models:
                    _check_models(row.plan)
    except Tok1dError as error:
        raise ConfigError(f"claim {claim.id}: {error}") from None


def _check_evaluate(row: RowPlan) -> None:
    """Check the overrides of the section evaluate."""
    texts = [f"evaluate.{text}" for text in row.statistic.evaluate]
    if texts and not row.by:
        load_recipe(row.plan.name, [*row.plan.overrides, *texts])


def _check_models(plan: Plan) -> None:
    for other in plan.of.values():
        _check_models(other)
    try:
        forecast_notes(plan.recipe)
    except Tok1dError as error:
        raise ConfigError(f"arms.{plan.arm}: {error}") from None


def trainings(plan: Plan) -> list[Plan]:
    """The trainings of a plan in their order: those that it needs first."""
    found = [inner for other in plan.of.values() for inner in trainings(other)]
    return [*found, plan]


def hours(claims: Sequence[Listed], scale: ScaleName) -> float:
    """Estimated CPU-hours of the trainings of claims, each training once, without measurements.

    Claims with several seeds have those of the claims with fewer.
    """
    seconds: dict[str, float] = {}
    for listed in claims:
        seeds = listed.claim.seeds
        for _, term in listed.claim.terms if scale in listed.claim.scales else ():
            for plan in trainings(RowPlan(listed, term, seeds[0], scale).plan):
                one = plan.recipe.train.steps * listed.file.arms[plan.arm].step_seconds
                seconds[plan.key] = max(seconds.get(plan.key, 0.0), len(seeds) * one)
    return sum(seconds.values()) / 3600
