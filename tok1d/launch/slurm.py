"""Commands as SLURM jobs, through submitit: one process a GPU, requeued after it was preempted or ran out of time."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from tok1d.config.load import load_recipe
from tok1d.errors import ConfigError, InputError, Tok1dError

COMMANDS = ("train", "encode", "evaluate")  # what may stand in front; anything else is a recipe to train
LOGS = "slurm"  # folder of a job's logs in the run's folder
SAVED = 130  # exit code of a command that was stopped and can go on
TIMEOUTS = 10_000  # a job may run out of its time so often; each time it goes on where it was
Cluster = Literal["slurm", "local", "debug"]
Run = Callable[[list[str]], int]  # a command line -> its exit code


@dataclass
class Resources:
    """What a job asks of the cluster; `gpus` and `cpus` are of a node and of a process."""

    nodes: int = 1
    gpus: int = 1
    tasks: int | None = None  # processes a node; None is one a GPU
    cpus: int = 8
    minutes: int = 24 * 60
    partition: str = ""
    further: dict[str, str] = field(default_factory=dict)  # what sbatch takes else

    @property
    def tasks_per_node(self) -> int:
        return self.tasks or max(self.gpus, 1)


def parse_time(text: str) -> int:
    """Minutes of a time as sbatch takes it: MINUTES, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; seconds are rounded up."""
    found = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(\d+)|(\d+):(\d+):(\d+))", text)
    days, hours, minutes, seconds, alone, *clock = (int(part or 0) for part in found.groups()) if found else [0] * 8
    total = days * 1440 + (hours + clock[0]) * 60 + minutes + clock[1] + alone + -(-(seconds + clock[2]) // 60)
    if total < 1:
        raise InputError(f"--time: expected minutes, HH:MM:SS or D-HH:MM:SS, got {text!r}")
    return total


class Command:
    """A command line of tok1d as a job's process; what submitit calls, and pickles again when the job is requeued."""

    def __init__(self, arguments: list[str], run: Run) -> None:
        self.arguments, self.run = arguments, run
        self._preempted: int | None = None

    def __call__(self) -> str:
        import submitit
        from submitit.helpers import TorchDistributedEnvironment

        job = submitit.JobEnvironment()
        if job.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:  # a machine need not know itself by name
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        requeue = self._save_first()
        code = self.run(self.arguments)
        if code == SAVED and self._preempted is not None and callable(requeue):
            requeue(self._preempted, None)  # of the first process; it ends here, the others return
        elif code:
            raise RuntimeError(f"tok1d {' '.join(self.arguments)} ended with exit code {code}: see the log above")
        return " ".join(self.arguments)

    def checkpoint(self) -> Any:
        """What runs when the job is requeued: the same command, which goes on from what is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Command([word for word in self.arguments if word != "--overwrite"], self.run))

    def _save_first(self) -> Any:
        """Let a training save before submitit requeues the job; returns submitit's own handler of the signal."""
        from submitit.core.job_environment import JobEnvironment

        number = signal.Signals[f"SIG{JobEnvironment().USR_SIG}"]
        requeue = signal.getsignal(number)

        def preempted(number: int, frame: FrameType | None) -> None:
            self._preempted = number
            if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, bypass) and callable(requeue):
                requeue(number, frame)  # no training at work that could save
            elif self.arguments[0] == "train":
                signal.raise_signal(signal.SIGTERM)  # the loop saves after the step and leaves

        bypass = signal.getsignal(signal.SIGTERM)  # submitit's: the signal before the preemption is none of ours
        if callable(requeue):
            signal.signal(number, preempted)
        return requeue


def job_of(words: list[str]) -> tuple[list[str], Path, int | None]:
    """The command line of a job, the folder of its logs, and the global batch size of a training.

    Raises:
        Tok1dError: a recipe that is none, before anything is submitted.
    """
    if words and words[0] in COMMANDS[1:]:
        return words, Path("runs") / LOGS, None
    words = words[1:] if words[:1] == ["train"] else words
    if not words:
        raise InputError("launch: expected a recipe with key=value, or evaluate or encode with their arguments")
    recipe = load_recipe(words[0], [word for word in words[1:] if not word.startswith("-")])
    return ["train", *words], Path(recipe.out) / LOGS, recipe.train.batch_size


