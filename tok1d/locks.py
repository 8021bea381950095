"""Locks of files and folders that one process may write, across machines as far as their file system allows.

A lock is a file with an flock, which the kernel releases when a process ends, also by SIGKILL. The file names its
owner: machine, process and time. docs/training.md describes what happens to locks of processes that have ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tok1d.errors import ConfigError, reason_of

FOLDER_LOCK = ".tok1d.lock"  # inside a run folder or a token cache
# File systems whose flock may be seen by one machine only; nfs, lustre: depending on their options.
REMOTE = ("nfs", "nfs4", "lustre", "cifs", "smb3", "smbfs", "9p", "virtiofs", "beegfs", "afs", "fuse")
LOCAL_NFS = ("nolock", "local_lock=flock", "local_lock=all")


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Args:
        boot: identity of the machine's running system; it changes when the machine starts again.
        started: when the process started, in ticks since the start of the machine; tells a reused number.
        since: UTC time when the lock was taken.
        job: SLURM's number of the job, which stays when the job is requeued on another machine; "" outside of SLURM.
        about: what is written, for locks that several processes of one job share.
    """

    host: str
    boot: str
    pid: int
    started: str
    since: str
    job: str = ""
    about: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    def has_ended(self) -> bool:
        """Whether this machine knows that the process has ended: it is gone, its number was reused, or a restart."""
        if self.boot != boot_id():
            return self.host == socket.gethostname()
        return started_of(self.pid) != self.started


def boot_id() -> str:
    """The identity of the running system; "" where it has none."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return ""


def started_of(pid: int) -> str:
    """When a process started, in ticks since the start of the machine; "" if there is no such process."""
    with suppress(OSError, IndexError):
        # The name in parentheses may contain spaces; the start time is the 20th value after it.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    return ""


def this_process(about: str = "") -> Owner:
    """This process as an owner."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    job = os.environ.get("SLURM_JOB_ID", "")
    return Owner(socket.gethostname(), boot_id(), os.getpid(), started_of(os.getpid()), since, job, about)


def owner_in(path: Path) -> Owner | None:
    """The owner that a lock file names; None if it names none."""
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def hold(path: Path, what: str, *, about: str = "", shared: bool = False) -> Iterator[str]:
    """Hold the lock file `path` until the block ends, and then remove it, with the folders that were made for it.

    Yields a line about a lock of an ended process that was taken over; "" if there was none.

    Args:
        what: the file or folder that is protected, for messages.
        about: what is written there.
        shared: several processes with the same `about` may hold the lock at once.

    Raises:
        ConfigError: another process holds the lock, or may hold it.
        OSError: the lock file cannot be written.
    """
    made: list[Path] = []
    try:
        lock = _taken(path, what, about, shared, made)
        try:
            yield lock.message
        finally:
            lock.release()
    finally:
        for folder in made:
            with suppress(OSError):  # something was written there
                folder.rmdir()


@contextmanager
def hold_part(path: Path, what: str, part: tuple[int, int], about: str) -> Iterator[None]:
    """Hold a lock that the parts of one job share: another job, or the same part twice, is refused.

    Args:
        part: (i, n): this process writes part i of n.
        about: identity of the job.

    Raises:
        ConfigError, OSError: as `hold`.
    """
    own = path.with_name(f"{path.stem}.{part[0]}-of-{part[1]}.lock")
    with hold(path, what, about=about, shared=True), hold(own, what):
        yield


@contextmanager
def hold_output(out: Path) -> Iterator[None]:
    """Hold the lock of a file or folder that a command writes; the lock file lies next to it.

    Raises:
        ConfigError: another process writes there, or the lock file cannot be written.
    """
    place = Path(out).resolve()
    try:
        with hold(place.with_name(f".{place.name}.lock"), str(out)):
            yield
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({reason_of(error)}); choose another --out") from None


@dataclass
class _Lock:
    """A lock that this process holds; `file` is a descriptor, None on a file system without flock."""

    path: Path
    file: int | None
    shared: bool
    message: str = ""

    def release(self) -> None:
        if self.file is None:
            owner, this = owner_in(self.path), this_process()
            if owner is not None and (owner.boot, owner.pid, owner.started) == (this.boot, this.pid, this.started):
                self.path.unlink(missing_ok=True)
            return
        try:
            if self.shared:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises an error unless this is the last one
                self._remove_parts()
            if _is_at(self.file, self.path):
                self.path.unlink(missing_ok=True)
        except OSError:
            pass
        finally:
            os.close(self.file)

    def _remove_parts(self) -> None:
        """Remove the lock files of parts whose processes were killed."""
        for path in self.path.parent.glob(f"{self.path.stem}.*-of-*.lock"):
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)


