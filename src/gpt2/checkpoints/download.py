"""A released model into the store, `gpt2 download 124M`: from OpenAI, Hugging Face, a mirror, or a folder at hand.

Every file is checked before the model is put in its place: its length against what the config needs, its kind by its
own first or last bytes, its SHA-256 where one is known (OpenAI publishes none for the weights: the first ones seen are
remembered in the store, and a later download must have the same). So an error page can never end up as weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2 import checkpoints, store
from gpt2.atomic import atomic_file, atomic_folder, locked
from gpt2.checkpoints import huggingface, json_file, manifest, openai, tensor_file
from gpt2.checkpoints.transfer import Done, Progress, Settings, check_url, fetch
from gpt2.codec import VOCAB_BPE_SHA256
from gpt2.config import SIZES, GPT2Config, size_name
from gpt2.errors import CheckpointError, ConfigError, DownloadError, IntegrityError
from gpt2.hashing import sha256_of

ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"

SOURCES = {
    "openai": "https://openaipublic.blob.core.windows.net/gpt-2/models/{size}",
    "huggingface": "https://huggingface.co/openai-community/{repository}/resolve/main",
}
_REPOSITORIES = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}
_TABLE_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)  # the last bytes of a TensorFlow checkpoint's index
_SMALL = 16 * 1024 * 1024


@dataclass(frozen=True)
class Spec:
    """What to bring: a model's name in the store, its shape, and where its files are."""

    name: str
    config: GPT2Config
    source: str
    """`openai` or `huggingface`: which files there are."""
    base_url: str

    @property
    def files(self) -> Mapping[str, int]:
        """The needed files, small ones first, and how many bytes each may have at most."""
        weights = 4 * self.config.num_parameters + _SMALL
        if self.source == "huggingface":
            # The weights there may hold the causal masks and an untied copy of the head besides.
            extra = 4 * (self.config.n_layer * self.config.n_ctx**2 + self.config.n_vocab * self.config.n_embd)
            return {
                "config.json": _SMALL,
                "vocab.json": _SMALL,
                "merges.txt": _SMALL,
                "model.safetensors": weights + extra,
            }
        small = {"hparams.json": _SMALL, "encoder.json": _SMALL, "vocab.bpe": _SMALL, "checkpoint": _SMALL}
        return {**small, "model.ckpt.index": _SMALL, "model.ckpt.data-00000-of-00001": weights}


def released(size: str, *, source: str = "openai", base_url: str | None = None) -> Spec:
    """What to bring for one of the released sizes.

    Args:
        size: `124M`, `355M`, `774M`, `1558M`, or another name of theirs.
        source: `openai` or `huggingface`.
        base_url: a mirror: the address under which the files are.

    Raises:
        ConfigError: no such size or source.
    """
    if source not in SOURCES:
        raise ConfigError(f"source: expected one of {', '.join(SOURCES)}, got {source!r}")
    name = size_name(size)
    url = base_url or SOURCES[source].format(size=name, repository=_REPOSITORIES[name])
    check_url(url)
    return Spec(name, SIZES[name], source, url.rstrip("/"))


