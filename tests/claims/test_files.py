"""Claim files: the packaged ones resolve, and a mistake is one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tok1d.claims import plan
from tok1d.claims.claim import SCALES
from tok1d.claims.plan import RowPlan
from tok1d.claims.statistics import STATISTICS
from tok1d.cli import app as cli

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
        assert all(plan.hours([each], scale) > 0 for scale in SCALES)
        assert each.claim.statement.endswith(".") and each.claim.section


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
