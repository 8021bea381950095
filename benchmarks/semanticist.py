"""Speed of Semanticist and epsilon-LlamaGen: each optimisation compared with the same computation without it.

    python benchmarks/semanticist.py                     # all rows that are not in the results file
    python benchmarks/semanticist.py --only encode ar    # some of them (--list names all)
    python benchmarks/semanticist.py --quick             # less work per row, about a minute; results in runs/
    python benchmarks/semanticist.py --markdown          # print the results file as a Markdown table; measures nothing

README.md in this folder explains the rows.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from speed.command import Benchmark, positive
from speed.models import QUICK, Bench, Sizes
from speed.rows import ROWS

from tok1d.errors import ConfigError


def options(parse: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parse.add_argument("--decoder-steps", type=positive, default=25, help="flow decoder steps (default 25)")
    parse.add_argument(
        "--head-steps", type=positive, nargs="+", default=None, help="SDE steps of the head (default 25 50, quick 25)"
    )
    parse.add_argument(
        "--euler-steps", type=positive, nargs="+", default=[10], help="Euler steps of the head (default 10)"
    )
    parse.add_argument(
        "--interval", type=float, nargs=2, default=[0.25, 0.75], help="interval of guidance in time, 0 = noise"
    )


def make_bench(args: argparse.Namespace, sizes: Sizes, device: torch.device) -> Bench:
    """Models and inputs for the options of the command line.

    Raises:
        ConfigError: too few steps for the sampler.
    """
    head_steps = args.head_steps or ([25] if args.quick else [25, 50])
    if min(head_steps) < 2:
        raise ConfigError(f"--head-steps: expected at least 2 steps for the SDE sampler, got {min(head_steps)}")
    interval = (args.interval[0], args.interval[1])
    steps = (args.decoder_steps, tuple(head_steps), tuple(args.euler_steps))
    return Bench(sizes, device, args.precision, *steps, interval)


BENCHMARK = Benchmark("semanticist", __doc__ or "", ROWS, options, make_bench, Sizes(), QUICK)


def main(argv: list[str] | None = None, sizes: Any = None) -> int:
    """Run the command and return its exit code. `sizes` replaces the default sizes."""
    return BENCHMARK.main(argv, sizes)


if __name__ == "__main__":
    sys.exit(main())
