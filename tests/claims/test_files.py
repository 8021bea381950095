"""Claim files: the packaged ones resolve, and a mistake is one line."""

from collections.abc import Callable
from dataclasses import make_dataclass
from functools import cache
from pathlib import Path

import pytest

from tok1d.claims import plan
from tok1d.claims.claim import SCALES, ClaimFile
from tok1d.claims.plan import RowPlan
from tok1d.claims.statistics import STATISTICS, missing
from tok1d.cli import app as cli
from tok1d.config.fields import flat, to_mapping

Tiny = Callable[..., str]
FILE = """
paper: Mine
scales:
  quick: {{num: 64, tokenizer: [train.steps=3]}}
  small: {{num: 64, tokenizer: [train.steps=4]}}
arms:
  a: {{recipe: {tokenizer}, step_seconds: 0.1}}
  b: {{recipe: {tokenizer}, overrides: [model.nested.enabled=false], step_seconds: 0.1}}
  g: {{recipe: {generator}, overrides: [tokenizer=<a>], step_seconds: 0.1}}
claims:
- id: mine
  section: section 1
  statement: Something holds.
  statistic: {{name: mse, keep: 1}}
  plus: [a]
  minus: [b]
  expected: lower
  margin: 0.1
  regime: [{{name: loss_flat}}]
"""


def written(tmp_path: Path, tiny: Tiny, *changes: tuple[str, str]) -> Path:
    """A claim file with some text replaced."""
    text = FILE.format(tokenizer=tiny("tokenizer"), generator=tiny("generator", tokenizer="fashion-mnist-semanticist"))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_packaged_claims_resolve() -> None:
    """Every recipe of every arm, at both scales, with its models on the meta device; nothing is read or trained."""
    claims = plan.read_claims()
    assert len(claims) >= 30
    assert {each.file.paper for each in claims.values()} == {"Semanticist", "MAETok", "SMAP"}
    for each in claims.values():
        plan.check(each, models=True)
        assert all((plan.hours([each], scale) > 0) == (scale in each.claim.scales) for scale in SCALES)
        assert each.claim.statement.endswith(".") and each.claim.section


def settings(arm: str, file: str = "smap") -> dict[str, object]:
    """The recipe of a packaged arm by key."""
    return flat(to_mapping(plan.resolve(packaged(file), arm, "small", 0).recipe), ("out", "seed", "cache"))


@cache
def packaged(name: str) -> ClaimFile:
    return plan.read_file(plan.DATA / f"{name}.yaml")


def different(first: str, second: str, file: str = "smap") -> set[str]:
    """The keys of a recipe in which two arms differ; those below a section `model.x` are named `model.x`."""
    a, b = settings(first, file), settings(second, file)
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and not key.startswith(("card.", "base"))}


@pytest.mark.parametrize("length", ["", "-8", "-4", "-2"])
def test_the_arms_of_condition_and_truncation_differ_in_these_alone(length: str) -> None:
    smap, full, plain = f"smap{length}", f"smap{length}-full", f"no-condition{length}"
    assert different(smap, full) == {"model.tail_drop.enabled"} == different(plain, f"{plain}-full")
    assert different(smap, plain) == {"model.condition_on"} == different(full, f"{plain}-full")
    assert settings(smap)["model.num_tokens"] == int(length.strip("-") or 16)


@pytest.mark.parametrize(("smap", "titok"), [("smap", "titok-kl"), ("vq", "titok-vq")])
def test_the_arms_of_titok_match_those_of_smap(smap: str, titok: str) -> None:
    """Networks, bottleneck and training are equal wherever TiTok has the setting; what differs is the method."""
    ours, theirs = settings(smap), settings(titok)
    common = {key for key in ours.keys() & theirs.keys() if not key.startswith("card.")}
    assert {
        f"model.{side}.{key}" for side in ("encoder", "decoder") for key in ("rotary", "layer_scale", "registers")
    } <= common
    assert {key for key in common if ours[key] != theirs[key]} == {
        "model.name",
        "model.encoder.norm_eps",
        "model.decoder.norm_eps",
    }


