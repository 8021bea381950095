"""Speed of SMAP and its generators: truncation in training, samples of CARD, LlamaGen and MaskGIT, what a cache saves.

    python benchmarks/smap.py                     # all rows that the results file does not have yet
    python benchmarks/smap.py --only card llamagen-cache   # some of them (--list names all)
    python benchmarks/smap.py --quick             # less work a row, kept in runs/
    python benchmarks/smap.py --markdown          # the results file as a Markdown table; measures nothing

See the README beside this file for what the rows mean.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from speed.command import Benchmark
from speed.smap_models import QUICK_SMAP, SMAPBench, SMAPSizes
from speed.smap_rows import SMAP_ROWS


def options(parse: argparse.ArgumentParser) -> None:
    """None besides the common ones."""


def make_bench(args: argparse.Namespace, sizes: SMAPSizes, device: torch.device) -> SMAPBench:
    """Models and inputs, as the command line has them."""
    return SMAPBench(sizes, device, args.precision)


BENCHMARK = Benchmark("smap", __doc__ or "", SMAP_ROWS, options, make_bench, SMAPSizes(), QUICK_SMAP, work=True)


def main(argv: list[str] | None = None, sizes: Any = None) -> int:
    """The command; returns its exit code. `sizes` replaces those that --quick chooses from."""
    return BENCHMARK.main(argv, sizes)


if __name__ == "__main__":
    sys.exit(main())
