"""`gpt2 models` and `gpt2 download` as commands, and what the store makes of odd names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import model_server as faulty
import oracle
from gpt2 import checkpoints, store
from gpt2.checkpoints import download as downloads
from gpt2.checkpoints.transfer import Settings
from gpt2.cli import main
from gpt2.codec import Codec
from gpt2.config import SIZES, GPT2Config
from gpt2.errors import CheckpointError, DownloadError, GPT2Error, IntegrityError, ModelNameError
from model_server import ModelServer

CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\n")
CONFIG = GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=16, n_embd=8, n_head=2, n_layer=2)
FAST = Settings(tries=3, timeout=2.0, backoff=0.001, longest_wait=0.05)
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model's folder, in Hugging Face's format."""
    return written(tmp_path / "tiny", CONFIG)


@pytest.fixture
def server(tiny: Path) -> Iterator[ModelServer]:
    with faulty.serving() as server:
        server.files = {path.name: path.read_bytes() for path in tiny.iterdir()}
        yield server


def written(folder: Path, config: GPT2Config) -> Path:
    checkpoints.write(folder, config, oracle.random_tensors(config).items(), format="huggingface", codec=CODEC)
    return folder


def spec(server: ModelServer) -> downloads.Spec:
    return downloads.Spec("tiny", CONFIG, "huggingface", server.url)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


# Commands


def test_list_show_add_remove(capsys: pytest.CaptureFixture[str], tiny: Path, home: Path) -> None:
    status, out, _ = run(capsys, "models", "list")
    assert (status, out.split()[:4]) == (0, ["name", "format", "parameters", "on"])
    assert "bundled" in out
    assert run(capsys, "models", "add", tiny)[0] == 0
    assert run(capsys, "models", "add", tiny, "--name", "other")[0] == 0
    status, out, _ = run(capsys, "models", "list")
    assert "\x1b" not in out, "no colours in a pipe"
    assert f"tiny     huggingface  {CONFIG.num_parameters:,}".split() == next(
        line.split()[:3] for line in out.splitlines() if line.startswith("tiny")
    )
    rows = {row["name"]: row for row in json.loads(run(capsys, "models", "list", "--json")[1])}
    assert set(rows) == {"bundled", "tiny", "other"}
    assert rows["tiny"]["parameters"] == CONFIG.num_parameters
    assert rows["tiny"]["bytes"] == sum(path.stat().st_size for path in (home / "models" / "tiny").iterdir())
    facts = json.loads(run(capsys, "models", "show", "tiny", "--json")[1])
    assert facts["folder"] == str(home / "models" / "tiny")
    assert facts["n_layer"] == 2
    assert run(capsys, "models", "remove", "tiny", "--yes")[0] == 0
    assert store.list_models() == ["other"]


def test_one_line_for_what_cannot_be_done(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("models", "remove", "none", "--yes"), "got 'none'"),
        (("models", "remove", "bundled", "--yes"), "reserved"),
        (("models", "remove", "../tiny", "--yes"), "expected up to 64 letters"),
        (("models", "add", tmp_path / "none"), "found nothing"),
        (("models", "add", tmp_path / "empty"), "expected a model"),
        (("models", "add", tiny, "--name", "a/b"), "expected up to 64 letters"),
        (("models", "show", "none"), "got 'none'"),
        (("download", "124M", "--base-url", "file:///etc"), "expected http:// or https://"),
        (("download", "124M", "--sha256", "vocab.bpe"), "expected FILE=HASH"),
        (("download", "124M", "--from-folder", tmp_path / "empty"), "missing hparams.json"),
        (("download", "99M"), "expected one of 124M"),
    ):
        status, out, err = run(capsys, *arguments)
        assert status in (1, 2), arguments
        assert out == ""
        assert message in err
        assert err.startswith("gpt2: ")
        assert err.count("\n") == 1
    assert store.list_models() == []


def test_a_broken_model_does_not_hide_the_others(capsys: pytest.CaptureFixture[str], tiny: Path, home: Path) -> None:
    store.add(tiny, "good")
    store.add(tiny, "worse")
    (home / "models" / "worse" / WEIGHTS).write_bytes(b"<html>")
    status, out, _ = run(capsys, "models", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0
    assert rows["good"]["parameters"] == CONFIG.num_parameters
    assert "safetensors" in rows["worse"]["error"]


def test_a_fake_124m_is_refused(capsys: pytest.CaptureFixture[str], server: ModelServer) -> None:
    """The command with a real size against a server that has something else."""
    status, out, err = run(capsys, "download", "small", "--from", "huggingface", "--base-url", server.url)
    assert (status, out) == (1, "")
    assert "config: expected that of 124M" in err
    server.files["hparams.json"] = json.dumps(SIZES["124M"].to_dict()).encode()
    server.files["encoder.json"] = b"{}"
    status, out, err = run(capsys, "download", "124M", "--base-url", server.url)
    assert (status, out) == (1, "")
    assert "encoder.json: expected the SHA-256 196139668be6" in err
    assert store.list_models() == []


# Downloads as a whole


def test_weights_of_another_model_are_refused(server: ModelServer, tmp_path: Path) -> None:
    """A sound safetensors file with the wrong tensors was once put in place as the model."""
    other = written(tmp_path / "other", GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=16, n_embd=8, n_head=2, n_layer=1))
    right = server.files[WEIGHTS]
    server.files[WEIGHTS] = (other / WEIGHTS).read_bytes()
    with pytest.raises(IntegrityError, match="tiny: the files do not make the model: .*h1/attn") as caught:
        downloads.download(spec(server), settings=FAST)
    assert str(tmp_path) not in str(caught.value)
    assert store.list_models() == []
    server.files[WEIGHTS] = right
    downloads.download(spec(server), settings=FAST)
    assert checkpoints.describe(store.resolve("tiny")).config == CONFIG


