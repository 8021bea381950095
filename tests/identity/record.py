"""Record what the models of this checkout compute, or check it against a record; see README.md beside this file.

python tests/identity/record.py --out FILE | --check FILE [--only PREFIX]
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":  # before torch and other libraries read them
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", OMP_WAIT_POLICY="PASSIVE", MPLBACKEND="agg")
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import cases  # noqa: E402 (found beside this file, whoever imports it)
import models  # noqa: E402
import names  # noqa: E402
import numpy as np  # noqa: E402
import runs  # noqa: E402
import torch  # noqa: E402
from lines import line, same_numbers  # noqa: E402

RECORD = HERE / "hashes.json"
Group = Callable[[], Iterator[tuple[str, Any]]]


def groups(place: Path) -> dict[str, Group]:
    """Name -> what makes the values of that group, independent of all other groups; files go below `place`."""
    found: dict[str, Group] = {}
    for kind, table in (
        ("tokenizer", cases.TOKENIZERS),
        ("generator", cases.GENERATORS),
        ("classifier", cases.CLASSIFIERS),
    ):
        found |= {f"tiny/{name}": partial(getattr(models, kind), name) for name in table}
    found |= {f"bundled/{name}": partial(models.bundled, name) for name in names.bundled()}
    found |= {f"recipe/{name}": partial(models.recipe, name) for name in names.small_recipes()}
    return found | runs.groups(place)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread and deterministic algorithms; a cache folder of its own; afterwards all as it was."""
    threads, strict = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would import the compiler
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(strict)


def compute(prefix: str = "", *, verbose: bool = False) -> dict[str, str]:
    """Key -> line of all values whose keys begin with a prefix.

    Args:
        verbose: report on stderr how long each group takes.
    """
    found: dict[str, str] = {}
    with one_thread(), tempfile.TemporaryDirectory() as folder, runs.cache_in(Path(folder)):
        for name, make in groups(Path(folder)).items():
            if not (name.startswith(prefix) or prefix.startswith(f"{name}/")):
                continue
            start = time.perf_counter()
            values = {f"{name}/{key}": line(value) for key, value in make()}
            found |= {key: value for key, value in values.items() if key.startswith(prefix)}
            if verbose:
                print(f"{name}: {len(values)} values, {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return found


def machine() -> dict[str, str]:
    """What the last bits of the values depend on beside the code."""
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": _processor(),
        "platform": f"{platform.system()} {platform.machine()}",
        "numpy": np.__version__,
        "threads": "1",
    }


def _processor() -> str:
    """The processor's name, since kernels are chosen by it."""
    with suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor()


def read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Machine and values of a record."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["machine"], content["values"]


def differences(found: dict[str, str], wanted: dict[str, str], *, exact: bool) -> list[str]:
    """A text for every key that is missing, new or different; not `exact`: by the numbers shown, see `lines.py`."""
    texts = []
    for key in sorted(found.keys() | wanted.keys()):
        now, then = found.get(key), wanted.get(key)
        if now is None or then is None:
            texts.append(f"{key}: {'not computed any more' if now is None else 'not in the record'}")
        elif now != then and (exact or not same_numbers(now, then)):
            texts.append(f"{key}:\n  recorded {then}\n  found    {now}")
    return texts


def unlike(recorded: dict[str, str]) -> str:
    """How this machine differs from that of a record, "" where it does not."""
    here = machine()
    texts = [f"{name} {recorded.get(name)}, here {here[name]}" for name in here if recorded.get(name) != here[name]]
    return "; ".join(texts)


def check(path: Path, prefix: str) -> int:
    """Print every difference from a record; 1 where there is one."""
    recorded, wanted = read(path)
    other = unlike(recorded)
    if other:
        print(f"recorded on another kind of machine ({other}): numbers are compared to 1e-4, hashes are not")
    wanted = {key: value for key, value in wanted.items() if key.startswith(prefix)}
    texts = differences(compute(prefix, verbose=True), wanted, exact=not other)
    print("\n".join([*texts, f"{len(texts)} of {len(wanted)} values differ"]))
    return int(bool(texts) or not wanted)


def write(path: Path, prefix: str) -> int:
    """Write a record."""
    values = compute(prefix, verbose=True)
    path.write_text(
        json.dumps({"machine": machine(), "values": values}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    print(f"{len(values)} values in {path}")
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="write a record")
    what.add_argument("--check", type=Path, metavar="FILE", help="compare with a record; exit code 1 where it differs")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only values whose keys begin so")
    options = parser.parse_args()
    return write(options.out, options.only) if options.out else check(options.check, options.only)


if __name__ == "__main__":
    sys.exit(main())
