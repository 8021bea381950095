"""Running commands as SLURM jobs through submitit: one process per GPU, requeued after a preemption or time limit."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from tok1d.config.load import load_recipe
from tok1d.errors import ConfigError, InputError, Tok1dError, reason_of

if TYPE_CHECKING:
    from submitit import Executor, Job
    from submitit.helpers import DelayedSubmission

COMMANDS = ("train", "encode", "evaluate")  # first words of a command line; any other first word is a recipe to train
LOGS = "slurm"  # folder of the job's logs in the run folder
INTERRUPTED = 130  # exit code of a command that was stopped by a signal and can be resumed
TIMEOUTS = 10_000  # how often a job may reach its time limit and be requeued
Cluster = Literal["slurm", "local", "debug"]
Run = Callable[[list[str]], int]  # runs a command line and returns its exit code
Handler = Callable[[int, FrameType | None], object]  # of a signal


@dataclass
class Resources:
    """What a job requests.

    Args:
        gpus: per node.
        tasks: processes per node; None is one per GPU.
        cpus: per process.
        minutes: time limit.
        further: other options of sbatch, name -> value.
    """

    nodes: int = 1
    gpus: int = 1
    tasks: int | None = None
    cpus: int = 8
    minutes: int = 24 * 60
    partition: str = ""
    further: dict[str, str] = field(default_factory=dict)

    @property
    def tasks_per_node(self) -> int:
        """Processes per node."""
        return self.tasks or max(self.gpus, 1)


def parse_time(text: str) -> int:
    """Convert a time limit in one of sbatch's formats to minutes, rounded up.

    Raises:
        InputError: `text` is not MINUTES, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS, or is 0.
    """
    found = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(\d+)|(\d+):(\d+):(\d+))", text)
    days, hours, minutes, seconds, alone, *clock = (int(part or 0) for part in found.groups()) if found else [0] * 8
    total = days * 1440 + (hours + clock[0]) * 60 + minutes + clock[1] + alone + -(-(seconds + clock[2]) // 60)
    if total < 1:
        raise InputError(f"--time: expected minutes, HH:MM:SS or D-HH:MM:SS, got {text!r}")
    return total


class Command:
    """A command line of tok1d as the process of a job. submitit pickles and calls it, again after each requeueing."""

    def __init__(self, arguments: list[str], run: Run) -> None:
        self.arguments, self.run = arguments, run
        self._preempted: int | None = None

    def __call__(self) -> str:
        import submitit
        from submitit.helpers import TorchDistributedEnvironment

        job = submitit.JobEnvironment()
        if job.num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:  # a machine may not be able to resolve its own host name
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        requeue = self._save_before_requeue()
        code = self.run(self.arguments)
        if code == INTERRUPTED and self._preempted is not None and requeue is not None:
            requeue(self._preempted, None)  # ends this process; only the first process has a handler
        elif code:
            raise RuntimeError(
                f"{shlex.join(['tok1d', *self.arguments])} ended with exit code {code}: see the log above"
            )
        return " ".join(self.arguments)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit runs after requeueing: the same command, which resumes from the files on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Command([word for word in self.arguments if word != "--overwrite"], self.run))

    def _save_before_requeue(self) -> Handler | None:
        """Make a training save its checkpoint before submitit requeues the job.

        Returns submitit's own handler of the preemption signal, which requeues the job and ends the process.
        """
        from submitit.core.job_environment import JobEnvironment

        number = signal.Signals[f"SIG{JobEnvironment().USR_SIG}"]
        current = signal.getsignal(number)
        requeue = current if callable(current) else None

        def preempted(number: int, frame: FrameType | None) -> None:
            self._preempted = number
            if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, bypass) and requeue is not None:
                requeue(number, frame)  # no training is running, so there is nothing to save
            elif self.arguments[0] == "train":
                signal.raise_signal(signal.SIGTERM)  # the training loop saves after the step and ends

        bypass = signal.getsignal(signal.SIGTERM)  # submitit's handler, which ignores SIGTERM before a preemption
        if requeue is not None:
            signal.signal(number, preempted)
        return requeue


def job_of(words: list[str]) -> tuple[list[str], Path, int | None]:
    """The command line of a job, the folder of its logs, and the batch size (None if it is not a training).

    Raises:
        Tok1dError: no recipe of that name, or overrides that do not fit it.
    """
    if words and words[0] in COMMANDS[1:]:
        return words, Path("runs") / LOGS, None
    words = words[1:] if words[:1] == ["train"] else words
    if not words:
        raise InputError("launch: expected a recipe with key=value, or evaluate or encode with their arguments")
    recipe = load_recipe(words[0], [word for word in words[1:] if not word.startswith("-")])
    if "%" in str(Path(recipe.out).resolve()):
        raise ConfigError(f"out: expected a path without %, which sbatch replaces in names of logs, got {recipe.out}")
    return ["train", *words], Path(recipe.out) / LOGS, recipe.train.batch_size


def check_batch(batch_size: int | None, resources: Resources) -> None:
    """Raise ConfigError where the batch size is not a multiple of the number of processes."""
    world = resources.nodes * resources.tasks_per_node
    if batch_size is not None and batch_size % world:
        raise ConfigError(
            f"train.batch_size: expected a multiple of {world} processes ({resources.nodes} nodes x "
            f"{resources.tasks_per_node}), got {batch_size}"
        )


def executor_for(cluster: Cluster, logs: Path, resources: Resources, name: str) -> Executor:
    """submitit's executor; raises InputError where submitit or SLURM is not installed."""
    try:
        import submitit
    except ModuleNotFoundError:
        raise InputError("launch: needs the package submitit: pip install 'tok1d[slurm]'") from None
    if cluster == "slurm" and submitit.SlurmExecutor.affinity() <= 0:
        raise InputError("launch: SLURM not found (no srun); run it on a machine with sbatch, or pass --cluster local")
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
    """The sbatch script of a job; writes nothing, and works without SLURM."""
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ModuleNotFoundError:
        raise InputError("launch: needs the package submitit: pip install 'tok1d[slurm]'") from None

    class Anywhere(SlurmExecutor):
        """An executor that also works where SLURM is not installed."""

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