def test_where_there_are_no_hard_links(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    downloads.download(spec(server), settings=FAST)
    assert checkpoints.describe(store.resolve("tiny")).config == CONFIG


def test_what_is_there_already(
    server: ModelServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr(downloads, "released", lambda *_, **__: spec(server))
    assert run(capsys, "download", "tiny")[:2] == (
        0,
        f"tiny: {CONFIG.num_parameters:,} parameters in {home / 'models' / 'tiny'}\n",
    )
    server.requests.clear()
    status, out, _ = run(capsys, "download", "tiny")
    assert (status, server.requests) == (0, [])
    assert out.startswith("tiny: is here already, in ")
    (home / "models" / "tiny" / WEIGHTS).unlink()
    status, out, err = run(capsys, "download", "tiny")
    assert (status, out) == (1, "")
    assert f"without {WEIGHTS}; download it again with --force" in err
    assert run(capsys, "download", "tiny", "--force")[0] == 0
    assert checkpoints.describe(store.resolve("tiny")).config == CONFIG


def test_something_else_under_the_name_is_never_overwritten(server: ModelServer, home: Path) -> None:
    (home / "models" / "tiny").mkdir(parents=True)
    (home / "models" / "tiny" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(DownloadError, match=r"is there, but without|found thesis\.txt"):
            downloads.download(spec(server), settings=FAST, force=force)
    assert (home / "models" / "tiny" / "thesis.txt").read_text() == "years of work"


def test_import_replaces_only_when_told_and_only_with_the_same(server: ModelServer, tiny: Path, home: Path) -> None:
    downloads.import_folder(tiny, spec(server))
    with pytest.raises(DownloadError, match="is there already; replace it with --force"):
        downloads.import_folder(tiny, spec(server))
    weights = bytearray((tiny / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (tiny / WEIGHTS).write_bytes(weights)
    with pytest.raises(IntegrityError, match="as in an earlier download.*--accept-new-hashes"):
        downloads.import_folder(tiny, spec(server), force=True)
    assert (home / "models" / "tiny" / WEIGHTS).read_bytes() == server.files[WEIGHTS]
    downloads.import_folder(tiny, spec(server), force=True, accept_new_hashes=True)
    assert (home / "models" / "tiny" / WEIGHTS).read_bytes() == weights
    assert server.requests == []


# Names


@pytest.mark.parametrize("name", ["", "~nobody-of-this-name/x", "x" * 5000, "/" + "x" * 5000, "a\0b", "./a\0b"])
def test_odd_names_are_errors_of_ours(name: str) -> None:
    """The empty one was once the current folder; others escaped as RuntimeError and OSError."""
    with pytest.raises(GPT2Error):
        store.resolve(name)


def test_other_names_of_sizes_cannot_be_taken(tiny: Path, home: Path) -> None:
    """A model added as `small` could once not be found again, since `small` means 124M."""
    for name in ("small", "gpt2", "117M"):
        with pytest.raises(ModelNameError, match="means the released size"):
            store.add(tiny, name)
    store.add(tiny, "124M")
    assert store.resolve("small") == store.folder_of("gpt2") == home / "models" / "124M"
    store.remove("small")
    assert store.list_models() == []


def test_add_takes_the_folders_name_and_replaces_when_told(tiny: Path, home: Path) -> None:
    assert store.add(tiny) == home / "models" / "tiny"
    with pytest.raises(ModelNameError, match="tiny is taken"):
        store.add(tiny, "TINY")
    (tiny / "notes.txt").write_text("new")
    store.add(tiny, "tiny", replace=True)
    assert (home / "models" / "tiny" / "notes.txt").read_text() == "new"


def test_links_in_the_store_are_not_listed(tiny: Path, home: Path) -> None:
    (home / "models").mkdir(parents=True)
    (home / "models" / "link").symlink_to(tiny)
    assert store.list_models() == []


def test_removing_follows_no_link_inside_a_model(tiny: Path, home: Path, tmp_path: Path) -> None:
    store.add(tiny, "mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (home / "models" / "mine" / "link").symlink_to(outside)
    store.remove("mine")
    assert (outside / "kept").read_text() == "kept"
    assert os.listdir(home / "models") == []


def test_a_model_that_cannot_be_removed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(tiny, "mine")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="mine: cannot be removed: Permission denied"):
        store.remove("mine")
    assert store.list_models() == ["mine"]
