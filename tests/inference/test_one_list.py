"""A field added to `SampleSettings` becomes an option, an axis, a recipe key and a record setting, without edits."""

import subprocess
import sys

ADDED = """
import sys, types
from pathlib import Path
import tok1d.config

path = Path(tok1d.config.__file__).with_name("sampling.py")
field = 'new: float = option(0.5, "a new setting", ge=0)'
source = path.read_text().replace("    top_k: int", f"    {field}\\n    top_k: int", 1)
module = types.ModuleType("tok1d.config.sampling")
sys.modules[module.__name__] = module
exec(compile(source, str(path), "exec"), module.__dict__)
"""
USED = """
import typer
from tok1d.cli.app import app

group = typer.main.get_command(app)
evaluations = group.commands["evaluate"].commands
for command in (group.commands["generate"], evaluations["generation"], evaluations["grid"]):
    assert "--new" in {name for each in command.params for name in each.opts}, command.name

from tok1d.cli.grid import OPTIONS
assert OPTIONS[0]["new"].values("0.25,2") == [0.25, 2.0]

from tok1d.config.fields import build_config
from tok1d.config.recipe import EvaluateConfig
assert build_config(EvaluateConfig, {"new": 2}).sampling.settings.given() == {"new": 2.0}

from tok1d.diffusion.guidance import Guidance
from tok1d.evaluate.facts import measured
from tok1d.evaluate.request import Generation
from tok1d.inference.sampling import sampling_record
from tok1d.zoo.record import Record

class Stub:
    kind, parallel, guidance_interval_of = "diffusion", True, "time"

    def resolved_settings(self, settings):
        return {"sampler": "sde", "steps": 4}

settings = Generation(model="m", new=2.0).sampling.settings
sampling = sampling_record(Stub(), settings, Guidance(1.0), 4.0, 1)
record = Record(name="psnr", value=1.0, num_images=1, sampling=sampling)
assert record.sampler_text == "sde 4 steps, 4 evaluations a sequence, new 2", record.sampler_text
assert measured(record, "a").settings["new"] == "2"
"""


def test_a_new_setting_needs_one_field() -> None:
    done = subprocess.run([sys.executable, "-c", ADDED + USED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
