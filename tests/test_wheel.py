"""The wheel: its contents, and what it does in a new environment that has the core dependencies only."""

import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")
MAX_MB = 30
MAKE = 'run the tests with "make test", which sets up both'


def uv(*arguments: str | Path) -> None:
    """Run uv without network; what it needs is in its cache if the environment of the tests was made by it."""
    done = subprocess.run([UV, *arguments, "--offline", "--quiet"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode and re.search(r"offline|network|found in the cache", done.stderr, re.IGNORECASE):
        pytest.skip(f"the cache of uv lacks a package: {done.stderr.strip().splitlines()[-1]}; {MAKE}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not UV.exists():
        pytest.skip(f"needs uv beside {sys.executable}; {MAKE}")
    out = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--out-dir", out)
    (path,) = out.glob("tok1d-*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    venv, constraints = wheel.parent / "venv", wheel.parent / "constraints.txt"
    here = {each.metadata["Name"]: each.version for each in distributions()}  # their files are in the cache
    del here["tok1d"]
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in here.items()), encoding="utf-8")
    uv("venv", venv, "--python", sys.executable)
    uv("pip", "install", "--python", venv / "bin" / "python", "--constraint", constraints, wheel)
    return venv / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONPYCACHEPREFIX")}
    done = subprocess.run([python, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_is_small_and_has_the_data_of_the_package(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_MB * 1e6
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {str(path.relative_to(ROOT)) for path in (ROOT / "tok1d").rglob("*") if path.is_file()}
    expected = {name for name in inside if "__pycache__" not in name}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"tok1d/py.typed", "tok1d/recipes/fashion_mnist/smap.yaml"} <= expected


def test_a_new_environment_has_no_extras(python: Path, tmp_path: Path) -> None:
    extras = ("diffusers", "timm", "transformers", "datasets", "pytest", "webdataset", "tensorboard")
    code = f"import importlib.util as u; print([n for n in {extras} if u.find_spec(n)])"
    assert run(python, "-c", code, cwd=tmp_path).strip() == "[]"


def test_a_new_environment_loads_draws_and_reconstructs(python: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "photo.png")
    code = """
import tok1d
generator, tokenizer = tok1d.load_pair("fashion-mnist-card")
drawn = generator.generate(["Sneaker"], num=2, seed=0)
tokens = tokenizer.encode("photo.png")
tokenizer.decode(tokens, keep=4, as_pil=True)[0].save("back.png")
print(tok1d.__file__, tuple(drawn.images.shape), tuple(tokens.shape))
"""
    file, rest = run(python, "-c", code, cwd=tmp_path).split(maxsplit=1)
    assert Path(file).is_relative_to(python.parents[1])
    assert rest.strip() == "(2, 1, 28, 28) (1, 16, 16)"
    assert Image.open(tmp_path / "back.png").size == (28, 28)
    command = str(python.with_name("tok1d"))
    options = ("generate", "fashion-mnist-epsilon-llamagen", "--classes", "Bag", "--num", "2", "--out", "drawn")
    run(python, command, *options, cwd=tmp_path)
    assert list((tmp_path / "drawn").rglob("*.png"))
