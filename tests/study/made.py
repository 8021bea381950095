"""A small study folder that needs no model, and participants of known preference, for tests only."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tok1d.study.folder import FORMAT, Item, Study
from tok1d.study.plan import Trial, trials
from tok1d.study.results import Answer, StoredAnswer

FRAME = 1000 / 60
ROOT = Path(__file__).parents[2]


def make_study(
    keep: tuple[int, ...] = (1, 4),
    reveal: tuple[int, ...] = (100, 500),
    num: int = 8,
    practice: int = 2,
    catch: int = 2,
) -> Study:
    total = num + practice + catch
    items = [
        Item(
            i,
            "class",
            f"{i}_original.png",
            f"{i}_distractor.png",
            tuple(f"{i}_keep{k}.png" for k in keep) if i < num + practice else (),
        )
        for i in range(total)
    ]
    return Study(
        format=FORMAT,
        model="model",
        weights="0" * 12,
        num_tokens=16,
        data="data",
        fingerprint="f",
        count=100,
        label=None,
        decoding=None,
        distractor="class",
        keep=keep,
        reveal_ms=reveal,
        mask_ms=100,
        catch_ms=1000,
        seed=3,
        consent="A test.\n\n<b>Second</b> paragraph.",
        items=tuple(items[:num]),
        practice=tuple(items[num : num + practice]),
        catch=tuple(items[num + practice :]),
        mask="mask.png",
        versions={},
    )


def given(
    trial: Trial, participant: int, choice: str, *, reveals: int = 1, shown: float = 0, hidden: bool = False
) -> StoredAnswer:
    answer = Answer(choice, shown or trial.reveal_ms, FRAME, 6, 800.0, hidden)  # type: ignore[arg-type]
    return StoredAnswer(participant, trial.position, answer, reveals)


def synthetic(study: Study, participants: int, prefers: Callable[[int, Trial], str]) -> list[StoredAnswer]:
    """Answers of participants that choose "target", "other" or "tie" as `prefers` says; in catch trials "target"."""
    found = []
    for number in range(participants):
        for trial in trials(study, number):
            wish = "target" if trial.kind == "catch" else prefers(number, trial)
            sides = {"left": "right", "right": "left"}
            choice = {"target": trial.target, "other": sides[trial.target], "tie": "tie"}[wish]
            found.append(given(trial, number, choice))
    return found


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`tok1d study serve` as a process that accepts connections, and its address."""
    command = [sys.executable, "-m", "tok1d", "study", "serve", str(folder), "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address, process.stderr.read()
        yield process, address[0]
    finally:
        process.kill()
        process.communicate()
