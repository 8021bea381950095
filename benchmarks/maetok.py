"""Speed of MAETok and SiT: what every part of the training and of sampling costs, and what resolution does to it.

    python benchmarks/maetok.py                     # all rows that the results file does not have yet
    python benchmarks/maetok.py --only encode guidance   # some of them (--list names all)
    python benchmarks/maetok.py --quick             # less work a row, kept in runs/
    python benchmarks/maetok.py --markdown          # the results file as a Markdown table; measures nothing

See the README beside this file for what the rows mean.
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
    """What this benchmark has besides the common options."""
    parse.add_argument("--steps", type=positive, default=25, help="Euler steps of the generator (default 25)")
    parse.add_argument(
        "--interval", type=float, nargs=2, default=[0.25, 1.0], help="times of interval guidance, 0 = noise"
    )


def make_bench(args: argparse.Namespace, sizes: MAETokSizes, device: torch.device) -> MAETokBench:
    """Models and inputs, as the command line has them.

    Raises:
        ConfigError: an empty interval.
    """
    low, high = args.interval
    if not 0 <= low < high <= 1:
        raise ConfigError(f"--interval: expected two rising times in 0..1, got {low:g} {high:g}")
    return MAETokBench(sizes, device, args.precision, args.steps, (low, high))


BENCHMARK = Benchmark("maetok", __doc__ or "", MAETOK_ROWS, options, make_bench, MAETokSizes(), QUICK_MAETOK, work=True)


def main(argv: list[str] | None = None, sizes: Any = None) -> int:
    """The command; returns its exit code. `sizes` replaces those that --quick chooses from."""
    return BENCHMARK.main(argv, sizes)


if __name__ == "__main__":
    sys.exit(main())
