"""Two trainings, or two writers, at one place: one goes on, the other ends in one line. With real processes."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tok1d import locks
from tok1d.cli import app as cli
from tok1d.errors import ConfigError
from tok1d.train.log import read_log

Tiny = Callable[..., str]
# Starts commands as forked processes, because importing torch takes seconds. A process with `stop` reports when it
# reaches that place, and goes on when the FIFO is closed.
SERVER = """
import json, os, sys
from tok1d.cli import app as cli
from tok1d.train import loop, run
import accelerate, safetensors.torch, torch._dynamo, tqdm, yaml, PIL.Image
import tok1d.evaluate.generation, tok1d.evaluate.reconstruction, tok1d.tokenizers.semanticist

def stop_at(place, fifo):
    def here():
        if os.path.exists(fifo):
            with open(fifo, "w"):
                pass
            with open(fifo + ".on"):
                pass

    if place == "start":
        build = run.build_task
        run.build_task = lambda recipe: (build(recipe), here())[0]
    else:
        save = loop.Run.save
        loop.Run.save = lambda self: (save(self), here() if self.step == 2 else None)[0]

for line in sys.stdin:
    given = json.loads(line)
    if "wait" in given:
        print(os.waitstatus_to_exitcode(os.waitpid(given["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if not pid:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(given["name"] + "." + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.close(0)
        if given["stop"]:
            stop_at(given["stop"], given["name"] + ".fifo")
        code = 70
        try:
            code = cli.run(given["arguments"])
        finally:
            sys.stdout.flush()
            os._exit(code)
    print(pid, flush=True)
"""


class Machine:
    """Starts commands in processes; `name` gives their output files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **given: Any) -> int:
        assert self.server.stdin is not None and self.server.stdout is not None
        print(json.dumps(given), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def start(self, name: str, *arguments: object, stop: str = "") -> int:
        """The process, which has reached the place `stop` ("start": all is built, "save": after step 2)."""
        path = self.root / name
        for end in (".fifo", ".fifo.on") if stop else ():
            os.mkfifo(f"{path}{end}")
        pid = self.ask(name=str(path), arguments=[str(each) for each in arguments], stop=stop)
        if stop:
            with open(f"{path}.fifo", encoding="utf-8"):
                pass
        return pid

    def go_on(self, name: str) -> None:
        (self.root / f"{name}.fifo").unlink()
        with (self.root / f"{name}.fifo.on").open("w"):
            pass

    def end(self, pid: int) -> int:
        return self.ask(wait=pid)

    def run(self, name: str, *arguments: object) -> tuple[int, str]:
        """The exit code and the text on stderr."""
        code = self.end(self.start(name, *arguments))
        return code, (self.root / f"{name}.err").read_text()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = tmp_path_factory.mktemp("locks")
    (root / "data").mkdir()
    for prefix in ("train", "t10k"):
        pixels = np.random.default_rng(len(prefix)).integers(0, 256, (64, 28, 28), np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", (np.arange(64) % 10).astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (root / "data" / f"{prefix}-{kind}-ubyte").write_bytes(head + array.tobytes())
    made = Machine(root)
    yield made
    made.server.kill()
    made.server.wait()


@pytest.fixture
def command(machine: Machine, tiny: Tiny) -> Callable[..., list[str]]:
    """command(out, *words): the training of a tiny tokenizer."""

    def words(out: Path, *more: str) -> list[str]:
        return [
            "train",
            tiny("tokenizer"),
            f"out={out}",
            f"data.root={machine.root / 'data'}",
            "train.save_every=2",
            *more,
        ]

    return words


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def is_one_line(text: str, *words: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1 and all(word in text for word in words)


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_its_run_goes_on(
    machine: Machine, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = machine.start("first", *command(out), stop="save")
    before = contents(out)
    for name, more in (("same", []), ("other", ["seed=1"]), ("over", ["--overwrite"])):
        code, error = machine.run(name, *command(out, *more))
        assert code == 2 and is_one_line(error, f"{out}: in use", f"process {first} on {socket.gethostname()}"), error
    assert contents(out) == before
    machine.go_on("first")
    assert machine.end(first) == 0
    assert [entry["step"] for entry in read_log(out / "log.jsonl")] == [2, 4, 6]
    assert not (out / locks.FOLDER_LOCK).exists()
    code, error = machine.run("later", *command(out, "seed=1"))
    assert code == 2 and is_one_line(error, "finished run")


@pytest.mark.slow
def test_a_killed_run_is_resumed_by_the_next(
    machine: Machine, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = machine.start("killed", *command(out), stop="save")
    os.kill(first, signal.SIGKILL)
    assert machine.end(first) == -signal.SIGKILL and (out / locks.FOLDER_LOCK).exists()
    code, error = machine.run("another", *command(out, "seed=1"))
    assert code == 2 and "has seed=0, this recipe has seed=1" in error
    code, error = machine.run("next", *command(out))
    assert code == 0 and (out / "report.json").exists() and not (out / locks.FOLDER_LOCK).exists()
    assert [entry["step"] for entry in read_log(out / "log.jsonl")] == [2, 4, 6]


@pytest.mark.slow
def test_the_takeover_of_a_lock_is_one_line(
    machine: Machine, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = machine.start("gone", *command(out), stop="start")
    os.kill(first, signal.SIGKILL)
    assert machine.end(first) == -signal.SIGKILL and os.listdir(out) == [locks.FOLDER_LOCK]
    code, error = machine.run("taken", *command(out))
    lines = [line for line in error.splitlines() if "lock" in line]
    assert code == 0 and len(lines) == 1 and f"process {first} on" in lines[0] and "taken over" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_of_trainings_that_start_together_exactly_one_goes_on(
    machine: Machine, command: Callable[..., list[str]], tmp_path: Path, number: int
) -> None:
    out = tmp_path / "run"
    running = [machine.start(f"together{number}{i}", *command(out, f"seed={i}")) for i in range(3)]
    codes = [machine.end(pid) for pid in running]
    assert sorted(codes) == [0, 2, 2]
    winner = codes.index(0)
    assert f"seed: {winner}\n" in (out / "config.yaml").read_text()
    assert json.loads((out / "model" / "config.json").read_text())["card"]["seed"] == winner
    assert [entry["step"] for entry in read_log(out / "log.jsonl")] == [2, 4, 6]
    for i in {0, 1, 2} - {winner}:
        assert is_one_line((machine.root / f"together{number}{i}.err").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("replaces", [False, True])
def test_a_start_that_is_interrupted_changes_nothing(
    machine: Machine, command: Callable[..., list[str]], tmp_path: Path, replaces: bool
) -> None:
    """Ctrl-C, or SIGKILL where a finished run would be replaced, when everything is built."""
    out = tmp_path / "deep" / "run"
    if replaces:
        assert machine.run("finished", *command(out))[0] == 0
    before = contents(tmp_path)
    pid = machine.start(f"interrupted{replaces}", *command(out, "seed=1", "--overwrite"), stop="start")
    os.kill(pid, signal.SIGINT)
    assert machine.end(pid) == 130 and contents(tmp_path) == before
    assert out.exists() == replaces and (tmp_path / "deep").exists() == replaces
    if replaces:
        pid = machine.start("killed start", *command(out, "seed=1", "--overwrite"), stop="start")
        os.kill(pid, signal.SIGKILL)
        assert machine.end(pid) == -signal.SIGKILL
        code, error = machine.run("after", *command(out, "seed=1"))
        assert code == 2 and "finished run" in error and contents(tmp_path) == before


@pytest.mark.slow
def test_a_run_in_use_can_be_read(
    machine: Machine, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, root = tmp_path / "run", str(machine.root / "data")
    assert machine.run("read", *command(out))[0] == 0
    with locks.hold(out / locks.FOLDER_LOCK, "run"):
        options = ["fashion_mnist", "--data-root", root, "--num", "4", "--metrics", "psnr", "--steps", "2"]
        checkpoint = str(out / "checkpoints" / "step-00000004.pt")
        for model in (str(out / "model"), checkpoint):
            assert cli.run(["evaluate", "reconstruction", model, *options]) == 0
        assert cli.run(["export", str(out), "--out", str(tmp_path / "exported")]) == 0
        assert cli.run(["compare", str(out), "--to", str(out)]) == 0
        assert cli.run(command(out, "--overwrite")) == 2
    assert "in use" in capsys.readouterr().err


@pytest.fixture
def stale(tmp_path: Path) -> Callable[..., Path]:
    """stale(**changes): a lock file without flock, of an owner like this process with changes."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "place" / "x.lock"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(vars(replace(locks.this_process(), **changes))))
        return path

    return write


@pytest.mark.parametrize(
    "changes",
    [{"pid": 2**22 + 1}, {"started": "1"}, {"boot": "before"}, {"host": "elsewhere", "boot": "x"}, {}],
    ids=["gone", "number reused", "machine restarted", "other machine", "same"],
)
def test_a_lock_that_nobody_holds_is_taken_over(stale: Callable[..., Path], changes: dict[str, Any]) -> None:
    """On a local disk, where flock is seen by everyone."""
    path = stale(**changes)
    with locks.hold(path, "place") as message:
        assert locks.owner_in(path) == replace(locks.this_process(), since=locks.owner_in(path).since)  # type: ignore
        assert "taken over" in message and str(changes.get("host", "")) in message and "\n" not in message
    assert not path.exists()


def test_a_lock_of_another_machine_counts_where_its_flock_cannot_be_seen(
    stale: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "flock_reaches_all", lambda path: False)
    path = stale(host="elsewhere", boot="x", job="71")
    with pytest.raises(ConfigError, match=rf"^place: locked by process \d+ on elsewhere since .* delete {path}$"):
        locks.hold(path, "place").__enter__()
    monkeypatch.setenv("SLURM_JOB_ID", "71")  # the same job, requeued
    with locks.hold(path, "place"):
        pass
    for changes in ({"pid": 2**22 + 1}, {"boot": "before"}):  # of this machine
        with locks.hold(stale(**changes), "place"):
            pass


def test_without_flock_the_file_itself_is_the_lock(
    stale: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "new" / "x.lock"
    with locks.hold(path, "place"), pytest.raises(ConfigError, match="locked by process"):
        locks.hold(path, "place").__enter__()
    assert not path.parent.exists()
    for changes in ({"pid": 2**22 + 1}, {"started": "1"}, {"boot": "before"}):
        with locks.hold(stale(**changes), "place"):
            pass
    path = stale(host="elsewhere", boot="x")
    with pytest.raises(ConfigError, match="elsewhere"):
        locks.hold(path, "place").__enter__()
    assert path.exists()


def test_a_lock_that_cannot_be_written_is_an_error_and_leaves_no_file(
    stale: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A full disk, a link to nothing, and the file of another user."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "new" / "x.lock"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            locks.hold(path, "place").__enter__()
    assert not path.parent.exists()
    (tmp_path / "link.lock").symlink_to(tmp_path / "nowhere" / "x")
    with pytest.raises(OSError, match="symbolic links"):
        locks.hold(tmp_path / "link.lock", "place").__enter__()
    opened, path = os.open, stale(host="elsewhere")

    def refuse(path: Path, flags: int, *more: int) -> int:
        if not flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=rf"^place: locked by process \d+ on elsewhere .* delete {path}$"):
        locks.hold(path, "place").__enter__()


def test_parts_of_one_job_share_a_lock_and_others_do_not(tmp_path: Path) -> None:
    path = tmp_path / "cache" / ".x.lock"
    with locks.hold_part(path, "cache", (0, 2), "a"):
        with locks.hold_part(path, "cache", (1, 2), "a"):
            for part, about in (((0, 2), "a"), ((1, 2), "a"), ((0, 1), "b"), ((1, 2), "b")):
                with pytest.raises(ConfigError, match=r"^cache: in use"):
                    locks.hold_part(path, "cache", part, about).__enter__()
        assert path.exists()
    assert not path.parent.exists()
    path.parent.mkdir()
    for name in (path.name, ".x.3-of-7.lock"):  # of killed processes
        (path.parent / name).write_text(json.dumps(vars(replace(locks.this_process("b"), started="1"))))
    with locks.hold_part(path, "cache", (0, 1), "a"):
        pass
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    ("kind", "options", "reaches"),
    [
        ("ext4", "rw,relatime", True),
        ("tmpfs", "rw", True),
        ("overlay", "rw", True),
        ("nfs4", "rw,vers=4.2,local_lock=none", True),
        ("nfs", "rw,nolock", False),
        ("nfs", "rw,local_lock=all", False),
        ("lustre", "rw,flock", True),
        ("lustre", "rw,localflock", False),
        ("fuse.sshfs", "rw", False),
        ("cifs", "rw", False),
    ],
)
def test_file_systems_whose_flock_all_machines_see(tmp_path: Path, kind: str, options: str, reaches: bool) -> None:
    other = "cifs" if reaches else "ext4"
    table = tmp_path / "mounts"
    table.write_text(f"a / {other} rw 0 0\nb /my\\040data {kind} {options} 0 0\nc /my\\040data/below {other} rw 0 0\n")
    assert locks.flock_reaches_all(Path("/my data/run/x.lock"), str(table)) == reaches
    assert locks.flock_reaches_all(Path("/my data/below/x.lock"), str(table)) != reaches
    assert not locks.flock_reaches_all(Path("/my data/run"), str(tmp_path / "none"))
