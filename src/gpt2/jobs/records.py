"""What is known of jobs, their events and uploaded files, on disk at once: SQLite.

It starts nothing. Several processes may use it together.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gpt2 import store
from gpt2.errors import JobError, JobStateError, NameTakenError, QueueFullError

MAX_QUEUED = 32
OPEN = ("queued", "validating_files", "running", "paused")
"""The states of a job that has not ended; the others are `succeeded`, `failed` and `cancelled`."""

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, facts TEXT NOT NULL, status TEXT NOT NULL, name TEXT NOT NULL,
    created INTEGER NOT NULL, number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL,
    created INTEGER NOT NULL, level TEXT NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL, data TEXT);
CREATE INDEX IF NOT EXISTS events_of_jobs ON events (job, number);
CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, filename TEXT NOT NULL, purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL, created INTEGER NOT NULL, number INTEGER NOT NULL);
"""
_FILE_ID = re.compile(r"file-[0-9a-f]{24}")


@dataclass(frozen=True)
class Order:
    """What is to be trained."""

    name: str
    """Of the result, and of the run."""
    files: tuple[str, ...]
    """Paths, or ids of uploaded files."""
    model: str | None = None
    """What to fine-tune; None for the bundled model, or for nothing where there is a `size`."""
    size: str | None = None
    """The released size to begin anew."""
    valid_files: tuple[str, ...] = ()
    """Held-out text; none holds out a part of the files."""
    epochs: float | None = None
    """Times through the text, instead of the settings' steps."""
    auto: tuple[str, ...] = ()
    """Settings that are chosen for the text: batch_size, sequence_length, eval_every."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `TrainingConfig`."""


@dataclass(frozen=True)
class Job:
    """What is known of a job."""

    id: str
    """`ftjob-...`."""
    order: Order
    """What is to be trained."""
    status: str = "queued"
    """`queued`, `validating_files`, `running`, `paused`, `succeeded`, `failed` or `cancelled`."""
    wanted: str = "run"
    """`run`, `pause` or `cancel`: what its process is asked."""
    error: str | None = None
    """Why it failed."""
    created: int = 0
    """Seconds since 1970, as the next two."""
    started: int | None = None
    """When its process first began."""
    finished: int | None = None
    """When it ended."""
    step: int = 0
    """Steps so far."""
    steps: int | None = None
    """Steps in all, once the text is known."""
    tokens: int = 0
    """Tokens that it was trained on."""
    interruptions: int = 0
    """Since its last checkpoint."""
    openai: Mapping[str, Any] = field(default_factory=dict)
    """What OpenAI's routes have to give back."""

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status in OPEN


@dataclass(frozen=True)
class Event:
    """Something that a job says."""

    number: int
    """Rises from event to event."""
    created: int
    """Seconds since 1970."""
    level: str
    """`info`, `warn` or `error`."""
    kind: str
    """`message`, `metrics` or `sample`."""
    message: str
    """For people."""
    data: Mapping[str, Any] | None
    """The numbers of `metrics`, or the prompt and text of a `sample`."""


@dataclass(frozen=True)
class File:
    """An uploaded file."""

    id: str
    """`file-...`."""
    filename: str
    """As it was called where it came from."""
    purpose: str
    """As it was given."""
    bytes: int
    """Its size."""
    created: int
    """Seconds since 1970."""