def download(
    spec: Spec,
    *,
    sha256: Mapping[str, str] | None = None,
    accept_new_hashes: bool = False,
    force: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Path:
    """Bring a model into the store; what an earlier attempt has brought is used.

    Args:
        spec: from `released`.
        sha256: file -> hexadecimal hash that it must have.
        accept_new_hashes: forget the hashes remembered from an earlier download.
        force: download again although it is there.
        settings: how patient to be.
        progress: told of every chunk.

    Returns:
        The model's folder.

    Raises:
        DownloadError: the network, the server or the disk failed; what has come stays for the next time.
        IntegrityError: a file is not what it must be; nothing of it stays.
        ModelNameError: the name cannot be used.
    """
    target = store.folder_of(spec.name)
    pins = _checked_pins(sha256 or {}, spec)
    if not force and is_here(spec):
        return target
    parts = store.home() / "downloads" / f"{spec.name}-{spec.source}"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        _check_space(parts, spec)
    except OSError as error:
        raise DownloadError(f"{parts}: cannot be written: {error.strerror}") from error
    with locked(parts / "lock"):
        if not force and is_here(spec):  # another process brought it while this one waited
            return target
        known = {} if accept_new_hashes else _remembered(spec)
        hashes = {}
        for name, limit in spec.files.items():
            path = parts / name
            if path.is_file():
                done = Done(path, sha256_of(path), path.stat().st_size)
            else:
                url = f"{spec.base_url}/{name}"
                done = fetch(url, path, limit=limit, settings=settings or Settings(), progress=progress)
            try:
                check_file(done.path, spec)
                _check_hash(done, pins.get(name), known.get(name))
            except IntegrityError:
                done.path.unlink(missing_ok=True)
                raise
            hashes[name] = done.sha256
        try:
            with _new_model(target) as new:
                for name in spec.files:
                    _link(parts / name, new / name)
                _check_model(new, spec)
                manifest.write(new, hashes)
        except IntegrityError:
            _forget(parts, spec)
            raise
        _remember(spec, hashes)
        _forget(parts, spec)
    return target


def is_here(spec: Spec) -> bool:
    """Whether the store has all files of that model, from either source.

    Raises:
        DownloadError: there is something else under that name, or a file of it is missing.
    """
    target = store.folder_of(spec.name)
    if not target.is_dir():
        return False
    missing = {
        source: [name for name in replace(spec, source=source).files if not (target / name).is_file()]
        for source in SOURCES
    }
    if all(missing.values()):
        raise DownloadError(
            f"{target}: is there, but without {', '.join(missing[spec.source])}; download it again with --force, or "
            f"remove it (gpt2 models remove {spec.name})"
        )
    return True


def import_folder(
    folder: Path,
    spec: Spec,
    *,
    sha256: Mapping[str, str] | None = None,
    accept_new_hashes: bool = False,
    force: bool = False,
) -> Path:
    """Bring in the files of a released model that are already at hand; they are checked as a download is.

    Args:
        folder: where the files are; they are copied.
        spec: from `released`.
        sha256: file -> hexadecimal hash that it must have.
        accept_new_hashes: forget the hashes remembered from an earlier download.
        force: replace the model if it is there.

    Raises:
        DownloadError: a file is missing, the model is there already, or the disk failed.
        IntegrityError: a file is not what it must be.
    """
    pins = _checked_pins(sha256 or {}, spec)
    missing = [name for name in spec.files if not (folder / name).is_file()]
    if missing:
        raise DownloadError(f"{folder}: expected {', '.join(spec.files)}; missing {', '.join(missing)}")
    target = store.folder_of(spec.name)
    if target.exists() and not force:
        raise DownloadError(f"{target}: is there already; replace it with --force")
    known = {} if accept_new_hashes else _remembered(spec)
    hashes = {}
    with _new_model(target) as new:
        for name in spec.files:  # what is checked is the copy: the original may change meanwhile
            shutil.copyfile(folder / name, new / name)
            done = Done(new / name, sha256_of(new / name), (new / name).stat().st_size)
            check_file(done.path, spec)
            _check_hash(done, pins.get(name), known.get(name))
            hashes[name] = done.sha256
        _check_model(new, spec)
        manifest.write(new, hashes)
    _remember(spec, hashes)
    return target


def check_file(path: Path, spec: Spec) -> None:
    """Whether a file is what its name says, for this model.

    Raises:
        IntegrityError: it is not; the message says what came instead.
    """
    name, size = path.name, path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if head.lstrip()[:1] == b"<":
        raise IntegrityError(f"{name}: expected {_kind(name)}, got an HTML or XML page")
    try:
        if name == "hparams.json":
            _check_config(GPT2Config.from_dict(json_file.read_object(path)), spec)
        elif name == "config.json":
            _check_config(huggingface.read_config(path), spec)
        elif name.endswith(".json"):
            json_file.read_object(path)
        elif name.endswith(".safetensors"):
            tensor_file.read_header(path)
    except (CheckpointError, ConfigError) as error:
        raise IntegrityError(f"{name}: expected {_kind(name)}: {error}") from None
    if name in ("vocab.bpe", "merges.txt") and not head.startswith(b"#version"):
        raise IntegrityError(f"{name}: expected {_kind(name)}, got {head[:20]!r}")
    if name == "model.ckpt.index" and _tail(path) != _TABLE_MAGIC:
        raise IntegrityError(f"{name}: expected {_kind(name)}, got {size:,} bytes that end otherwise")
    if name == "checkpoint" and not head.startswith(b"model_checkpoint_path:"):
        raise IntegrityError(f"{name}: expected {_kind(name)}, got {head[:20]!r}")
    if name.startswith("model.ckpt.data") and size < 4 * spec.config.num_parameters:
        raise IntegrityError(f"{name}: expected {4 * spec.config.num_parameters:,} bytes for {spec.name}, got {size:,}")


def _kind(name: str) -> str:
    kinds = {
        ".json": "a JSON object",
        ".safetensors": "a safetensors file",
        ".index": "a TensorFlow checkpoint's index",
    }
    if name == "checkpoint":
        return "the name of a TensorFlow checkpoint"
    return kinds.get(Path(name).suffix, "merges" if name in ("vocab.bpe", "merges.txt") else "a checkpoint's data")


def _check_config(config: GPT2Config, spec: Spec) -> None:
    if config != spec.config:
        raise IntegrityError(f"config: expected that of {spec.name}, {spec.config}, got {config}")


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(8, path.stat().st_size), os.SEEK_END)
        return file.read(8)


