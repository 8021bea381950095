"""Kill evaluations with SIGKILL at random points, run the same command again, compare the records byte for byte.

    python tests/evaluate/kills.py ROOT DATA

ROOT is an empty folder, DATA one with Fashion-MNIST's files. Every run is a separate process that calls the command
line. It is forked from this one, which has imported the package but computed nothing. Each chain of kills is printed as
one line of JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

PRELOAD = [
    *("torch", "torchmetrics.functional.image", "tok1d.cli.app", "tok1d.cli.evaluate", "tok1d.train.run", "tqdm"),
    *("tok1d.tokenizers.semanticist", "tok1d.generators.autoregressive", "tok1d.evaluate.generation"),
    *("tok1d.evaluate.reconstruction", "tok1d.evaluate.setup", "tok1d.zoo.checkpoints", "safetensors.torch"),
]
COMMON = ["--batch-size", "32", "--quiet", "--metrics", "all"]
FAMILIES = {
    "reconstruction": [
        "fashion-mnist-semanticist",
        "fashion_mnist",
        "--keep",
        "1,8",
        "--num",
        "160",
        "--steps",
        "2",
        *COMMON,
    ],
    "generation": [
        *("fashion-mnist-epsilon-llamagen", "fashion_mnist", "--keep", "2,8", "--num-samples", "160", "--steps", "3"),
        *("--decoder-steps", "2", "--guidance", "1.5", "--classes", "random", *COMMON),
    ],
}
# A process is killed when it reaches a place for the n-th time (n from 1 to the number here). "outside": the process
# reports the place and continues, until another process kills it.
CHAINS = {
    "measuring": [("outside, a measured batch", 6), ("a measured batch", 3), ("outside, a block renamed", 1)],
    "writing blocks": [("a block half written", 1), ("a block not renamed", 1), ("a block renamed", 1)],
    "the end": [
        *(("images not renamed", 1), ("record half written", 1), ("record not renamed", 1)),
        *(("record renamed", 1), ("a block removed", 3), ("the last block removed", 1)),
    ],
}


@dataclass
class Chain:
    """Consecutive kills of one evaluation, each resuming the one before, and the final outcome.

    Args:
        kills: where they happened. problems: every difference from the unbroken evaluation.
    """

    family: str
    name: str
    kills: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Watch:
    """Counts how often a process reaches a place; the n-th time, kills it or reports that it may be killed."""

    def __init__(self, place: str, number: int, tell: int) -> None:
        self.place, self.number, self.tell = place.removeprefix("outside, "), number, tell
        self.outside, self.counts = place.startswith("outside, "), Counter[str]()

    def due(self, place: str) -> bool:
        self.counts[place] += 1
        return place == self.place and self.counts[place] == self.number

    def at(self, place: str) -> None:
        if not self.due(place):
            return
        if not self.outside:
            die()
        os.write(self.tell, b".")


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")


def watch_measuring(watch: Watch) -> None:
    from tok1d.evaluate.measures import Measures

    features = Measures.features

    def measured(self: Any, x: Any) -> Any:
        found = features(self, x)
        watch.at("a measured batch")
        return found

    Measures.features = measured  # type: ignore[method-assign]


def watch_writing(watch: Watch, share: float) -> None:
    """Kill places in the writing and removal of blocks, of the record and of the image file."""
    import torch

    save, replace, write_text, unlink = torch.save, os.replace, Path.write_text, Path.unlink

    def watched_save(content: Any, path: Path) -> None:
        save(content, path)
        if of_job(path) and watch.due("a block half written"):
            os.truncate(path, int(share * path.stat().st_size))
            die()

    def watched_replace(source: Any, target: Any) -> None:
        known = {".npz": "images", ".json": "record"}
        thing = "a block" if of_job(Path(target)) else known.get(Path(target).suffix, "another file")
        watch.at(f"{thing} not renamed")
        replace(source, target)
        watch.at(f"{thing} renamed")

    def watched_text(self: Path, text: str, **options: Any) -> int:
        if ".json." in self.name and watch.due("record half written"):
            write_text(self, text[: int(share * len(text))], **options)
            die()
        return write_text(self, text, **options)

    def watched_unlink(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        if of_job(self) and self.suffix == ".pt":
            watch.at("a block removed")
            if not list(self.parent.glob("*.pt")):
                watch.at("the last block removed")

    torch.save, os.replace = watched_save, watched_replace  # type: ignore[assignment]
    Path.write_text, Path.unlink = watched_text, watched_unlink  # type: ignore[assignment,method-assign]


def of_job(path: Path) -> bool:
    return path.parent.name.endswith(".parts")


class Machine:
    """Starts evaluations as processes; the record of NAME is ROOT/NAME.json, its images ROOT/NAME.npz."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root, data

    def start(self, family: str, name: str, watch: Callable[[int], None], part: tuple[int, int] = (0, 1)) -> tuple:
        out, images = self.root / f"{name}.json", self.root / f"{name}.npz"
        words = ["evaluate", family, *FAMILIES[family], "--data-root", str(self.data), "--out", str(out)]
        read, write = os.pipe()
        pid = os.fork()
        if pid:
            os.close(write)
            return pid, read
        try:  # the child process never returns from here
            os.close(read)
            log = os.open(self.root / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update({"RANK": str(part[0]), "LOCAL_RANK": str(part[0]), "WORLD_SIZE": str(part[1])})
            watch(write)
            from tok1d.cli import app as cli

            code = cli.run([*words, "--save-samples", str(images)])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        finally:
            os._exit(70)

    def run(self, family: str, name: str, kill: tuple[str, int, float] | None = None) -> int:
        """The exit code of an evaluation, -9 where it was killed."""

        def watch(tell: int) -> None:
            if kill is not None:
                watched = Watch(kill[0], kill[1], tell)
                watch_measuring(watched)
                watch_writing(watched, kill[2])

        return self.ended(*self.start(family, name, watch))

    def ended(self, pid: int, read: int) -> int:
        """Kill the process when it reports the place; returns its exit code."""
        if os.read(read, 1):
            os.kill(pid, signal.SIGKILL)
        os.close(read)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def problems(self, family: str, name: str) -> list[str]:
        """Differences between a finished evaluation and the unbroken one, which is named after the family."""
        from tok1d.evaluate.sample_batch import SampleImages

        found = []
        good, other = (self.root / f"{each}.json" for each in (family, name))
        if other.read_bytes() != good.read_bytes():
            found.append("another record")
        one, two = (SampleImages(path.with_suffix(".npz")).fingerprint() for path in (good, other))
        if one != two:
            found.append("other images")
        left = [path.name for path in self.root.iterdir() if path.name.startswith((f".{name}.", f"{name}.json.parts"))]
        return found + [f"left {each}" for each in left]


def chain_of(machine: Machine, family: str, name: str) -> Chain:
    """Kill an evaluation at all places of a chain, finish it, compare; retried if it ended before a kill."""
    for attempt in range(20):
        rng, chain = random.Random(f"{family} {name} {attempt}"), Chain(family, name)
        called = f"{family}-{name.replace(' ', '-')}-{attempt}"
        record = machine.root / f"{called}.json"
        for place, most in CHAINS[name]:
            number, share = rng.randint(1, most), rng.random()
            chain.kills.append(f"{place} {number}")
            code = machine.run(family, called, (place, number, share))
            if record.exists() and record.read_bytes() != (machine.root / f"{family}.json").read_bytes():
                chain.problems.append(f"after {chain.kills[-1]}: another record")
            if code != -signal.SIGKILL:
                break
        else:
            code = machine.run(family, called)
            if code != 0:
                chain.problems.append(f"ended with {code}: {(machine.root / f'{called}.log').read_text()[-300:]}")
            else:
                chain.problems += machine.problems(family, called)
            return chain
        if code != 0:
            raise AssertionError(f"{called}: ended with {code}: {record.with_suffix('.log').read_text()[-300:]}")
    raise AssertionError(f"{family}, {name}: no attempt was killed everywhere")


def shared_chain(machine: Machine, family: str) -> Chain:
    """Two processes share an evaluation; one is killed, the other ends, the killed one is started again."""
    rng, name = random.Random(f"{family} shared"), f"{family}-shared"
    chain, number = Chain(family, "shared"), rng.randint(1, 2)

    def watch(tell: int) -> None:
        watch_measuring(Watch("outside, a measured batch", number, tell))

    running = [machine.start(family, name, watch if rank else lambda tell: None, (rank, 2)) for rank in range(2)]
    codes = [machine.ended(*each) for each in reversed(running)]
    chain.kills.append(f"of process 1, outside, a measured batch {number}")
    if (machine.root / f"{name}.json").exists():
        chain.problems.append("a record without the killed process's part")
    codes.append(machine.ended(*machine.start(family, name, lambda tell: None, (1, 2))))
    if codes != [-signal.SIGKILL, 0, 0]:
        log = (machine.root / f"{name}.log").read_text()[-300:]
        raise AssertionError(f"{name}: expected a killed process and two that end, got {codes}: {log}")
    chain.problems += machine.problems(family, name)
    return chain


def main() -> None:
    machine = Machine(Path(sys.argv[1]), Path(sys.argv[2]))
    os.environ["TOK1D_CACHE"] = str(machine.root / "cache")
    for name in PRELOAD:
        importlib.import_module(name)
    for family in FAMILIES:
        code = machine.run(family, family)
        assert code == 0, (machine.root / f"{family}.log").read_text()
        chains = [chain_of(machine, family, name) for name in CHAINS]
        for chain in [*chains, shared_chain(machine, family)]:
            print(json.dumps(asdict(chain)), flush=True)


if __name__ == "__main__":
    main()
