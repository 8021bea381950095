"""`tok1d.evaluate`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from tok1d.api.settings import settings_of
from tok1d.errors import InputError
from tok1d.evaluate.baselines import verdict
from tok1d.evaluate.job import Job
from tok1d.evaluate.prepare import Opened, prepare
from tok1d.evaluate.report import html_table, shared_protocol, table
from tok1d.evaluate.request import Generation, Reconstruction, Request
from tok1d.generators.base import Generator
from tok1d.zoo.checkpoints import is_generator
from tok1d.zoo.record import Record, write_records


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Metrics with their protocols; prints as a table.

    Args:
        records: one for each metric and number of tokens, baselines included.
        all_tokens: whether images from all tokens were measured; else nothing is said about what the model has learned.
    """

    records: list[Record]
    all_tokens: bool = True

    def value(self, name: str, *, keep: int | None = None) -> float:
        """The value of a metric such as "psnr", of all tokens or of the first `keep`.

        Raises:
            InputError: there is none; the message lists the names.
        """
        found = [each for each in self.records if each.name == name and (keep is None or each.keep == keep)]
        values = [each for each in found if each.value is not None]
        if not values:
            known = ", ".join(dict.fromkeys(each.name for each in self.records))
            raise InputError(
                f"{name}: expected one of {known or 'no metric'}; {found[0].note if found else 'not measured'}"
            )
        best = max(values, key=lambda each: each.keep or 0)
        assert best.value is not None
        return best.value

    def save(self, path: str | Path) -> None:
        """Write the records as JSON, as `--out` of the command; raises DataError."""
        write_records(path, self.records)

    def __repr__(self) -> str:
        if not self.records:
            return "Evaluation(no records)"
        text = io.StringIO()
        console = Console(file=text, width=120, markup=False, highlight=False)
        console.print(table(self.records))
        for line in (shared_protocol(self.records), verdict(self.records) if self.all_tokens else ""):
            if line:
                console.print(line)
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        return html_table(self.records) if self.records else "<p>no records</p>"


def evaluate(
    model: str | Path | nn.Module,
    data: str | Path = "",
    *,
    out: str | Path | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Evaluation:
    """Measure reconstructions of a tokenizer, or samples of a generator; as `tok1d evaluate`.

        >>> import tok1d
        >>> found = tok1d.evaluate("fashion-mnist-maetok", "fashion_mnist", num=16, metrics=["psnr"])
        >>> found.value("psnr") > 5  # in dB
        True

    Args:
        model: a name or folder, or a loaded model.
        data: fashion_mnist, emoji, or a folder of images, shards or a saved data set.
        out: also write the records to this JSON file.
        quiet: no progress bar.
        settings: of `tok1d evaluate reconstruction` or `generation`: num or num_samples, keep, metrics, split, classes,
            guidance, device, ...

    Raises:
        Tok1dError: model, data, metrics or settings that are missing or do not fit together.
    """
    opened, name = Opened(), str(model)
    if isinstance(model, nn.Module):
        name, device = str(getattr(model, "folder", type(model).__name__)), str(next(model.parameters()).device)
        settings = {"device": device, **settings}
        held: Any = model
        generates = isinstance(model, Generator)
        if isinstance(model, Generator):
            partner: tuple[nn.Module, ...] = model.partner
            if not partner:
                raise InputError("model: expected a generator with its tokenizer; load it with tok1d.load_pair")
            held = (model, partner[0])
        opened.once("model", (name, device), lambda: held)
    else:
        generates = is_generator(name)
    kind: type[Request] = Generation if generates else Reconstruction
    request = settings_of(kind, {"model": name, "data": str(data), **settings}, "evaluate")
    prepared = prepare(request, opened)
    found = Evaluation(prepared.measure(job=Job(quiet=quiet), with_baselines=True), prepared.all_tokens)
    if out is not None:
        found.save(out)
    return found