def test_the_other_arms_differ_in_what_they_are_named_for() -> None:
    def semanticist(first: str, second: str) -> set[str]:
        return different(first, second, "semanticist")

    assert semanticist("nested", "plain") == {"model.nested.enabled"} == semanticist("ddpm-nested", "ddpm-plain")
    for shape in ("widest", "wide", "narrow"):
        assert semanticist("nested", shape) == {"model.num_tokens", "model.token_dim"}
        found = settings(shape, "semanticist")
        assert int(str(found["model.num_tokens"])) * int(str(found["model.token_dim"])) == 128
    assert different("ae", "masked", "maetok") == {"model.mask.low", "model.mask.high"}
    frozen, control = settings("masked-finetuned", "maetok"), settings("ae-finetuned", "maetok")
    assert {key for key in frozen if key.startswith("train.") and frozen[key] != control[key]} == set()
    assert different("card-emoji", "card-emoji-random") == {"model.class_source"}
    assert different("card", "card-prefix") == {"model.modulation", "model.start"}


def test_every_claim_of_the_issue_is_there() -> None:
    """Claims of each kind that the three papers make; each is measured, or states why it is not."""
    claims = plan.read_claims()
    unavailable = {name for name, each in claims.items() if missing(each.claim)}
    assert unavailable == {"maetok-512-at-the-cost-of-256"}
    lengths = [f"smap-{what}{n}" for n in ("", "-8", "-4", "-2")
               for what in ("truncation", "condition", "condition-and-truncation", "truncation-score")]  # fmt: skip
    assert {
        *lengths,
        "smap-sharing-over-random",
        "smap-adaptive-norm",
        "maetok-probe-predicts-samples",
    } <= claims.keys()
    headline = [each.claim for each in claims.values() if each.claim.headline]
    assert {each.id.split("-")[0] for each in headline} == {"semanticist", "maetok", "smap"}
    assert all(each.seeds == [0, 1, 2] for each in headline)


def test_the_quick_scale_is_about_an_hour_on_two_cores() -> None:
    """The trainings take at most 1.2 hours of one core; the measurements have the rest."""
    assert plan.hours(list(plan.read_claims().values()), "quick") < 1.2


def test_arms_of_a_paper_are_used() -> None:
    for path in sorted(plan.DATA.glob("*.yaml")):
        file = plan.read_file(path)
        used = {term.arm for claim in file.claims for _, term in claim.terms}
        used |= {name for arm in file.arms.values() for name in arm.needs}
        assert used == file.arms.keys()


def test_statistics_without_a_function_state_what_is_missing() -> None:
    assert all((statistic.function is None) == bool(statistic.missing) for statistic in STATISTICS.values())


def test_equal_trainings_have_one_key() -> None:
    """Whatever the name of the arm, and also where a model is trained on another one."""
    claims = plan.read_claims()

    def keys(name: str, seed: int = 0) -> dict[str, str]:
        listed = claims[name]
        return {term.label: RowPlan(listed, term, seed, "quick").plan.key for _, term in listed.claim.terms}

    assert keys("semanticist-order")["nested"] == keys("semanticist-variance-adds-up")["nested"]
    assert keys("semanticist-semantics-rise")["all-tokens"] == keys("semanticist-order")["nested"]
    assert keys("maetok-masking-eases-tokens")["sit-ae"] == keys("maetok-unconditional-gap")["sit-ae"]
    assert keys("semanticist-order")["nested"] != keys("semanticist-order", seed=1)["nested"]
    assert len(set(keys("maetok-vae-gains-less").values())) == 4
    inner = RowPlan(
        claims["maetok-finetuning-recovers"], claims["maetok-finetuning-recovers"].claim.plus[0], 0, "quick"
    )
    assert inner.plan.of["masked"].key == keys("maetok-finetuning-recovers")["masked"]


def test_settings_that_count_for_a_key() -> None:
    """A field that is added later leaves keys as they are; another class with the same settings does not."""
    old = make_dataclass("Old", [("name", str, "a"), ("width", int, 4), ("depth", int, 2)])
    new = make_dataclass("New", [("name", str, "a"), ("width", int, 4), ("depth", int, 2), ("late", bool, False)])
    assert plan.settings(new(width=8)) == plan.settings(old(width=8)) == {"name": "a", "width": "8"}
    assert plan.settings(new(late=True)) == {"name": "a", "late": "true"}
    assert plan.settings(new(name="b")) == {"name": "b"} and plan.settings(new(late=True), ("late",)) == {"name": "a"}