def _checked_pins(pins: Mapping[str, str], spec: Spec) -> dict[str, str]:
    for name, value in pins.items():
        if name not in spec.files:
            raise ConfigError(f"sha256: expected one of {', '.join(spec.files)}, got {name!r}")
        if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            raise ConfigError(f"sha256: expected 64 hexadecimal digits for {name}, got {value!r:.80}")
    known = {}
    if spec.config.n_vocab == 50257:  # GPT-2's own vocabulary
        known = {"vocab.bpe": VOCAB_BPE_SHA256, "encoder.json": ENCODER_JSON_SHA256}
    return {name: value for name, value in known.items() if name in spec.files} | {
        name: value.lower() for name, value in pins.items()
    }


def _check_hash(done: Done, pinned: str | None, known: str | None) -> None:
    """Compare with the hash that is given, or else with the one of an earlier download."""
    expected, hint = pinned or known, ""
    if pinned is None:
        hint = " as in an earlier download; if it was replaced on purpose, say so with --accept-new-hashes"
    if expected is not None and done.sha256 != expected:
        raise IntegrityError(f"{done.path.name}: expected the SHA-256 {expected}, got {done.sha256}{hint}")


@contextlib.contextmanager
def _new_model(target: Path) -> Iterator[Path]:
    """An empty folder that becomes the model's when the block ends well: it appears whole or not at all."""
    ours = {*openai.FILES, *huggingface.FILES, manifest.NAME}
    try:
        with atomic_folder(target, replaceable=lambda old: {entry.name for entry in old.iterdir()} <= ours) as new:
            yield new
    except CheckpointError as error:
        raise DownloadError(str(error)) from error


def _link(source: Path, target: Path) -> None:
    """A second name for a file, where the file system has that: nothing is copied, and a kill loses nothing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _check_model(folder: Path, spec: Spec) -> None:
    """Whether the files together are a model of the right shape: every tensor there, none too many.

    Raises:
        IntegrityError: they are not.
    """
    try:
        _check_config(checkpoints.describe(folder).config, spec)
    except (CheckpointError, ConfigError) as error:
        message = str(error).replace(str(folder), spec.name)
        raise IntegrityError(f"{spec.name}: the files do not make the model: {message}") from None


def _forget(parts: Path, spec: Spec) -> None:
    for name in spec.files:
        (parts / name).unlink(missing_ok=True)


def _hashes_path() -> Path:
    return store.home() / "sha256.json"


def _remembered(spec: Spec) -> dict[str, str]:
    path = _hashes_path()
    known = json_file.read_object(path) if path.is_file() else {}
    entry = known.get(f"{spec.name}/{spec.source}", {})
    return {name: value for name, value in entry.items() if isinstance(value, str)} if isinstance(entry, dict) else {}


def _remember(spec: Spec, hashes: Mapping[str, str]) -> None:
    path = _hashes_path()
    with locked(store.home() / "lock"):  # two models may be done at once; neither's hashes may get lost
        known = json_file.read_object(path) if path.is_file() else {}
        known[f"{spec.name}/{spec.source}"] = dict(hashes)
        with atomic_file(path) as new:
            new.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _check_space(folder: Path, spec: Spec) -> None:
    have = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    need = 4 * spec.config.num_parameters + _SMALL - have
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DownloadError(f"{folder}: expected {need / 1e9:.1f} GB of free space, found {free / 1e9:.1f} GB")