class Records:
    """Jobs, events and files.

    Args:
        path: of the database; None for that of the store.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or store.home() / "jobs.sqlite3"
        self._lock = threading.Lock()
        self._made = False

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """A transaction of its own."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            try:
                if not self._made:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.executescript(_TABLES)
                    self._made = True
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            finally:
                connection.close()  # and with it whatever was not committed

    # Jobs

    def create(self, order: Order, openai: Mapping[str, Any] | None = None) -> Job:
        """Enter a job at the end of the queue.

        Raises:
            NameTakenError: a model, a run or an open job has the name.
            ModelNameError: it is no name.
            QueueFullError: too many wait.
        """
        taken = store.folder_of(order.name).exists() or (store.runs_folder() / order.name).exists()
        job = Job(_new_id("ftjob"), order, created=int(time.time()), openai=openai or {})
        with self._database() as database:
            rows = database.execute("SELECT name FROM jobs WHERE status IN (?, ?, ?, ?)", OPEN).fetchall()
            if taken or any(row[0] == order.name for row in rows):
                raise NameTakenError(f"name: {order.name} is taken; choose another")
            if len(rows) >= MAX_QUEUED:
                raise QueueFullError(f"jobs: {len(rows)} wait already, of at most {MAX_QUEUED}")
            database.execute(
                "INSERT INTO jobs SELECT ?, ?, ?, ?, ?, COALESCE(MAX(number), 0) + 1 FROM jobs",
                (job.id, json.dumps(_plain(job)), job.status, order.name, job.created),
            )
        self.say(job.id, "the job waits for its turn")
        return job

    def job(self, job_id: str) -> Job:
        """A job.

        Raises:
            JobError: there is none.
        """
        with self._database() as database:
            return _job(database, job_id)

    def jobs(self, status: str | None = None) -> list[Job]:
        """All jobs, or those in a state, in the order in which they came."""
        with self._database() as database:
            query = "SELECT facts FROM jobs WHERE ? IS NULL OR status = ? ORDER BY number"
            return [_read(row[0]) for row in database.execute(query, (status, status))]

    def is_promised(self, name: str) -> bool:
        """Whether a job that has not ended will write a model of that name."""
        with self._database() as database:
            query = "SELECT 1 FROM jobs WHERE name = ? AND status IN (?, ?, ?, ?)"
            return database.execute(query, (name, *OPEN)).fetchone() is not None

    def update(self, job_id: str, **changes: Any) -> Job:
        """Change facts of a job."""
        with self._database() as database:
            return _change(database, _job(database, job_id), changes)

    def ask(self, job_id: str, wanted: str) -> Job:
        """Ask a job to pause, to go on (`run`) or to end (`cancel`); one that does not run does so at once.

        Raises:
            JobError: there is none.
            JobStateError: it has ended, or (to go on) it does not pause.
        """
        with self._database() as database:
            job = _job(database, job_id)
            if not job.is_open:
                raise JobStateError(f"job: expected one that has not ended, but {job_id} has {job.status}")
            if wanted == "run" and job.status != "paused" and job.wanted != "pause":
                raise JobStateError(f"job: expected one that pauses, but {job_id} is {job.status}")
            changes: dict[str, Any] = {"wanted": wanted}
            if job.status in ("queued", "paused"):
                changes["status"] = {"run": "queued", "pause": "paused", "cancel": "cancelled"}[wanted]
                if wanted == "cancel":
                    changes["finished"] = int(time.time())
            return _change(database, job, changes)

    # Events

    def say(
        self,
        job_id: str,
        message: str,
        kind: str = "message",
        data: Mapping[str, Any] | None = None,
        level: str = "info",
    ) -> None:
        """Add an event."""
        values = (job_id, int(time.time()), level, kind, message, None if data is None else json.dumps(data))
        with self._database() as database:
            database.execute(
                "INSERT INTO events (job, created, level, kind, message, data) VALUES (?, ?, ?, ?, ?, ?)", values
            )

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """A job's events after one of a number, the oldest first."""
        with self._database() as database:
            rows = database.execute(
                "SELECT number, created, level, kind, message, data FROM events WHERE job = ? AND number > ? "
                "ORDER BY number LIMIT ?",
                (job_id, after, limit),
            ).fetchall()
        return [
            Event(number, created, level, kind, message, None if data is None else json.loads(data))
            for number, created, level, kind, message, data in rows
        ]

    # Files

    def add_file(self, content: Path, filename: str, purpose: str) -> File:
        """Take over a file that was written beside its place (`new_file_path`)."""
        given = File(_new_id("file"), filename[:255], purpose, content.stat().st_size, int(time.time()))
        content.replace(self._folder / given.id)
        with self._database() as database:
            database.execute(
                "INSERT INTO files SELECT ?, ?, ?, ?, ?, COALESCE(MAX(number), 0) + 1 FROM files",
                (given.id, given.filename, given.purpose, given.bytes, given.created),
            )
        return given

    def new_file_path(self) -> Path:
        """Where to write what `add_file` takes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f".new-{secrets.token_hex(8)}"

    def file(self, file_id: str) -> File:
        """An uploaded file.

        Raises:
            JobError: there is none.
        """
        found = next((file for file in self.files() if file.id == file_id), None)
        if found is None:
            raise JobError(f"file: expected the id of an uploaded one, got {file_id!r:.80}")
        return found

    def files(self) -> list[File]:
        """All uploaded files, in the order in which they came."""
        with self._database() as database:
            names = ", ".join(f.name for f in fields(File))
            return [File(*row) for row in database.execute(f"SELECT {names} FROM files ORDER BY number")]

    def file_path(self, file_id: str) -> Path:
        """Where an uploaded file lies.

        Raises:
            JobError: there is none.
        """
        return self._folder / self.file(file_id).id

    def remove_file(self, file_id: str) -> None:
        """Remove an uploaded file.

        Raises:
            JobError: there is none.
        """
        path = self.file_path(file_id)
        with self._database() as database:
            database.execute("DELETE FROM files WHERE id = ?", (file_id,))
        path.unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        return self.path.with_name("files")


def is_file_id(text: str) -> bool:
    """Whether it looks like the id of an uploaded file."""
    return _FILE_ID.fullmatch(text) is not None


def _new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def _plain(job: Job) -> dict[str, Any]:
    return {**vars(job), "order": dict(vars(job.order))}


def _read(facts: str) -> Job:
    values = json.loads(facts)
    order: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.pop("order").items()}
    return Job(order=Order(**order), **values)


def _job(database: sqlite3.Connection, job_id: str) -> Job:
    row = database.execute("SELECT facts FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise JobError(f"job: expected the id of one, got {job_id!r:.80}")
    return _read(row[0])


def _change(database: sqlite3.Connection, job: Job, changes: Mapping[str, Any]) -> Job:
    changed = _read(json.dumps({**_plain(job), **changes}))
    values = (json.dumps(_plain(changed)), changed.status, job.id)
    database.execute("UPDATE jobs SET facts = ?, status = ? WHERE id = ?", values)
    return changed
