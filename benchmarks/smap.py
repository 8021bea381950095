"""Speed of SMAP and its generators: tail dropping in training, sampling of CARD, LlamaGen and MaskGIT, KV caches.

    python benchmarks/smap.py                     # all rows that are not in the results file
    python benchmarks/smap.py --only card llamagen-cache   # some of them (--list names all)
    python benchmarks/smap.py --quick             # less work per row; results in runs/
    python benchmarks/smap.py --markdown          # print the results file as a Markdown table; measures nothing

README.md in this folder explains the rows.
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
    """This benchmark has only the common options."""


def make_bench(args: argparse.Namespace, sizes: SMAPSizes, device: torch.device) -> SMAPBench:
    """Models and inputs for the options of the command line."""
    return SMAPBench(sizes, device, args.precision)


BENCHMARK = Benchmark("smap", __doc__ or "", SMAP_ROWS, options, make_bench, SMAPSizes(), QUICK_SMAP, work=True)


def main(argv: list[str] | None = None, sizes: Any = None) -> int:
    """Run the command and return its exit code. `sizes` replaces the default sizes."""
    return BENCHMARK.main(argv, sizes)


if __name__ == "__main__":
    sys.exit(main())
