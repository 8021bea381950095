"""The command line of a benchmark: measures rows, stores their records and prints them."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from speed import records
from speed.common import Inputs, Rows
from speed.measure import matmul_limit, measure

from tok1d.errors import ConfigError, Tok1dError


@dataclass(frozen=True)
class Benchmark:
    """One benchmark script.

    Args:
        name: of the script, without ".py".
        text: its first line describes the script.
        options: adds the options of this benchmark.
        make: makes models and inputs from the command line, sizes and device; raises ConfigError.
        small, quick: the default sizes, and those of --quick.
        work: whether tables show the counted GFLOP instead of the speed of the release.
    """

    name: str
    text: str
    rows: Rows
    options: Callable[[argparse.ArgumentParser], None]
    make: Callable[[argparse.Namespace, Any, torch.device], Inputs]
    small: Any
    quick: Any
    work: bool = False

    def parser(self) -> argparse.ArgumentParser:
        """The command line."""
        parse = argparse.ArgumentParser(prog=f"{self.name}.py", description=self.text.splitlines()[0])
        rows = list(self.rows)
        parse.add_argument(
            "--only", nargs="+", choices=rows, metavar="ROW", default=rows, help="measure only these rows"
        )
        parse.add_argument("--list", action="store_true", help="list the rows and exit")
        parse.add_argument(
            "--repeats", type=positive, default=None, help="timed pairs per row (default 7, with --quick 2)"
        )
        parse.add_argument("--threads", type=positive, default=None, help="CPU threads (default: PyTorch's default)")
        parse.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
        parse.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast, only on cuda")
        self.options(parse)
        parse.add_argument("--out", type=Path, default=None, help="results file")
        parse.add_argument("--again", action="store_true", help="also measure rows that are in the results file")
        parse.add_argument("--quick", action="store_true", help="less work per row; results in runs/, not in results/")
        parse.add_argument("--markdown", action="store_true", help="print the results file as Markdown and exit")
        return parse

    def main(self, argv: list[str] | None = None, sizes: Any = None) -> int:
        """Run the command and return its exit code. `sizes` replaces the default sizes."""
        argv = sys.argv[1:] if argv is None else argv
        args = self.parser().parse_args(argv)
        if args.out is None:
            folder = Path("runs") if args.quick else Path(__file__).parents[1] / "results"
            args.out = folder / f"{self.name}-{args.device}{'-quick' if args.quick else ''}.json"
        try:
            if args.list:
                print("\n".join(self.rows))
            elif args.markdown:
                print(records.markdown(records.load(args.out), work=self.work))
            else:
                command = " ".join([f"python benchmarks/{self.name}.py", *argv])
                self.run(args, sizes or (self.quick if args.quick else self.small), command)
        except Tok1dError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    def run(self, args: argparse.Namespace, sizes: Any, command: str) -> None:
        """Measure the selected rows one after the other, and print each when it is done.

        Raises:
            ConfigError: the machine does not have the device or precision.
        """
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device: expected cpu, got cuda, but PyTorch finds no GPU")
        if args.precision == "bf16" and args.device == "cpu":
            raise ConfigError("--precision: expected fp32 on a CPU, got bf16, which is slower there")
        device = torch.device(args.device)
        bench = self.make(args, sizes, device)
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        repeats = args.repeats or (2 if args.quick else 7)
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        limit = matmul_limit(device, dtype, sizes.gemm * (4 if device.type == "cuda" else 1))
        setting = {**records.machine(device, args.precision, command), "sizes": sizes.name}
        print(textwrap.fill(records.conditions([{**setting, "matmul_gflops": limit}]), 100))
        print(records.text_lines(records.header(self.work)), flush=True)
        present = {records.key(record): record for record in records.load(args.out)}
        for name in args.only:
            for row in self.rows[name](bench):
                record = present.get(records.key({**setting, "row": row.name}))
                if record is None or args.again:
                    record = {**measure(row, repeats, sizes.min_seconds, device, limit), **setting}
                    records.store(args.out, record)
                print(records.text_lines(records.lines(record, self.work)), flush=True)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
