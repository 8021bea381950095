"""Speed of MAETok and SiT: the cost of each part of training and sampling, and its dependence on the resolution.

    python benchmarks/maetok.py                     # all rows that are not in the results file
    python benchmarks/maetok.py --only encode guidance   # some of them (--list names all)
    python benchmarks/maetok.py --quick             # less work per row; results in runs/
    python benchmarks/maetok.py --markdown          # print the results file as a Markdown table; measures nothing

README.md in this folder explains the rows.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from speed.command import Benchmark, positive
from speed.maetok_models import QUICK_MAETOK, MAETokBench, MAETokSizes
from speed.maetok_rows import MAETOK_ROWS

from tok1d.errors import ConfigError


def options(parse: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parse.add_argument("--steps", type=positive, default=25, help="Euler steps of the generator (default 25)")
    parse.add_argument(
        "--interval", type=float, nargs=2, default=[0.25, 1.0], help="interval of guidance in time, 0 = noise"
    )


def make_bench(args: argparse.Namespace, sizes: MAETokSizes, device: torch.device) -> MAETokBench:
    """Models and inputs for the options of the command line.

    Raises:
        ConfigError: the interval is empty or outside 0..1.
    """
    low, high = args.interval
    if not 0 <= low < high <= 1:
        raise ConfigError(f"--interval: expected two increasing times in 0..1, got {low:g} {high:g}")
    return MAETokBench(sizes, device, args.precision, args.steps, (low, high))


BENCHMARK = Benchmark("maetok", __doc__ or "", MAETOK_ROWS, options, make_bench, MAETokSizes(), QUICK_MAETOK, work=True)


def main(argv: list[str] | None = None, sizes: Any = None) -> int:
    """Run the command and return its exit code. `sizes` replaces the default sizes."""
    return BENCHMARK.main(argv, sizes)


if __name__ == "__main__":
    sys.exit(main())
