"""The outcome of claims as a Markdown page and as one HTML page without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tok1d.claims.claim import SCALES, Listed, Measurement
from tok1d.claims.plan import hours
from tok1d.claims.rows import Outcome, Row
from tok1d.claims.statistics import STATISTICS
from tok1d.claims.verdict import Verdict

STATES = ("shown", "opposite", "bounded", "not established", "out of regime", "not run")
HEAD = """# Claims of the papers

This page is written from stored rows, by `python benchmarks/claims_pages.py`; do not edit it. `tok1d reproduce ID`
trains and measures what a claim needs and stores one row for each arm and seed; with `--report` it writes such a page
from rows of yours. The claims are in `tok1d/claims/data/`; `--file` reads a file of your own. The models are small and
the images simple, so a verdict is about this scale, not about the paper's.

The scale quick has short trainings, about an hour on two cores for all claims that have it, in two processes; small is
the one for the figures of this page.

The difference of a claim is a sum of its statistic over some arms minus that over others, for each seed. Verdicts, from
the 95 % interval (Student's t) of its mean over the seeds, and the margin, the smallest difference that counts. A claim
about a correlation of two statistics over arms has Fisher's interval in its place:

- **shown**: the interval lies on the side of 0 that the paper states, and the mean is at least the margin;
- **opposite**: the same on the other side;
- **bounded**: the interval lies within the margin, so an effect of that size is excluded;
- **not established**: none of these; always with one seed, unless the spread between seeds is known from a claim with
  several seeds and the same statistic;
- **out of regime**: a condition fails under which the statement could show at all;
- **not run**: rows are missing, or the library cannot measure the statistic yet."""
CONDITIONS = """Conditions: `loss_flat`, the training loss changes by at most 6 % between its last two tenths, beyond
two standard errors of that change (it falls by 2 to 4 % there in the trainings of all bundled models, of 2,500 to
24,000 steps, while their rate falls to zero; the limit was 2 % until the first rows, of which none held it, and without
the standard errors, of 1 to 2 %, until one of nine trainings exceeded 6 % by less than one of them);
`error_below_pca_half`, the error is below that of principal components with half as many numbers as the
tokens; `decoder_floor`, the distance of reconstructions is at most a third of that of samples;
`teacher_not_judge`, the measuring network did not train the models. Hours are estimates for one CPU
core, of the trainings alone, each claim on its own; trainings that claims share are made once. The margins of
`reconstruction_fd` in the claims of SMAP were 0.5 until the first rows, which showed that the distance to improve is
only 0.2 with 16 tokens. They are 0.05 between KL tokenizers of 16 tokens, or of 8, and 0.25 between those of 4.
The claims of SMAP on shared class vectors of emoji measured `sample_fd` until the first two rows, 182.1 and 181.8. They
were out of regime: the decoder's distance is as large, and all arms have the same decoder."""


def difference_text(outcome: Outcome) -> str:
    """The comparison of a claim as text: "nested - plain, lower, margin 0.5"."""
    claim = outcome.listed.claim
    if claim.by is not None:
        arms = ", ".join(term.label for term in claim.plus)
        return f"correlation over {arms}, {claim.expected}, margin {claim.margin:g}"
    plus, minus = (" + ".join(term.label for term in found) for found in (claim.plus, claim.minus))
    several = len(claim.plus) > 1 or len(claim.minus) > 1
    shown = f"({plus}) - ({minus})" if several else f"{plus} - {minus}"
    return f"{shown}, {claim.expected}, margin {claim.margin:g}"


def statistic_text(outcome: Outcome) -> str:
    """The statistic of a claim with its settings, and the second one of a correlation."""
    claim = outcome.listed.claim
    return " with ".join(_measurement(each) for each in (claim.statistic, claim.by) if each is not None)


def _measurement(given: Measurement) -> str:
    settings = ", ".join(
        ", ".join(map(str, value)) if isinstance(value, list) else f"{name}={value}"
        for name, value in given.settings.items()
    )
    unit = STATISTICS[given.name].unit
    return f"`{given.name}`{f' ({settings})' if settings else ''}{f', {unit}' if unit else ''}"


def measured_text(outcome: Outcome) -> str:
    """The statistic of every arm, its mean and range over the seeds, and the size of trainings; "" without rows."""
    arms: dict[str, list[Row]] = {}
    for (label, _), row in outcome.rows.items():
        arms.setdefault(label, []).append(row)
    if not arms:
        return ""
    values = []
    for label, rows in arms.items():
        found = [row.value for row in rows]
        spread = f" ({min(found):.4g} to {max(found):.4g})" if len(found) > 1 else ""
        values.append(f"{label} {sum(found) / len(found):.4g}{spread}")
    steps = {label: rows[0].steps for label, rows in arms.items()}
    if len(set(steps.values())) == 1:
        trained = f"{next(iter(steps.values())):,} training steps"
    else:
        trained = "training steps: " + ", ".join(f"{label} {count:,}" for label, count in steps.items())
    return f"{', '.join(values)}; {trained}"


def cost_text(outcome: Outcome) -> str:
    """Estimated CPU-hours at both scales."""
    return hours_text(outcome.listed)


def hours_text(listed: Listed) -> str:
    """Estimated CPU-hours of a claim at both scales, "-" for one at which it is not measured."""
    return " / ".join(f"{hours([listed], scale):.1f}" if scale in listed.claim.scales else "-" for scale in SCALES)


def counts(outcomes: Sequence[Outcome]) -> str:
    """How many claims have each verdict."""
    found = [each.verdict.state for each in outcomes]
    return ", ".join(f"{found.count(state)} {state}" for state in STATES if state in found)


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The page docs/claims.md."""
    total = " / ".join(f"{hours([each.listed for each in outcomes], scale):.0f}" for scale in SCALES)
    summary = f"{len(outcomes)} claims: {counts(outcomes)}. All trainings together: {total} CPU-hours, quick / small."
    parts = [HEAD, CONDITIONS, summary]
    for paper in dict.fromkeys(each.listed.file.paper for each in outcomes):
        some = [each for each in outcomes if each.listed.file.paper == paper]
        arxiv = some[0].listed.file.arxiv
        parts.append(f"## {paper}{f' (arXiv {arxiv})' if arxiv else ''}")
        head = ("claim", "place", "verdict", "seeds", "hours, quick / small")
        rows = [
            (
                f"`{each.listed.claim.id}`",
                each.listed.claim.section,
                f"{each.verdict.state}{f' ({each.scale})' if each.scale else ''}",
                str(len(each.verdict.differences) or len(each.listed.claim.seeds)),
                cost_text(each),
            )
            for each in some
        ]
        parts.append("\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * 5, *rows)]))
        parts += [_section(each) for each in some]
    return "\n\n".join([*parts, "## Statistics", _statistics()]) + "\n"


def _statistics() -> str:
    """The table of the statistics that a claim file can name."""
    rows = [("statistic", "of a", "what", "settings")]
    rows.append(("---",) * 4)
    for name, each in STATISTICS.items():
        what = f"{each.about}{f', in {each.unit}' if each.unit else ''}"
        rows.append((f"`{name}`", each.of, f"{what}; {each.missing}" if each.missing else what, ", ".join(each.reads)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _section(outcome: Outcome) -> str:
    claim = outcome.listed.claim
    regime = ", ".join(f"`{condition.name}`" for condition in claim.regime) or "none"
    measured = measured_text(outcome)
    return "\n".join(
        [
            f"### {claim.id}",
            "",
            f"{claim.statement} ({claim.section})",
            "",
            f"- compared: {difference_text(outcome)}; {statistic_text(outcome)}; conditions: {regime}",
            f"- **{outcome.verdict.state}**: {outcome.verdict.reason}",
            *([f"- measured: {measured}"] if measured else []),
            f"- command: `{command_text(outcome)}`",
        ]
    )


def command_text(outcome: Outcome) -> str:
    """The command that makes the rows of the verdict, those of the spread between seeds included."""
    claim = outcome.listed.claim
    scale = outcome.scale or (claim.scales[0] if len(claim.scales) == 1 else "")
    option = f" --scale {scale}" if scale else ""
    return " ".join(["tok1d reproduce", *([claim.spread_from] if claim.spread_from else []), claim.id]) + option


def summary(outcomes: Sequence[Outcome]) -> str:
    """A short table of claims for another page: id, verdict, and the difference with its interval."""
    rows = [("claim", "verdict", "difference"), ("---",) * 3]
    for each in outcomes:
        verdict = each.verdict
        link = f"[`{each.listed.claim.id}`](claims.md#{each.listed.claim.id})"
        rows.append((link, f"{verdict.state}{f' ({each.scale})' if each.scale else ''}", verdict.figures))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}
td,th{border-bottom:1px solid #ddd;padding:.2rem .8rem;text-align:left}
.state{font-weight:600}svg{display:block;margin:.4rem 0}section{border-top:1px solid #ddd;padding:.6rem 0}"""


def html(outcomes: Sequence[Outcome]) -> str:
    """The report as one self-contained page."""
    parts = ["<h1>Claims of the papers</h1>", f"<p>{len(outcomes)} claims: {counts(outcomes)}.</p>"]
    for each in outcomes:
        claim = each.listed.claim
        parts.append(
            f"<section><h2>{escape(claim.id)}</h2>"
            f"<p>{escape(claim.statement)} ({escape(each.listed.file.paper)}, {escape(claim.section)})</p>"
            f"<p>{escape(difference_text(each))}; {escape(statistic_text(each).replace('`', ''))}</p>"
            f'<p><span class="state">{each.verdict.state}</span>: {escape(each.verdict.reason)}</p>'
            f"{picture(each.verdict, claim.margin)}{_table(each)}</section>"
        )
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>tok1d reproduce</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _table(outcome: Outcome) -> str:
    """The measured rows of a claim."""
    if not outcome.rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("arm", "seed", "value", "steps", "training", "conditions"))
    rows = [
        f"<tr><td>{escape(label)}</td><td>{seed}</td><td>{row.value:.5g}</td><td>{row.steps:,}</td>"
        f"<td>{row.seconds['training']:.0f} s</td>"
        f"<td>{escape('; '.join(f'{each.name}: {each.figures}' for each in row.regime))}</td></tr>"
        for (label, seed), row in outcome.rows.items()
    ]
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def picture(found: Verdict, margin: float, width: int = 480) -> str:
    """The differences (dots), their interval (line) and the margin on both sides of 0 (band) as SVG; "" without any."""
    if found.mean is None:
        return ""
    ends = [*found.differences, margin, -margin, *(value for value in (found.low, found.high) if value is not None)]
    low, high = min(ends), max(ends)
    scale = (width - 20) / (high - low)

    def x(value: float) -> str:
        return f"{10 + (value - low) * scale:.1f}"

    lines = [
        f'<rect x="{x(-margin)}" y="4" width="{2 * margin * scale:.1f}" height="32" fill="#e8e8e8"/>',
        f'<line x1="{x(0)}" x2="{x(0)}" y1="0" y2="40" stroke="#666"/>',
    ]
    if found.low is not None and found.high is not None:
        lines.append(
            f'<line x1="{x(found.low)}" x2="{x(found.high)}" y1="20" y2="20" stroke="#0b62a8" stroke-width="3"/>'
        )
    lines += [f'<circle cx="{x(value)}" cy="20" r="4" fill="#0b62a8"/>' for value in found.differences]
    label = f"differences {', '.join(f'{value:.4g}' for value in found.differences)}; margin {margin:g}"
    return f'<svg width="{width}" height="40" role="img" aria-label="{label}">{"".join(lines)}</svg>'
