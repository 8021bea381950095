"""`tok1d evaluate explain`: compares the settings of two measured numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from tok1d.cli.options import PATH

NUMBER_HELP = (
    "a JSON file of records, a run or model folder, a bundled model, or a published protocol such as maetok/rfid or "
    "maetok/gfid_512 (semanticist, maetok, smap, titok, sit, llamagen, mar; a bare name is its gFID)"
)


def evaluate_explain(
    a: Annotated[str, typer.Argument(help=NUMBER_HELP, show_default=False), PATH],
    b: Annotated[str, typer.Argument(help="the second number, in the same forms as A", show_default=False), PATH],
    metric: Annotated[
        str,
        typer.Option(
            help="metric to compare, such as psnr or label_agreement@NETWORK[@HASH]; default: a Fréchet distance"
        ),
    ] = "",
    keep: Annotated[
        int | None,
        typer.Option(min=0, help="number of tokens of the record to compare; default: the most tokens"),
    ] = None,
    brief: Annotated[bool, typer.Option("--brief", help="print only the differences and the verdict")] = False,
    sources: Annotated[bool, typer.Option("--sources", help="also print the sources of published settings")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Compare the settings of two measured numbers, and state whether the numbers can be compared.

    Differences are listed in the order of their usual effect on the number.
    """
    import json

    from rich.console import Console

    from tok1d.evaluate.explain import explain, table

    found = explain(a, b, metric=metric, keep=keep)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    console = Console(highlight=False, markup=False)
    for facts in (found.a, found.b):
        console.print(f"{facts.name}: {facts.about}", soft_wrap=True)
    if not brief:
        console.print(table(found))
    if found.differences:
        console.print("Differences, the one with the largest usual effect first:")
    for number, line in enumerate(found.differences, start=1):
        console.print(
            f"{number:3d}. {line.title}: {line.a} against {line.b} ({line.reason_for(found.metric)})", soft_wrap=True
        )
    console.print(found.verdict, soft_wrap=True)
    for facts in (found.a, found.b) if sources else ():
        for key, source in facts.sources.items():
            console.print(f"{facts.name} {key}: {source}", soft_wrap=True)
