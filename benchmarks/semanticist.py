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
import textwrap
from pathlib import Path

import torch
from speed import records
from speed.measure import matmul_limit, measure
from speed.models import QUICK, Bench, Sizes
from speed.rows import ROWS

from tok1d.errors import ConfigError, Tok1dError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parse = argparse.ArgumentParser(prog="semanticist.py", description=(__doc__ or "").splitlines()[0])
    parse.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", default=list(ROWS), help="these rows only")
    parse.add_argument("--list", action="store_true", help="name the rows and stop")
    parse.add_argument("--repeats", type=positive, default=None, help="timed pairs a row (default 7, quick 2)")
    parse.add_argument("--threads", type=positive, default=None, help="CPU threads (default: PyTorch's own choice)")
    parse.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parse.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: autocast, on cuda only")
    parse.add_argument("--decoder-steps", type=positive, default=25, help="flow decoder steps (default 25)")
    parse.add_argument(
        "--head-steps", type=positive, nargs="+", default=None, help="head steps (default 25 50, quick 25)"
    )
    parse.add_argument("--interval", type=float, nargs=2, default=[0.25, 0.75], help="times of interval guidance")
    parse.add_argument("--out", type=Path, default=None, help="results file")
    parse.add_argument("--again", action="store_true", help="measure rows that the results file already has")
    parse.add_argument("--quick", action="store_true", help="less work a row; kept in runs/, not in results/")
    parse.add_argument("--markdown", action="store_true", help="print the results file as Markdown and stop")
    return parse


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def run(args: argparse.Namespace, sizes: Sizes, command: str) -> None:
    """Measure the rows asked for, one after the other, and print them as they come.

    Raises:
        ConfigError: a device or precision that this machine does not have.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: expected cpu, received cuda, but PyTorch finds no GPU here")
    if args.precision == "bf16" and args.device == "cpu":
        raise ConfigError("--precision: bf16 is for GPUs (on a CPU it is slower than fp32), expected fp32")
    if min(args.head_steps) < 2:
        raise ConfigError(f"--head-steps: the SDE sampler needs at least 2 steps, received {min(args.head_steps)}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    bench = Bench(
        sizes, device, args.precision, args.decoder_steps, tuple(args.head_steps), (args.interval[0], args.interval[1])
    )
    repeats = args.repeats or (2 if args.quick else 7)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    limit = matmul_limit(device, dtype, sizes.gemm * (4 if device.type == "cuda" else 1))
    setting = {**records.machine(device, args.precision, command), "sizes": sizes.name}
    print(textwrap.fill(records.conditions([{**setting, "matmul_gflops": limit}]), 100))
    print(records.text_lines(records.HEADER), flush=True)
    present = {records.key(record): record for record in records.load(args.out)}
    for name in args.only:
        for row in ROWS[name](bench):
            record = present.get(records.key({**setting, "row": row.name}))
            if record is None or args.again:
                record = {**measure(row, repeats, sizes.min_seconds, device, limit), **setting}
                records.store(args.out, record)
            print(records.text_lines(records.lines(record)), flush=True)


def main(argv: list[str] | None = None, sizes: Sizes | None = None) -> int:
    """The command; returns its exit code. `sizes` replaces those that --quick chooses from."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    args.head_steps = args.head_steps or ([25] if args.quick else [25, 50])
    if args.out is None:
        folder = Path("runs") if args.quick else Path(__file__).parent / "results"
        args.out = folder / f"semanticist-{args.device}{'-quick' if args.quick else ''}.json"
    try:
        if args.list:
            print("\n".join(ROWS))
        elif args.markdown:
            print(records.markdown(records.load(args.out)))
        else:
            run(
                args, sizes or (QUICK if args.quick else Sizes()), " ".join(["python benchmarks/semanticist.py", *argv])
            )
    except Tok1dError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
