"""A full disk at every kind of file that a run writes: a one-line error, no partial file, same weights later."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import safetensors.torch
import torch

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.zoo import store
from tok1d.zoo.card import Card

Tiny = Callable[..., str]


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Fails once: at the `number`-th file written or renamed whose name ends with this suffix."""

    def __init__(self, patch: pytest.MonkeyPatch, ending: str, number: int = 1) -> None:
        self.ending, self.left = ending, number
        save, safe, text, picture = torch.save, safetensors.torch.save_file, Path.write_text, PIL.Image.Image.save
        replace, opened = os.replace, Path.open
        patch.setattr(torch, "save", lambda content, path: self.half(path) or save(content, path))
        patch.setattr(safetensors.torch, "save_file", lambda t, path, **more: self.half(path) or safe(t, path, **more))
        patch.setattr("tok1d.data.token_writer.save_file", safetensors.torch.save_file)
        patch.setattr(Path, "write_text", lambda path, content, **more: self.half(path) or text(path, content, **more))
        patch.setattr(PIL.Image.Image, "save", lambda own, path, **more: self.half(path) or picture(own, path, **more))
        patch.setattr(os, "replace", lambda source, target: self.fails(target, "renamed") or replace(source, target))
        patch.setattr(
            Path, "open", lambda path, mode="r", *a, **k: self.half(path, mode) or opened(path, mode, *a, **k)
        )

    def half(self, path: Any, mode: str = "w") -> None:
        if mode[0] in "wa" and self.fails(path, ""):
            if mode[0] == "w":
                with open(path, "wb") as file:
                    file.write(b"half")
            full()

    def fails(self, path: Any, how: str) -> bool:
        name = Path(path).name.strip(".")
        if how != ("renamed" if self.ending.startswith("renamed ") else "") or self.left < 1:
            return False
        if self.ending.removeprefix("renamed ") not in name:
            return False
        self.left -= 1
        if how and not self.left:
            full()
        return not self.left


@pytest.fixture
def command(tiny: Tiny, tmp_path: Path, fashion: None) -> list[str]:
    """A generator's training, which makes its token cache, with checkpoints and a preview."""
    torch.manual_seed(0)
    store.save_model(store.build_model(load_recipe(tiny("tokenizer")).model), tmp_path / "tokenizer", Card())
    more = ["train.save_every=2", "train.preview_every=3"]
    return ["train", tiny("generator", tokenizer=tmp_path / "tokenizer"), *more, f"out={tmp_path / 'run'}"]


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if path.name.endswith((".tmp", ".old"))]


@pytest.fixture
def whole(command: list[str], tmp_path: Path) -> bytes:
    """The weights of the run that always had enough free space."""
    assert cli.run([*command[:-1], f"out={tmp_path / 'whole'}"]) == 0
    return (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_full_disk_loses_only_the_steps_since_the_checkpoint(
    command: list[str], whole: bytes, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    places = ["config.yaml", "shard-", "log.jsonl", "step-00000004.pt", "renamed step-00000002.pt"]
    places += ["model.safetensors", "report.json"]
    for place in places:
        shutil.rmtree(run, ignore_errors=True)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            disk = Disk(patch, place, 2 if place == "log.jsonl" else 1)
            assert cli.run(command) == 2, place
        assert disk.left == 0, place
        err = capsys.readouterr().err
        assert err.count("error: ") == 1 and "Traceback" not in err and "No space left" in err.splitlines()[-1], place
        assert temporaries(tmp_path) == [], place
        steps = [int(path.stem[5:]) for path in (run / "checkpoints").glob("*.pt")]
        if place == "step-00000004.pt":
            assert steps == [2]
        if place == "report.json":
            assert max(steps) == 6
        assert cli.run(command) == 0, place
        assert (run / "model" / "model.safetensors").read_bytes() == whole, place
        assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [2, 4, 6], place


# A disk that grows until the training fits, in a separate namespace, where no privilege is needed to mount.
GROWING = """
import subprocess, sys
from pathlib import Path
from tok1d.cli import app as cli

disk, command = Path(sys.argv[1]), sys.argv[2:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=True)
size, codes = 16, []
while (codes or [2])[-1] == 2 and size < 8000:
    print(f"size {size}k", file=sys.stderr, flush=True)
    codes.append(cli.run(command))
    left = [p.name for p in disk.rglob(".*") if p.name.endswith((".tmp", ".old"))]
    assert not left, (size, left)
    size += 80
    subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
print(codes)
Path(sys.argv[1] + ".safetensors").write_bytes((disk / "run" / "model" / "model.safetensors").read_bytes())
"""


def may_mount(folder: Path) -> bool:
    test = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    try:
        return subprocess.run(test, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
def test_a_run_on_a_disk_that_grows_ends_like_one_with_free_space(tmp_path: Path, tiny: Tiny) -> None:
    if not may_mount(tmp_path):
        pytest.skip("needs unshare and the right to mount a tmpfs in a user namespace (Linux); runs where it is given")
    harness = str(Path(__file__).parent)
    write = f"import sys; sys.path.insert(0, {harness!r}); import harness; from pathlib import Path; "
    write += f"harness.write_data(Path({str(tmp_path / 'data')!r}))"
    subprocess.run([sys.executable, "-c", write], check=True)
    (tmp_path / "disk").mkdir()
    command = ["train", tiny("maetok"), f"data.root={tmp_path / 'data'}", "train.save_every=2"]
    command += [f"out={tmp_path / 'disk' / 'run'}"]
    apart = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", GROWING]
    done = subprocess.run([*apart, str(tmp_path / "disk"), *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes[-1] == 0 and len(codes) > 3 and set(codes[:-1]) == {2}
    assert done.stderr.count("error: ") == len(codes) - 1 and "Traceback" not in done.stderr
    assert cli.run([*command[:-1], f"out={tmp_path / 'run'}"]) == 0
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "disk.safetensors").read_bytes() == weights