def check_batch(batch_size: int | None, resources: Resources) -> None:
    """Refuse a global batch that the processes cannot share evenly."""
    world = resources.nodes * resources.tasks_per_node
    if batch_size is not None and batch_size % world:
        raise ConfigError(
            f"train.batch_size: expected a multiple of {world} processes ({resources.nodes} nodes x "
            f"{resources.tasks_per_node}), got {batch_size}"
        )


def executor_for(cluster: Cluster, logs: Path, resources: Resources, name: str) -> Any:
    """submitit's executor; raises InputError where submitit, or SLURM, is not there."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise InputError("launch: needs the package submitit: pip install 'tok1d[slurm]'") from None
    if cluster == "slurm" and submitit.SlurmExecutor.affinity() <= 0:
        raise InputError("launch: no SLURM here (no srun); run it where sbatch is, or --cluster local runs it here")
    executor = submitit.AutoExecutor(folder=logs / "%j", cluster=cluster, slurm_max_num_timeout=TIMEOUTS)
    executor.update_parameters(
        name=name,
        nodes=resources.nodes,
        tasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus,
        cpus_per_task=resources.cpus,
        timeout_min=resources.minutes,
    )
    if cluster == "slurm":
        executor.update_parameters(**_slurm(resources))
    return executor


def script(logs: Path, resources: Resources, name: str) -> str:
    """The sbatch script of a job; nothing is written, and no SLURM needed."""
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ModuleNotFoundError:
        raise InputError("launch: needs the package submitit: pip install 'tok1d[slurm]'") from None

    class Anywhere(SlurmExecutor):
        """As if there were SLURM."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    executor = Anywhere(folder=logs / "%j", max_num_timeout=TIMEOUTS)
    executor.update_parameters(
        job_name=name,
        nodes=resources.nodes,
        ntasks_per_node=resources.tasks_per_node,
        gpus_per_node=resources.gpus,
        cpus_per_task=resources.cpus,
        time=resources.minutes,
        **{key.removeprefix("slurm_"): value for key, value in _slurm(resources).items()},
    )
    return str(executor._make_submission_file_text(executor._submitit_command_str, "JOB"))


def _slurm(resources: Resources) -> dict[str, Any]:
    found: dict[str, Any] = {"slurm_additional_parameters": {"requeue": True, **resources.further}}
    return {**found, "slurm_partition": resources.partition} if resources.partition else found


def submit(words: list[str], resources: Resources, run: Run, *, cluster: Cluster = "slurm") -> tuple[Any, Path]:
    """Submit a command as a job; returns submitit's job and the folder of its logs.

    Args:
        run: takes a command line and returns its exit code; a module-level function, because jobs pickle it.

    Raises:
        Tok1dError: whatever is wrong with the command or the cluster, before anything is submitted.
    """
    arguments, logs, batch_size = job_of(words)
    check_batch(batch_size, resources)
    executor = executor_for(cluster, logs, resources, f"tok1d-{arguments[0]}")
    try:
        return executor.submit(Command(arguments, run)), logs
    except Exception as error:  # sbatch's refusals come as submitit's own kind
        raise InputError(f"launch: {' '.join(str(error).split())[:300]}") from None


def wait(job: Any) -> None:
    """Wait for all processes of a job; raises Tok1dError naming the log of the first that failed."""
    failed = None
    for rank in range(job.num_tasks):
        task = job.task(rank)
        error = task.exception()
        if error is not None:
            said = [line for line in str(error).splitlines() if re.match(r"\S*(Error|Exception|Interrupt): ", line)]
            why = said[-1].partition(": ")[2] if said else "a process of the job ended before its time"
            failed = failed or Tok1dError(f"{task.paths.stderr}: {why}")
    if failed is not None:
        raise failed
