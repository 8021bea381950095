"""A run's folder: begun, continued, refused, replaced; and runs of two processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.config.recipe import Recipe
from tok1d.errors import ConfigError, DataError, WeightsError
from tok1d.inference.cache import encode_images
from tok1d.inference.request import CacheFormat
from tok1d.train import folder, processes, run
from tok1d.train.images import open_split
from tok1d.train.log import read_log
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.record import read_records
from tok1d.zoo.weights import fingerprint

Tiny = Callable[..., str]


def recipe(tiny: Tiny, out: Path, *overrides: str, kind: str = "tokenizer") -> Recipe:
    return load_recipe(tiny(kind), [f"out={out}", *overrides])


def begin(out: Path) -> None:
    """What the first training step leaves."""
    (out / "log.jsonl").write_text('{"step": 1}\n')


def finish(out: Path) -> None:
    begin(out)
    (out / "model").mkdir()
    (out / "model" / "config.json").write_text("{}")
    (out / "report.json").write_text("[]")


def test_a_new_run_holds_its_whole_recipe(tiny: Tiny, tmp_path: Path) -> None:
    wanted = recipe(tiny, tmp_path / "deep" / "run", "seed=5")
    out = folder.prepare(wanted)
    assert os.listdir(out) == ["config.yaml"] and load_recipe(str(out / "config.yaml")) == wanted


def test_the_same_recipe_goes_on_and_what_is_free_may_change(tiny: Tiny, tmp_path: Path) -> None:
    out = folder.prepare(recipe(tiny, tmp_path / "run"))
    begin(out)
    assert folder.prepare(recipe(tiny, out, "train.log_every=7", "train.save_every=3", "evaluate.num_images=3")) == out
    assert (out / "log.jsonl").exists()


def test_only_the_first_of_several_processes_writes(tiny: Tiny, tmp_path: Path) -> None:
    wanted = recipe(tiny, tmp_path / "run")
    assert folder.prepare(wanted, first=False) == tmp_path / "run" and not (tmp_path / "run").exists()
    out = folder.prepare(wanted)
    begin(out)
    folder.prepare(wanted, overwrite=True, first=False)
    assert sorted(os.listdir(out)) == ["config.yaml", "log.jsonl"]
    with pytest.raises(ConfigError, match=r"seed=0"):
        folder.prepare(recipe(tiny, out, "seed=3"), first=False)


class Interrupted(BaseException):
    """A process that ends here."""


def interrupt_removal(broken: pytest.MonkeyPatch, after: int) -> None:
    """Interrupted where more than so many files or folders are moved or removed."""
    removed = iter(range(after))

    def count() -> None:
        if next(removed, None) is None:
            raise Interrupted

    for place, name in ((shutil, "rmtree"), (Path, "unlink"), (os, "replace")):
        real = getattr(place, name)
        broken.setattr(place, name, lambda *a, real=real, **k: (count(), real(*a, **k)))


def test_no_recipe_takes_over_the_checkpoints_of_another(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without the log, and when the removal of a run was interrupted at any file."""
    old, new = (recipe(tiny, tmp_path / "run", f"seed={seed}") for seed in (1, 2))
    for kept in range(len(folder.RUN_FILES) + 4):
        out = folder.prepare(old, overwrite=True)
        finish(out)
        (out / "checkpoints").mkdir()
        (out / "checkpoints" / "step-00000001.pt").write_text("1")
        with monkeypatch.context() as broken, suppress(Interrupted):
            interrupt_removal(broken, kept)
            folder.prepare(new, overwrite=True)
        if (out / "checkpoints").exists():
            (out / "log.jsonl").unlink(missing_ok=True)
            with pytest.raises(ConfigError, match=r"finished run|seed=1"):
                folder.prepare(new)