def _taken(path: Path, what: str, about: str, shared: bool, made: list[Path]) -> _Lock:
    """Take a lock; the folders that had to be created are added to `made`, the innermost first."""
    while True:
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        made[:] = missing or made
        try:
            file, is_new = _opened(path, what)
        except FileNotFoundError:
            continue  # its last owner has removed the folder
        try:
            lock = _locked(path, file, what, about, shared=shared, is_new=is_new)
        except BaseException:
            os.close(file)
            raise
        if lock is not None:
            return lock
        os.close(file)


def _opened(path: Path, what: str) -> tuple[int, bool]:
    with suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW), False  # a link to nothing would be opened again and again
    except PermissionError:  # of another user
        raise _in_doubt(what, owner_in(path), path) from None


def _locked(path: Path, file: int, what: str, about: str, *, shared: bool, is_new: bool) -> _Lock | None:
    """The lock of an open file; None if the file was removed meanwhile and has to be opened again."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _joined(path, file, what, about, shared=shared)
    except OSError:  # no flock here: the file itself is the lock
        return _created(path, file, what, about, shared=shared, is_new=is_new)
    if not _is_at(file, path):
        return None
    before, this = owner_in(path), this_process(about)
    if before is not None and not _is_free(before, this, path):
        raise _in_doubt(what, before, path)
    _write(path, file, this)
    if shared:
        return _joined(path, file, what, about, shared=True)
    return _Lock(path, file, shared, _message(what, before))


def _joined(path: Path, file: int, what: str, about: str, *, shared: bool) -> _Lock | None:
    """A shared lock next to other processes with the same `about`."""
    if not shared:
        raise _in_use(what, owner_in(path))
    fcntl.flock(file, fcntl.LOCK_SH)  # waits only while another process changes or removes the file
    if not _is_at(file, path):
        return None
    owner = owner_in(path)
    if owner is None or owner.about != about:
        raise _in_use(what, owner)
    return _Lock(path, file, shared)


def _created(path: Path, file: int, what: str, about: str, *, shared: bool, is_new: bool) -> _Lock | None:
    """The lock on a file system without flock: the process that created the file has it."""
    if shared:
        path.unlink(missing_ok=True)
        os.close(file)
        return _Lock(path, None, shared)
    if is_new:
        _write(path, file, this_process(about))
        os.close(file)
        return _Lock(path, None, shared)
    owner = owner_in(path)
    if owner is None or not owner.has_ended():
        raise _in_doubt(what, owner, path)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)  # only one process gets it
        if owner_in(aside) != owner:
            os.link(aside, path)  # it was already taken over by another process
        aside.unlink()
    return None


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _write(path: Path, file: int, owner: Owner) -> None:
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(asdict(owner)).encode(), 0)
    except OSError:  # the disk is full
        path.unlink(missing_ok=True)
        raise


def _is_free(before: Owner, this: Owner, path: Path) -> bool:
    """Whether an owner that is named in a lock file without flock has ended."""
    if before.boot == this.boot or before.has_ended() or (before.job and before.job == this.job):
        return True
    return flock_reaches_all(path)


def flock_reaches_all(path: Path, mounts: str = "/proc/self/mounts") -> bool:
    """Whether the flock of a file is seen by all machines that can open it: a local disk, or NFS with locks.

    Args:
        mounts: the table of mounts, as Linux writes it.
    """
    place, best, kind, options = Path(path).resolve(), -1, "", list[str]()
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    for line in lines:
        _, mount, found, given, *_ = line.split(" ")
        folder = Path(mount.replace("\\040", " "))
        if place.is_relative_to(folder) and len(folder.parts) >= best:
            best, kind, options = len(folder.parts), found, given.split(",")
    if kind in ("nfs", "nfs4"):
        return not set(options) & set(LOCAL_NFS)
    if kind == "lustre":
        return "flock" in options
    return bool(kind) and kind not in REMOTE and not kind.startswith("fuse.")


def _message(what: str, before: Owner | None) -> str:
    return "" if before is None else f"{what}: {before} has ended without removing its lock, which is taken over"


def _in_use(what: str, owner: Owner | None) -> ConfigError:
    return ConfigError(
        f"{what}: in use, expected no other process that writes there, got {owner or 'one'}; wait for its end or stop "
        "it, or choose another"
    )


def _in_doubt(what: str, owner: Owner | None, path: Path) -> ConfigError:
    return ConfigError(
        f"{what}: locked by {owner or 'an unknown process'}, of which this machine cannot tell whether it runs; if it "
        f"has ended, delete {path}"
    )
