"""Starts the next job when none runs, and again one that was interrupted.

Several processes may supervise the same records: the one job that runs holds a lock, and a job is started by whoever
sees first that the lock is free.
"""

from __future__ import annotations

import atexit
import logging
import sqlite3
import subprocess
import threading
import time

from gpt2 import processes
from gpt2.atomic import locked
from gpt2.errors import JobError
from gpt2.jobs.process import lock_path
from gpt2.jobs.records import Job, Records

log = logging.getLogger("gpt2.jobs")

LOOK_SECONDS = 0.5
MAX_INTERRUPTIONS = 5
"""Without a checkpoint between them; then the job has failed."""
PATIENCE_SECONDS = 20.0
"""For a process that is asked to stop."""


class Supervisor:
    """A thread that looks after the jobs; `close` lets the one that runs save a checkpoint, and leave."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._process: subprocess.Popen[bytes] | None = None
        self._job_id = ""
        self._asked_at: float | None = None
        self._last_error = ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpt2-jobs", daemon=True)
        self._thread.start()

    @property
    def process_id(self) -> int | None:
        """Of the job that runs, if it was started here."""
        process = self._process
        return None if process is None else process.pid

    def close(self) -> None:
        """Stop the job that runs, which goes on when there is a supervisor again."""
        self._closed.set()
        self._thread.join()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._ended()

    def _run(self) -> None:
        while True:
            try:
                self._look()
            except (sqlite3.Error, OSError) as error:  # such as a full disk; it may pass
                if str(error) != self._last_error:
                    log.warning("jobs cannot be looked after: %s", error)
                self._last_error = str(error)
            else:
                self._last_error = ""
            if self._closed.wait(LOOK_SECONDS):
                return

    def _look(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._press()
                return
            self._ended()
        if not any(self.records.jobs(status) for status in ("queued", "validating_files", "running")):
            return
        try:
            with locked(lock_path(), wait=False):  # nobody's job runs
                for status in ("validating_files", "running"):
                    for job in self.records.jobs(status):
                        self._interrupted(job)
        except BlockingIOError:
            return
        queued = self.records.jobs("queued")
        if queued:
            self._start(queued[0])

    def _start(self, job: Job) -> None:
        self._job_id, self._asked_at = job.id, None
        command = processes.command("gpt2.jobs.process", job.id)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def _press(self) -> None:
        """End a process that does not do as it is asked."""
        assert self._process is not None
        if self.records.job(self._job_id).wanted == "run":
            self._asked_at = None
        elif self._asked_at is None:
            self._asked_at = time.monotonic()
        elif time.monotonic() - self._asked_at > PATIENCE_SECONDS:
            self._process.kill()
            self._process.wait()

    def _ended(self) -> None:
        self._process = None
        try:
            job = self.records.job(self._job_id)
        except JobError:
            return
        if job.status in ("validating_files", "running"):
            self._interrupted(job)

    def _interrupted(self, job: Job) -> None:
        """A job whose process is gone without a word."""
        now = int(time.time())
        if job.wanted == "cancel":
            self.records.update(job.id, status="cancelled", finished=now)
        elif job.wanted == "pause":
            self.records.update(job.id, status="paused")
        elif job.interruptions >= MAX_INTERRUPTIONS:
            why = f"its process ended {job.interruptions + 1} times without a new checkpoint"
            self.records.update(job.id, status="failed", error=why, finished=now)
            self.records.say(job.id, why, level="error")
        else:
            self.records.update(job.id, status="queued", interruptions=job.interruptions + 1)
            self.records.say(job.id, "interrupted; it goes on from its last checkpoint", level="warn")


_shared: Supervisor | None = None
_sharing = threading.Lock()


def supervise() -> Supervisor:
    """This process' supervisor of the store's jobs, which is closed when the process ends."""
    global _shared
    with _sharing:
        if _shared is None:
            _shared = Supervisor(Records())
            atexit.register(stop_supervising)
        return _shared


def stop_supervising() -> None:
    """Close this process' supervisor, if there is one."""
    global _shared
    with _sharing:
        if _shared is not None:
            _shared.close()
            _shared = None
            atexit.unregister(stop_supervising)