def _slurm(resources: Resources) -> dict[str, object]:
    found: dict[str, object] = {"slurm_additional_parameters": {"requeue": True, **resources.further}}
    return {**found, "slurm_partition": resources.partition} if resources.partition else found


def submit(words: list[str], resources: Resources, run: Run, *, cluster: Cluster = "slurm") -> tuple[Job[str], Path]:
    """Submit a command as a job; returns submitit's job and the folder of its logs.

    Args:
        run: runs a command line and returns its exit code; a module-level function, because it is pickled.

    Raises:
        Tok1dError: the command or the resources do not fit, or the cluster refuses the job.
    """
    arguments, logs, batch_size = job_of(words)
    check_batch(batch_size, resources)
    executor = executor_for(cluster, logs, resources, f"tok1d-{arguments[0]}")
    try:
        return executor.submit(Command(arguments, run)), logs
    except Exception as error:  # submitit has its own error types for refusals of sbatch
        raise InputError(f"launch: {reason_of(error, 300)}") from None


def wait(job: Job[str]) -> None:
    """Wait for all processes of a job; raises Tok1dError with the log file of the first one that failed."""
    failed = None
    for rank in range(job.num_tasks):
        task = job.task(rank)
        error = task.exception()
        if error is not None:
            lines = [line for line in str(error).splitlines() if re.match(r"\S*(Error|Exception|Interrupt): ", line)]
            reason = lines[-1].partition(": ")[2] if lines else "a process of the job ended early"
            failed = failed or Tok1dError(f"{task.paths.stderr}: {reason}")
    if failed is not None:
        raise failed