@pytest.mark.parametrize("change", ["train.lr=0.5", "seed=3", "model.encoder.depth=2", "data.flip=true"])
def test_another_recipe_is_refused_by_its_key(tiny: Tiny, tmp_path: Path, change: str) -> None:
    out = folder.prepare(recipe(tiny, tmp_path / "run"))
    begin(out)
    with pytest.raises(ConfigError, match="--overwrite") as caught:
        folder.prepare(recipe(tiny, out, change))
    key, value = change.split("=")
    assert f"its unfinished run has {key}=" in str(caught.value)
    assert f"this recipe has {key}={value.capitalize()};" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_moved_run_and_other_spellings_of_its_paths_go_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    path = tiny("generator", tokenizer=tmp_path / "tokenizer", data={"name": "folder"})

    def prepare(out: Path | str, root: Path | str) -> None:
        folder.prepare(load_recipe(path, [f"out={out}", f"data.root={root}"]))

    prepare(tmp_path / "run", tmp_path / "data")
    begin(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for out, root in (("moved", tmp_path / "data"), ("./moved/", "data/"), (tmp_path / "moved", "other/../data")):
        prepare(out, root)
    with pytest.raises(ConfigError, match=r"data\.root=other;"):
        prepare("moved", "other")


def test_a_folder_inside_another_run_or_the_images_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder.prepare(recipe(tiny, tmp_path / "run"))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for name in ("run/model", "run/checkpoints", "link/samples/x/y"):
        with pytest.raises(ConfigError, match=f"lies inside the files of the run {tmp_path / 'run'};"):
            folder.prepare(recipe(tiny, tmp_path / name))
    assert os.listdir(tmp_path / "run") == ["config.yaml"]
    folder.prepare(recipe(tiny, tmp_path / "run" / "second"))
    images = ["data.name=folder", f"data.root={tmp_path / 'images'}"]
    with pytest.raises(ConfigError, match=r"outside of data\.root="):
        folder.prepare(recipe(tiny, tmp_path / "images" / "run", *images))
    folder.prepare(recipe(tiny, tmp_path / "images-run", *images))


def test_a_run_that_never_began_may_get_another_recipe(tiny: Tiny, tmp_path: Path) -> None:
    out = folder.prepare(recipe(tiny, tmp_path / "run", "data.root=mistyped"))
    corrected = recipe(tiny, out, "data.root=right")
    assert folder.prepare(corrected) == out and load_recipe(str(out / "config.yaml")) == corrected


def test_a_finished_run_is_only_replaced_on_request(tiny: Tiny, tmp_path: Path) -> None:
    out = folder.prepare(recipe(tiny, tmp_path / "run"))
    finish(out)
    with pytest.raises(ConfigError, match="finished run; pass --more N"):
        folder.prepare(recipe(tiny, out))
    assert folder.is_finished(out)
    (out / "notes.txt").write_text("mine")
    (out / "nonfinite-step-00000003.pt").write_text("")
    (out / "cache").mkdir()
    folder.prepare(recipe(tiny, out, "seed=9"), overwrite=True)
    assert sorted(os.listdir(out)) == ["config.yaml", "notes.txt"]
    assert load_recipe(str(out / "config.yaml")).seed == 9


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_left_alone(tiny: Tiny, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "home" / "model").mkdir(parents=True)
    (tmp_path / "home" / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not a run folder"):
        folder.prepare(recipe(tiny, tmp_path / "home"), overwrite=overwrite)
    assert (tmp_path / "home" / "model" / "thesis.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the run folder"):
        folder.prepare(recipe(tiny, tmp_path / "file"), overwrite=overwrite)


@pytest.mark.parametrize(("function", "reason"), [("mkdir", "Permission denied"), ("write_text", "No space left")])
def test_a_folder_that_cannot_be_written_is_one_line(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, reason: str
) -> None:
    wanted = recipe(tiny, tmp_path / "run")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(13 if function == "mkdir" else 28, reason)

    monkeypatch.setattr(Path, function, refuse)
    with pytest.raises(ConfigError, match=rf"run: cannot write the run folder \({reason}\)"):
        folder.prepare(wanted)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_steps_that_a_decoder_cannot_take_are_reported_before_the_training(
    tiny: Tiny, tmp_path: Path, fashion: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("trained"))
    for steps in (1, 1001):
        wanted = recipe(tiny, tmp_path / "run", "model.objective=ddpm", f"evaluate.steps={steps}")
        with pytest.raises(
            ConfigError, match=rf"^evaluate\.steps: .* 2 to 1000 steps for a DDPM decoder, got {steps}$"
        ):
            run.train(wanted, quiet=True)
    tokenizer = store.build_model(recipe(tiny, tmp_path / "x", "model.objective=ddpm").model)
    store.save_model(tokenizer, tmp_path / "tokenizer", Card())
    wanted = load_recipe(
        tiny("generator", tokenizer=tmp_path / "tokenizer"), [f"out={tmp_path / 'g'}", "evaluate.steps=1"]
    )
    with pytest.raises(ConfigError, match=r"^evaluate\.steps: .* got 1$"):
        run.train(wanted, quiet=True)


def test_keep_above_the_length_is_left_out_and_all_tokens_are_measured(
    tiny: Tiny, tmp_path: Path, fashion: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same line in the dry run."""
    changes = [f"out={tmp_path / 'run'}", "evaluate.keep=[1,2,5,7]"]
    line = "evaluate.keep: 5, 7 left out, the model has 4 tokens; measured: 1, 2, 4"
    assert cli.run(["train", tiny("tokenizer"), *changes, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines().count(line) == 1
    out = run.train(load_recipe(tiny("tokenizer"), changes), quiet=True)
    assert capsys.readouterr().out.splitlines().count(line) == 1
    assert {record.keep for record in read_records(out / "report.json")} == {1, 2, 4, None}


def test_a_generator_takes_only_its_tokenizer_s_tokens(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    tokenizer = store.build_model(load_recipe(tiny("tokenizer")).model)
    store.save_model(tokenizer, tmp_path / "model", Card())
    settings = [f"tokenizer={tmp_path / 'model'}", f"out={tmp_path / 'run'}"]

    def build(*overrides: str) -> None:
        build_task(load_recipe(tiny("generator"), [*settings, *overrides]))

    with pytest.raises(ConfigError, match=r"^model\.num_tokens: expected 4 as the tokenizer makes them, got 3"):
        build("num_tokens=null")
    with pytest.raises(ConfigError, match=r"^model\.token_dim: expected 4 .* got 5"):
        build("model.token_dim=5")
    with pytest.raises(ConfigError, match=r"^num_tokens: expected 1\.\.4 .* got 6"):
        build("num_tokens=6", "model.num_tokens=6")
    build()  # writes the cache of three tokens
    with pytest.raises(ConfigError, match=r"^model\.num_classes: expected 10, .* \(T-shirt.*\), got 7"):
        build("model.num_classes=7")
    with pytest.raises(DataError, match="expected at least 4 tokens per image, got 3"):
        build("num_tokens=4", "model.num_tokens=4")
    with torch.no_grad():
        next(tokenizer.parameters()).add_(1)
    store.save_model(tokenizer, tmp_path / "model", Card())
    with pytest.raises(DataError, match="made by tokenizer"):
        build()
    store.save_model(store.build_model(load_recipe(tiny("classifier")).model), tmp_path / "cnn", Card())
    with pytest.raises(ConfigError, match="expected the model folder of a tokenizer"):
        build(f"tokenizer={tmp_path / 'cnn'}")
    with pytest.raises(WeightsError, match="no model"):
        build(f"tokenizer={tmp_path / 'none'}")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("maetok", "evaluate.keep=[1,4]", r"evaluate\.keep: these tokens have no order, expected \[\] or \[4\], .* 1"),
        (
            "maetok",
            "evaluate.guidance=2",
            r"evaluate\.guidance: this decoder is deterministic and has no guidance, expected 1, .* 2",
        ),
        ("sit", "evaluate.keep=[2]", r"evaluate\.keep: these tokens have no order, expected \[\] or \[4\], got 2"),
        ("sit", "model.class_dropout=0", r"evaluate\.guidance: .* trained without class_dropout, expected 1, .* 1\.5"),
        ("sit", "model.num_classes=0", r"evaluate\.guidance: sampling without classes .*, expected 1, got 1\.5"),
        ("sit", "evaluate.unconditional=true", r"evaluate\.guidance: sampling without classes .*, expected 1, .* 1\.5"),
        (
            "sit",
            "evaluate.guidance_interval=[0.5,0.2]",
            r"evaluate\.guidance_interval: expected \[low, high\] with 0 .*",
        ),
        (
            "generator",
            "evaluate.guidance_interval=[0.2,0.5]",
            r"evaluate\.guidance_interval: epsilon_llamagen has.*",
        ),
    ],
)
def test_what_an_evaluation_cannot_do_is_reported_before_the_training(
    tiny: Tiny, tmp_path: Path, fashion: None, monkeypatch: pytest.MonkeyPatch, kind: str, change: str, message: str
) -> None:
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("trained"))
    settings = [f"out={tmp_path / 'run'}"]
    if kind != "maetok":
        tokenizer = "maetok" if kind == "sit" else "tokenizer"
        store.save_model(store.build_model(load_recipe(tiny(tokenizer)).model), tmp_path / "tokenizer", Card())
        settings += [f"tokenizer={tmp_path / 'tokenizer'}", "evaluate.guidance=1.5"]
    with pytest.raises(ConfigError, match=f"^{message}$"):
        run.train(load_recipe(tiny(kind), [*settings, change]), quiet=True)


def test_a_model_without_a_null_class_does_not_sample_without_classes(
    tiny: Tiny, tmp_path: Path, fashion: None
) -> None:
    store.save_model(store.build_model(load_recipe(tiny("maetok")).model), tmp_path / "tokenizer", Card())
    settings = ["model.class_dropout=0", "evaluate.unconditional=true", f"tokenizer={tmp_path / 'tokenizer'}"]
    with pytest.raises(ConfigError, match=r"^evaluate\.unconditional: needs a null class.*got 0$"):
        run.train(load_recipe(tiny("sit"), [*settings, f"out={tmp_path / 'run'}"]), quiet=True)
    with pytest.raises(ConfigError, match=r"^evaluate\.unconditional: only generators read it"):
        load_recipe(tiny("maetok"), ["evaluate.unconditional=true"])


@pytest.mark.parametrize("cache", ["none", None])
@pytest.mark.parametrize("statistics", ["scalar", "channel"])
def test_whole_sequences_are_normalised_by_what_they_train_on(
    tiny: Tiny, tmp_path: Path, fashion: None, cache: str | None, statistics: str
) -> None:
    """64 images in batches of 64: the rows measured are whole epochs, so mean and std are those of all tokens."""
    tokenizer = store.build_model(load_recipe(tiny("maetok")).model).eval()
    store.save_model(tokenizer, tmp_path / "tokenizer", Card())
    settings = [f"tokenizer={tmp_path / 'tokenizer'}", f"out={tmp_path / 'run'}", "train.batch_size=64"]
    settings += [f"model.statistics={statistics}", *([] if cache is None else [f"cache={cache}"])]
    wanted = load_recipe(tiny("sit"), settings)
    model: Any = build_task(wanted).model
    with torch.no_grad():
        tokens = tokenizer.encode(open_split(wanted, "train").batch(range(64))[0])
    axes = (0, 1) if statistics == "channel" else (0, 1, 2)
    torch.testing.assert_close(model.token_mean, tokens.mean(axes).reshape(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.token_std, tokens.std(axes, correction=0).reshape(-1), rtol=1e-4, atol=1e-5)
    again: Any = build_task(wanted).model
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_resumed_run_keeps_its_statistics(
    tiny: Tiny, tmp_path: Path, fashion: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save_model(store.build_model(load_recipe(tiny("maetok")).model), tmp_path / "tokenizer", Card())
    wanted = load_recipe(tiny("sit"), [f"tokenizer={tmp_path / 'tokenizer'}", f"out={tmp_path / 'run'}"])
    first = build_task(wanted)
    mean = first.model.get_buffer("token_mean").clone()
    assert not run.fit(wanted, first, tmp_path / "run", seconds=0.0, quiet=True).finished
    monkeypatch.setattr("tok1d.generators.sequence.SequenceModel.fit_statistics", lambda *_: pytest.fail("measured"))
    second = build_task(wanted)
    assert not torch.equal(second.model.get_buffer("token_mean"), mean)
    assert run.fit(wanted, second, tmp_path / "run", quiet=True).finished
    assert torch.equal(second.model.get_buffer("token_mean"), mean)


def test_stage_two_starts_from_stage_one(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    torch.manual_seed(1)
    first = store.build_model(load_recipe(tiny("maetok")).model)
    store.save_model(first, tmp_path / "first", Card())
    settings = ["model.stage=finetune", "model.auxiliary=[]", f"out={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=r"^init_from: model\.stage=finetune continues from the model of a"):
        load_recipe(tiny("maetok"), settings)
    wanted = load_recipe(tiny("maetok"), [*settings, f"init_from={tmp_path / 'first'}"])
    assert run.train(wanted, quiet=True, seconds=0.0) == tmp_path / "run"
    (tmp_path / "first").rename(tmp_path / "elsewhere")  # a resumed run does not read it
    run.train(wanted, quiet=True, seconds=0.0)
    (tmp_path / "elsewhere").rename(tmp_path / "first")
    run.train(wanted, quiet=True)
    model = store.load(tmp_path / "run" / "model")
    assert model.card.trained["init_from"] == f"{tmp_path / 'first'}@{fingerprint(first)}"
    assert not [name for name in model.state_dict() if name.startswith("auxiliary")]
    for name, value in model.state_dict().items():
        same = torch.equal(value, first.state_dict()[name])
        assert same == name.startswith(("encoder.", "bottleneck.")), name


def test_a_tokenizer_is_initialised_only_from_the_same_kind(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    torch.manual_seed(1)
    first = store.build_model(load_recipe(tiny("tokenizer")).model)
    store.save_model(first, tmp_path / "first", Card())
    start = f"init_from={tmp_path / 'first'}"

    def build(*overrides: str, kind: str = "tokenizer") -> Any:
        return build_task(load_recipe(tiny(kind), [start, *overrides])).model

    for name, value in build().state_dict().items():
        assert torch.equal(value, first.state_dict()[name]), name
    large = build("data.image_size=56", "model.image_size=56")
    changed = [k for k, v in large.state_dict().items() if not torch.equal(v, first.state_dict().get(k, v[:0]))]
    assert changed == ["encoder.positions"]
    torch.testing.assert_close(large.encoder.positions, first.encoder.table(4, 4))  # type: ignore
    with pytest.raises(ConfigError, match=r"^init_from: expected a maetok, .*first is a semanticist$"):
        build(kind="maetok")
    for change in ("model.token_dim=5", "model.encoder.depth=2"):
        with pytest.raises(WeightsError, match=r"^init_from=.*first: \d+ weights .* for this model: ") as caught:
            build(change)
        assert "\n" not in str(caught.value)
    assert load_recipe(tiny("tokenizer"), ["start=x"]) == load_recipe(tiny("tokenizer"), ["init_from=x"])  # as it was


def test_the_cache_holds_what_the_tokenizer_encodes(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    settings = load_recipe(tiny("tokenizer"))
    tokenizer, images = store.build_model(settings.model).eval(), open_split(settings, "train")
    kept = CacheFormat(num_tokens=2)
    cache = encode_images(tokenizer, images, tmp_path / "cache", format=kept, batch_size=24, quiet=True)
    with torch.no_grad():
        expected = tokenizer.encode(images.batch(range(64))[0])[:, :2]
    tokens, labels = cache.batch(range(64))
    torch.testing.assert_close(tokens, expected)
    assert torch.equal(labels, images.batch(range(64))[1]) and cache.meta["num_classes"] == 10
    cache.check(tokenizer_fingerprint=fingerprint(tokenizer), data_fingerprint=images.fingerprint())


def test_an_installed_copy_inside_another_checkout_names_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    file = tmp_path / "site" / "tok1d" / "run.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.setattr(run, "__file__", str(file))
    assert run.code_version() == "v0.1.0"
    subprocess.run([*git, "add", str(file)], check=True)
    assert re.fullmatch("[0-9a-f]{12}[+]", run.code_version())  # ours, and not committed yet
    subprocess.run([*git, "commit", "-q", "-m", "y"], check=True)
    assert re.fullmatch("[0-9a-f]{12}", run.code_version())


WORKER = """
import os, sys
import torch
from tok1d.config.load import load_recipe
from tok1d.train import loop, processes, run

rank, fit, prepare = int(os.environ["RANK"]), run.fit, loop.Run.prepare


def viewed(self):
    prepare(self)
    assert all(state.forward.gradient_as_bucket_view for state in self.players)
    waits = torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout
    assert waits >= processes.TIMEOUT, waits


loop.Run.prepare = viewed


def spy(recipe, task, out, **options):
    result = fit(recipe, task, out, **options)
    torch.save((result.steps, task.model.state_dict()), f"{out}-rank{rank}-{result.steps}.pt")
    return result


run.fit = spy
recipe = load_recipe(sys.argv[1], [f"out={sys.argv[2]}"])
# One process of the two runs out of time: both stop, at the same step.
run.train(recipe, quiet=True, seconds=0.0 if rank == 1 else None, overwrite=True)
run.train(recipe, quiet=True)
"""


def test_the_error_of_another_process_is_printed_once(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This is the second of two processes; the first one finds the folder in use."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "processes", lambda: SimpleNamespace(is_main_process=False))
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [("ConfigError", "x: in use"), *own])
    with pytest.raises(ConfigError, match="x: in use"):
        run.train(recipe(tiny, tmp_path / "run"))
    assert cli.run(["train", tiny("tokenizer"), f"out={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err == "" and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_stop_together_go_on_and_end_like_one(tiny: Tiny, tmp_path: Path) -> None:
    for i in range(24):
        path = tmp_path / "data" / ("train" if i < 16 else "test") / f"class{i % 10}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (28, 28), np.uint8)).save(path)
    file = tiny("classifier", data={"name": "folder", "root": str(tmp_path / "data")})
    (tmp_path / "worker.py").write_text(WORKER)
    out = tmp_path / "two"
    folder.prepare(load_recipe(file, [f"out={out}", "seed=1"]))  # something to replace, once
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "output.txt").open("w+") as output:
        both = subprocess.Popen(
            [*command, str(tmp_path / "worker.py"), file, str(out)],
            env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            code = both.wait(timeout=500)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(both.pid, signal.SIGKILL)
        output.seek(0)
        assert code == 0, output.read()[-4000:]
    assert folder.is_finished(out) and json.loads((out / "report.json").read_text())
    for steps in (1, 6):
        ends = [torch.load(f"{out}-rank{rank}-{steps}.pt") for rank in range(2)]
        assert [end[0] for end in ends] == [steps, steps]
        for name, value in ends[0][1].items():
            assert torch.equal(value, ends[1][1][name]), name

    alone = load_recipe(file, [f"out={tmp_path / 'one'}"])
    task = build_task(alone)
    start = {name: value.clone() for name, value in task.model.state_dict().items()}
    run.fit(alone, task, folder.prepare(alone), quiet=True)
    moved = max((value - start[name]).abs().max() for name, value in task.model.state_dict().items())
    assert moved > 1e-3
    for name, value in task.model.state_dict().items():
        torch.testing.assert_close(ends[0][1][name], value, atol=2e-5, rtol=1e-4)
    norms = [[entry["grad_norm"] for entry in read_log(Path(folder) / "log.jsonl")] for folder in (out, alone.out)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)  # AdamW forgets the gradient's scale, the log does not


@pytest.mark.parametrize("kind", ["tokenizer", "maetok"])
def test_a_preview_of_fewer_test_images_than_its_columns(tiny: Tiny, tmp_path: Path, fashion: None, kind: str) -> None:
    wanted = recipe(tiny, tmp_path / "run", "data.limit_test=3", kind=kind)
    task = build_task(wanted)
    assert task.preview is not None
    task.preview(task.model.eval(), tmp_path / "preview.png")
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.width < 4 * 2 * (task.model.config.image_size + 4)


def pictures(root: Path, seed: int, *, captions: bool = False) -> Path:
    rng = np.random.default_rng(seed)
    for split, num in (("train", 12), ("test", 4)):
        for i in range(num):
            path = root / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(path)
            if captions:
                path.with_suffix(".txt").write_text(f"{seed} {i}")
    return root


OTHER = (
    "step 1: written by a training on other images than the 12 that it resumes with; from here on the batches differ"
)


@pytest.mark.parametrize("change", ["pixels", "one image", "a name", "a label", "moved", "nothing"])
def test_a_training_whose_images_were_replaced_says_so(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    data, out = pictures(tmp_path / "data", 0), tmp_path / "run"
    train = ["train", tiny("tokenizer"), f"out={out}", "data.name=folder"]
    assert cli.run([*train, f"data.root={data}", "--minutes", "0"]) == 0
    first = data / "train" / "a" / "0.png"
    if change == "pixels":
        pictures(data, 1)
    elif change == "one image":
        Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    elif change == "a name":
        first.rename(first.with_name("00.png"))
    elif change == "a label":
        first.rename(data / "train" / "b" / "0.png")
    elif change == "moved":
        shutil.copytree(data, tmp_path / "copy")
        shutil.rmtree(data)
        (tmp_path / "copy").rename(data)
    capsys.readouterr()
    assert cli.run([*train, f"data.root={data}"]) == 0
    assert (OTHER in capsys.readouterr().err) == (change not in ("moved", "nothing"))


@pytest.mark.parametrize("cache", ["none", "folder"])
def test_a_generator_whose_tokenizer_was_replaced_does_not_resume(
    tiny: Tiny, tmp_path: Path, fashion: None, capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    place, kept = tmp_path / "tokenizer", tmp_path / "cache"
    config = load_recipe(tiny("tokenizer")).model

    def make(seed: int) -> None:
        torch.manual_seed(seed)
        store.save_model(store.build_model(config), place, Card())

    make(0)
    train = ["train", tiny("generator"), f"tokenizer={place}", f"out={tmp_path / 'run'}"]
    train.append(f"cache={'none' if cache == 'none' else kept}")
    assert cli.run([*train, "--minutes", "0"]) == 0
    shutil.rmtree(place)
    shutil.rmtree(kept, ignore_errors=True)  # else the cache is refused
    make(1)
    capsys.readouterr()
    assert cli.run(train) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step 1 was written by a training on tokens of another tokenizer" in error and "--overwrite" in error
    shutil.rmtree(place)
    shutil.rmtree(kept, ignore_errors=True)
    make(0)
    assert cli.run(train) == 0


def test_captions_that_the_model_does_not_read_may_change(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = pictures(tmp_path / "data", 0, captions=True), tmp_path / "run"
    train = ["train", tiny("tokenizer"), f"out={out}", "data.name=folder", f"data.root={data}", "data.captions=files"]
    assert cli.run([*train, "--minutes", "0"]) == 0
    (data / "train" / "a" / "0.txt").write_text("another")
    capsys.readouterr()
    assert cli.run(train) == 0 and "other images" not in capsys.readouterr().err


def test_checkpoints_without_a_fingerprint_resume_in_silence(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = pictures(tmp_path / "data", 0), tmp_path / "run"
    train = ["train", tiny("tokenizer"), f"out={out}", "data.name=folder", f"data.root={data}"]
    assert cli.run([*train, "--minutes", "0"]) == 0
    (path,) = (out / "checkpoints").glob("step-*.pt")
    state = torch.load(path, weights_only=True)
    assert state.pop("data").startswith("e2_")
    torch.save(state, path)
    pictures(data, 1)
    capsys.readouterr()
    assert cli.run(train) == 0 and "other images" not in capsys.readouterr().err
