"""Speed of Semanticist and epsilon-LlamaGen: each optimisation against the same work without it.

    python benchmarks/semanticist.py                     # all rows that the results file does not have yet
    python benchmarks/semanticist.py --only encode ar    # some of them (--list names all)
    python benchmarks/semanticist.py --quick             # a look in about a minute, at less work a row
    python benchmarks/semanticist.py --markdown          # the results file as a Markdown table; measures nothing

See the README beside this file for what the rows mean.
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
    """What this benchmark has besides the common options."""
    parse.add_argument("--decoder-steps", type=positive, default=25, help="flow decoder steps (default 25)")
    parse.add_argument(
        "--head-steps", type=positive, nargs="+", default=None, help="SDE steps of the head (default 25 50, quick 25)"
    )
    parse.add_argument("--euler-steps", type=positive, nargs="+", default=[10], help="Euler steps of it (default 10)")
    parse.add_argument("--interval", type=float, nargs=2, default=[0.25, 0.75], help="times of interval guidance")


def make_bench(args: argparse.Namespace, sizes: Sizes, device: torch.device) -> Bench:
    """Models and inputs, as the command line has them.

    Raises:
        ConfigError: a number of steps that the sampler cannot take.
    """
    head_steps = args.head_steps or ([25] if args.quick else [25, 50])
    if min(head_steps) < 2:
        raise ConfigError(f"--head-steps: the SDE sampler needs at least 2 steps, got {min(head_steps)}")
    interval = (args.interval[0], args.interval[1])
    steps = (args.decoder_steps, tuple(head_steps), tuple(args.euler_steps))
    return Bench(sizes, device, args.precision, *steps, interval)


BENCHMARK = Benchmark("semanticist", __doc__ or "", ROWS, options, make_bench, Sizes(), QUICK)


def main(argv: list[str] | None = None, sizes: Any = None) -> int:
    """The command; returns its exit code. `sizes` replaces those that --quick chooses from."""
    return BENCHMARK.main(argv, sizes)


if __name__ == "__main__":
    sys.exit(main())
