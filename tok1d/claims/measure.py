"""Making a row: train what is missing, measure the statistic, and check the regime."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from tok1d import locks
from tok1d.claims import regime
from tok1d.claims.claim import Measurement
from tok1d.claims.plan import Plan, RowPlan
from tok1d.claims.regime import Checked, Condition, DecoderFloor, ErrorBelowPca, LossFlat
from tok1d.claims.rows import Row, read_row
from tok1d.claims.statistics import STATISTICS
from tok1d.claims.trained import Trained
from tok1d.config.fields import to_mapping
from tok1d.config.load import to_yaml
from tok1d.errors import ConfigError, DataError
from tok1d.evaluate.training_networks import training_networks, why_not
from tok1d.train import folder, run
from tok1d.train.log import read_log
from tok1d.zoo import store
from tok1d.zoo.record import BASELINE, read_records
from tok1d.zoo.weights import fingerprint


class Busy(Exception):
    """Another process trains or measures what is wanted."""


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock next to a file or folder; raises Busy if another process holds it."""
    with ExitStack() as held:
        try:
            held.enter_context(locks.hold(path.with_name(f".{path.name}.lock"), str(path)))
        except ConfigError as error:
            raise Busy(str(error)) from None
        yield


def train(plan: Plan, runs: Path) -> None:
    """Train an arm and first the arms that it needs, as far as their runs are not finished; resumes.

    Raises:
        Busy: another process trains one of them.
        Tok1dError: as `run.train`.
    """
    for other in plan.of.values():
        train(other, runs)
    recipe = plan.at(runs)
    out = Path(recipe.out)
    if folder.is_finished(out):
        return
    with alone(out):
        if not folder.is_finished(out):
            print(
                f"training {plan.arm}: {plan.name}, seed {recipe.seed}, {recipe.train.steps:,} steps, in {out}",
                flush=True,
            )
            run.train(recipe, name=plan.name)


def trained(plan: Plan, runs: Path, num: int) -> Trained:
    """The finished run of a plan."""
    return Trained(plan.at(runs), num, None if plan.tokenizer is None else trained(plan.tokenizer, runs, num))


def measure(row: RowPlan, runs: Path, rows: Path) -> Row:
    """Train, measure and write a row.

    Raises:
        Busy: another process works on the row or on one of its trainings.
        Tok1dError: a training or a measurement that fails.
    """
    path = row.path(rows)
    with alone(path):
        train(row.plan, runs)
        began = time.perf_counter()
        print(f"measuring {row}", flush=True)
        arm, statistic = trained(row.plan, runs, row.num), STATISTICS[row.statistic.name]
        assert statistic.function is not None, "rows of other statistics are not planned"
        known = known_value(row, rows)
        of = arm.tokens if statistic.of == "tokenizer" else arm
        value = statistic.function(of, row.statistic) if known is None else known
        conditions = [
            each for each in row.listed.claim.regime if row.term.arm in (getattr(each, "arms", ()) or (row.term.arm,))
        ]
        outcomes = [found for condition in conditions if (found := checked(condition, arm)) is not None]
        hashes = {"model": fingerprint(arm.model)}
        hashes |= {} if arm.of is None else {"tokenizer": fingerprint(arm.tokenizer)}
        made = Row(
            claim=row.listed.claim.id,
            arm=row.label,
            seed=row.seed,
            scale=row.scale,
            key=row.key,
            statistic=to_mapping(row.statistic),
            value=float(value),
            unit=statistic.unit,
            num_images=row.num,
            regime=outcomes,
            run=row.plan.key,
            recipe=row.plan.name,
            overrides=list(row.plan.overrides),
            steps=arm.recipe.train.steps,
            weights_hash=hashes,
            device=arm.device,
            seconds={"training": seconds_of(arm), "measurement": round(time.perf_counter() - began, 1)},
            commit=run.code_version(),
            torch=torch.__version__,
        )
        made.write(path)
        return made


def known_value(row: RowPlan, rows: Path) -> float | None:
    """The value of a row of another claim that is the same measurement of the same training."""
    for path in sorted((rows / row.scale).glob("*/*.json")):
        with suppress(DataError):  # reported where its own claim is judged
            if (other := read_row(path)).key == row.key:
                return other.value
    return None


def seconds_of(arm: Trained) -> float:
    """Time of the training in seconds, from the card of its model."""
    return float(store.read_config(arm.run / "model")[1].trained.get("seconds", 0.0))


def checked(condition: Condition, arm: Trained) -> Checked | None:
    """The outcome of a condition for an arm; None if it is not about arms of its kind."""
    if isinstance(condition, LossFlat):
        return _loss_flat(condition, arm)
    if isinstance(condition, ErrorBelowPca):
        return _error_below_pca(arm.tokens)
    if isinstance(condition, DecoderFloor):
        return _decoder_floor(condition, arm) if arm.of is not None else None
    return regime.teacher_not_judge(why_not(arm.judge, training_networks(to_yaml(arm.recipe))), arm.judge)


def _loss_flat(condition: LossFlat, arm: Trained) -> Checked:
    """Of the arm's own training, and of its tokenizer's: the first that fails, else the arm's."""
    found = []
    for each in filter(None, (arm, arm.of)):
        losses = [
            sum(
                float(value)
                for key, value in entry.items()
                if key.startswith("loss") and isinstance(value, int | float)
            )
            for entry in read_log(each.run / "log.jsonl")
        ]
        found.append(regime.loss_flat(losses, condition.tolerance))
    return next((each for each in found if not each.holds), found[0])


def _error_below_pca(arm: Trained) -> Checked:
    """From the report at the end of the tokenizer's training."""
    report = read_records(arm.run / "report.json")
    errors = {record.keep: record.value for record in report if record.name == "mse" and record.keep is not None}
    prefix = f"{BASELINE}pca-"
    components = {
        int(record.name.removeprefix(prefix).partition(":")[0]): record.value
        for record in report
        if record.name.startswith(prefix) and record.name.endswith(":mse")
    }
    if not errors or not components:
        raise DataError(
            f"{arm.run / 'report.json'}: expected the error and principal components beside it, got neither"
        )
    error, (half, baseline) = errors[max(errors)], min(components.items())
    assert error is not None and baseline is not None
    return regime.error_below_pca(error, baseline, half)


def _decoder_floor(condition: DecoderFloor, arm: Trained) -> Checked:
    """Both distances with the network of the evaluation, of as many images as samples."""
    plain = Measurement(name="fd")
    keep = arm.generator.config.num_tokens
    distances = [
        next(value for name, value in found.items() if name in ("fd", "rfid", "gfid"))
        for found in (arm.tokens.records(plain, keep if arm.tokenizer.spec.ordered else None), arm.records(plain))
    ]
    return regime.decoder_floor(distances[0], distances[1], condition.share)