def test_the_same_training_with_another_measurement_is_another_row() -> None:
    listed = plan.read_claims()["semanticist-semantics-rise"]
    all_tokens, first = (RowPlan(listed, term, 0, "quick") for _, term in listed.claim.terms)
    assert all_tokens.plan.key == first.plan.key and all_tokens.key != first.key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("  section: section 1\n", ""), "claims[0].section: required"),
        (("expected: lower", "expected: less"), "claims[0].expected: expected"),
        (("margin: 0.1", "margin: 0"), "claims[0].margin: expected"),
        (("  regime:", "  sedes: [1]\n  regime:"), "claims[0].sedes: unknown key; did you mean claims[0].seeds?"),
        (("minus: [b]", "minus: [c]"), "claims[0].minus[0]: expected one of the arms a, b, g, got 'c'"),
        (("minus: [b]", "minus: []"), "minus: expected at least one arm"),
        (("minus: [b]", "minus: [a]"), "two terms have rows of the name a"),
        (("name: mse, keep: 1", "name: mes"), "claim mine: statistic.name: expected"),
        (("name: mse, keep: 1", "name: idle_share, keep: 1"), "statistic.keep: idle_share reads no setting"),
        (("name: mse, keep: 1", "name: sample_fd"), "a: sample_fd is of a generator, got a tokenizer"),
        (("name: loss_flat", "name: error_below_pca_half, arms: [c]"), "error_below_pca_half: expected arms of "),
        (("name: loss_flat", "name: loss_falt"), "claims[0].regime[0].name: expected"),
        (("model.nested.enabled=false", "model.nested.enable=false"), "arms.b: model.nested.enable: unknown key"),
        (("model.nested.enabled=false", "init_from=<c>"), "arms.b.overrides: <c> is no arm, expected a, b, g"),
        (("model.nested.enabled=false", "init_from=<b>"), "arms.b.overrides: the arm needs itself"),
        (("[tokenizer=<a>]", "[]"), "a generator needs an arm as its tokenizer"),
        (("[train.steps=3]", "[train.steps=0]"), "arms.a: train.steps: expected"),
        (("id: mine", "id: smap-size"), "the id smap-size is there twice"),
        (("id: mine", "id: my/claim"), "claims[0].id: expected letters"),
        (("paper: Mine", "paper: [Mine"), "not valid YAML"),
        (("keep: 1", "keep: 1, evaluate: [step=3]"), "claim mine: evaluate.step: unknown key"),
        (("margin: 0.1", "margin: 0.1\n  scales: [huge]"), "claims[0].scales[0]: expected"),
        (
            ("margin: 0.1", "margin: 0.1\n  scales: []"),
            "claims[0].scales: expected one or both of quick, small, got []",
        ),
        (("margin: 0.1", "margin: 0.1\n  seeds: [0, 0]"), "claims[0].seeds: expected different seeds"),
        (("margin: 0.1", "margin: 0.1\n  spread_from: yours"), "claims[0].spread_from: expected a claim of this file"),
        (
            ("margin: 0.1", "margin: 0.1\n  by: {name: psnr}"),
            "by: a correlation needs at least 4 arms in plus and none",
        ),
        (("margin: 0.1", "margin: high"), "claims[0].margin: expected"),
        (("claims:", "claim:"), "claim: unknown key; did you mean claims?"),
        (("arms:", "scales: {}\narms:"), "scales"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(
    change: tuple[str, str], said: str, tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = (
        [change, ("plus: [a]", "plus: [g]"), ("minus: [b]", "minus: [a]")] if "tokenizer=<a>" in change[0] else [change]
    )
    path = written(tmp_path, tiny, *changes)
    out = tmp_path / "out"
    assert cli.run(["reproduce", "mine", "--file", str(path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error
    assert not out.exists()


def test_an_unknown_recipe_and_a_missing_file(tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, tiny, (f"a: {{recipe: {tiny('tokenizer')}", "a: {recipe: fashion_mnist/smapp"))
    assert cli.run(["reproduce", "mine", "--file", str(path)]) == 2
    assert "arms.a: recipe 'fashion_mnist/smapp': unknown name" in capsys.readouterr().err
    assert cli.run(["reproduce", "--list", "--file", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot read the claims" in capsys.readouterr().err
    assert cli.run(["reproduce", "semanticist-ordre"]) == 2
    assert "did you mean semanticist-order" in capsys.readouterr().err
