"""Downloads from a real server that drops connections, lies and sends error pages: whole and right, or not at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import model_server as faulty
import oracle
from gpt2 import checkpoints, store
from gpt2.checkpoints.download import Spec, download, import_folder, released
from gpt2.checkpoints.transfer import Settings, fetch
from gpt2.codec import Codec
from gpt2.config import SIZES, GPT2Config
from gpt2.errors import ConfigError, DownloadError, IntegrityError, ModelNameError
from model_server import Fault, ModelServer

CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\n")
CONFIG = GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=16, n_embd=8, n_head=2, n_layer=2)
TENSORS = oracle.random_tensors(CONFIG)
FAST = Settings(tries=3, timeout=2.0, backoff=0.01, longest_wait=0.3)
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    checkpoints.write(folder, CONFIG, TENSORS.items(), format="huggingface", codec=CODEC)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[ModelServer]:
    with faulty.serving() as server:
        server.files = dict(files)
        yield server


def spec(server: ModelServer, **changes: object) -> Spec:
    values = {"name": "tiny", "config": CONFIG, "source": "huggingface", "base_url": server.url, **changes}
    return Spec(**values)  # type: ignore[arg-type]


def assert_whole() -> None:
    config, tensors = checkpoints.read(store.resolve("tiny"))
    assert config == CONFIG
    for name, array in tensors:
        np.testing.assert_array_equal(array, TENSORS[name])


def assert_nothing() -> None:
    assert store.list_models() == []


def test_a_download_is_whole_and_remembered(server: ModelServer, files: dict[str, bytes]) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = download(spec(server), settings=FAST, progress=lambda *facts: seen.append(facts))
    assert path == store.models_folder() / "tiny"
    assert_whole()
    assert store.list_models() == ["tiny"]
    assert (WEIGHTS, len(files[WEIGHTS]), len(files[WEIGHTS])) in seen
    remembered = json.loads((store.home() / "sha256.json").read_text())["tiny/huggingface"]
    assert remembered[WEIGHTS] == hashlib.sha256(files[WEIGHTS]).hexdigest()
    assert not [entry for entry in (store.home() / "downloads").rglob("*") if entry.is_file() and entry.name != "lock"]
    server.requests.clear()
    assert download(spec(server), settings=FAST) == path
    assert server.requests == []


def test_a_broken_connection_is_resumed_without_fetching_twice(server: ModelServer, files: dict[str, bytes]) -> None:
    server.faults[WEIGHTS] = [faulty.cut_after(1000), faulty.cut_after(700)]
    download(spec(server), settings=FAST)
    assert_whole()
    assert [asked for name, asked in server.requests if name == WEIGHTS] == [None, "bytes=1000-", "bytes=1700-"]
    assert server.sent == sum(len(files[name]) for name in spec(server).files)


def test_a_later_run_goes_on_where_the_first_gave_up(server: ModelServer) -> None:
    server.faults[WEIGHTS] = [faulty.cut_after(1500), *[faulty.status(503)] * 2]
    with pytest.raises(DownloadError, match="503.*gave up after 3 attempts, run it again"):
        download(spec(server), settings=FAST)
    assert_nothing()
    server.requests.clear()
    download(spec(server), settings=FAST)
    assert server.requests == [(WEIGHTS, "bytes=1500-")]
    assert_whole()


def test_killed_and_run_again(server: ModelServer, tmp_path: Path) -> None:
    """A real process, killed while it downloads: the next one goes on."""
    import time

    def stall(handler: faulty.Handler, data: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        handler.end_headers()
        handler.wfile.write(data[:900])
        handler.wfile.flush()
        time.sleep(5)

    server.faults[WEIGHTS] = [stall]
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), *filter(None, sys.path)]!r}
from gpt2.checkpoints.download import Spec, download
from test_download import CONFIG
download(Spec("tiny", CONFIG, "huggingface", {server.url!r}), progress=lambda *facts: print(*facts, flush=True))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith(WEIGHTS):
        pass
    process.kill()
    process.wait()
    assert_nothing()
    server.requests.clear()
    download(spec(server), settings=FAST)
    assert server.requests == [(WEIGHTS, "bytes=900-")]
    assert_whole()


@pytest.mark.parametrize(
    "faults",
    [
        [faulty.status(500)],
        [faulty.status(503), faulty.status(502)],
        [faulty.status(429, Retry_After="0")],
        [faulty.status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")],
        [faulty.cut_after(0)],
        [faulty.cut_after(1000), faulty.without_range],
        [faulty.cut_after(1000), faulty.wrong_range],
        [faulty.unknown_length],
    ],
)
def test_faults_that_pass(server: ModelServer, faults: list[Fault]) -> None:
    server.faults[WEIGHTS] = list(faults)
    download(spec(server), settings=FAST)
    assert_whole()


def test_a_file_that_changes_meanwhile_is_fetched_anew(server: ModelServer, files: dict[str, bytes]) -> None:
    """The first half of one file and the second half of another must not become one."""
    other = bytearray(files[WEIGHTS])
    other[-8:] = b"\0" * 8
    server.faults[WEIGHTS] = [lambda handler, _: handler.serve(bytes(other), cut=2000)]
    download(spec(server), settings=FAST)
    assert_whole()


def test_without_a_strong_etag_it_starts_anew(server: ModelServer) -> None:
    server.faults[WEIGHTS] = [lambda handler, data: handler.serve(data, cut=2000, etag='W/"weak"')]
    download(spec(server), settings=FAST)
    assert [asked for name, asked in server.requests if name == WEIGHTS] == [None, None]
    assert_whole()


def test_a_part_longer_than_the_file(server: ModelServer) -> None:
    parts = store.home() / "downloads" / "tiny-huggingface"
    parts.mkdir(parents=True)
    (parts / f"{WEIGHTS}.part").write_bytes(b"x" * 10_000_000)
    (parts / f"{WEIGHTS}.part.json").write_text('{"etag": "\\"whatever\\"", "total": null}')
    download(spec(server), settings=FAST)
    assert_whole()


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        (WEIGHTS, faulty.html_page(), "expected a file, got an HTML page"),
        (WEIGHTS, faulty.html_page(kind="application/octet-stream"), "got an HTML or XML page"),
        ("merges.txt", faulty.html_page(kind="text/plain"), "got an HTML or XML page"),
        (WEIGHTS, faulty.other_file(b'{"error": "quota"}'), "expected a safetensors file"),
        (WEIGHTS, faulty.other_file(b""), "expected a safetensors file"),
        ("config.json", faulty.other_file(b'{"error": "quota"}'), "config.json: expected a JSON object"),
        ("config.json", faulty.other_file(b"{"), "expected a JSON object"),
        ("vocab.json", faulty.other_file(b"not json"), "vocab.json: expected a JSON object"),
        ("merges.txt", faulty.other_file(b"hello"), "merges.txt: expected merges, got b'hello'"),
        (WEIGHTS, faulty.other_file(b"x" * 40_000_000), "got a Content-Length of 40,000,000"),
        ("config.json", lambda h, d: faulty.unknown_length(h, b" " * 17_000_000), "expected at most 16,777,216 bytes"),
    ],
)
def test_what_is_not_the_file_is_never_saved_as_it(server: ModelServer, name: str, fault: Fault, message: str) -> None:
    server.faults[name] = [fault]
    with pytest.raises(IntegrityError, match=message):
        download(spec(server), settings=FAST)
    assert_nothing()
    assert not (store.home() / "downloads" / "tiny-huggingface" / name).exists()
    download(spec(server), settings=FAST)  # the next time it is right
    assert_whole()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faulty.status(404), "answered 404"),
        (faulty.status(403), "answered 403"),
        (faulty.html_page(404), "answered 404"),
        (faulty.redirect("file:///etc/passwd"), "expected http:// or https://|answered 302"),
        (faulty.redirect("ftp://127.0.0.1/x"), "expected http:// or https://|answered 302"),
    ],
)
def test_answers_that_trying_again_does_not_help(server: ModelServer, fault: Fault, message: str) -> None:
    server.faults[WEIGHTS] = [fault] * 10
    with pytest.raises(DownloadError, match=message):
        download(spec(server), settings=FAST)
    assert len([name for name, _ in server.requests if name == WEIGHTS]) == 1
    assert_nothing()


def test_redirects_are_followed_and_loops_end(server: ModelServer, files: dict[str, bytes]) -> None:
    server.files["elsewhere"] = files[WEIGHTS]
    server.faults[WEIGHTS] = [faulty.redirect(f"{server.url}/elsewhere")]
    download(spec(server), settings=FAST)
    assert_whole()
    store.remove("tiny")
    server.faults[WEIGHTS] = [faulty.redirect(f"{server.url}/{WEIGHTS}")] * 50
    with pytest.raises(DownloadError, match="302"):
        download(spec(server), settings=FAST)


def test_nobody_listens() -> None:
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(Spec("tiny", CONFIG, "huggingface", "http://127.0.0.1:9"), settings=FAST)


def test_a_server_that_says_nothing(server: ModelServer) -> None:
    import time

    server.faults["config.json"] = [lambda handler, data: time.sleep(1)] * 9
    with pytest.raises(DownloadError, match="gave up after 3 attempts"):
        download(spec(server), settings=Settings(tries=3, timeout=0.1, backoff=0.01))


def test_pinned_and_remembered_hashes(server: ModelServer, files: dict[str, bytes]) -> None:
    with pytest.raises(IntegrityError, match=f"{WEIGHTS}: expected the SHA-256 {'0' * 64}, got"):
        download(spec(server), settings=FAST, sha256={WEIGHTS: "0" * 64})
    assert_nothing()
    right = hashlib.sha256(files[WEIGHTS]).hexdigest()
    download(spec(server), settings=FAST, sha256={WEIGHTS: right.upper()})
    changed = bytearray(files[WEIGHTS])
    changed[-1] ^= 1
    server.files[WEIGHTS] = bytes(changed)
    with pytest.raises(IntegrityError, match=f"expected the SHA-256 {right}"):
        download(spec(server), settings=FAST, force=True)
    assert_whole()
    download(spec(server), settings=FAST, force=True, accept_new_hashes=True)
    assert (store.resolve("tiny") / WEIGHTS).read_bytes() == bytes(changed)
    for pins in ({"x.bin": right}, {WEIGHTS: "12"}):
        with pytest.raises(ConfigError, match="sha256"):
            download(spec(server), sha256=pins)


def test_gpt2s_own_vocabulary_is_pinned(server: ModelServer) -> None:
    other = spec(server, config=GPT2Config(n_embd=8, n_head=2, n_layer=1), source="openai")
    server.files |= {"hparams.json": json.dumps(other.config.to_dict()).encode(), "encoder.json": b'{"a": 0}'}
    with pytest.raises(IntegrityError, match="encoder.json: expected the SHA-256 196139668be63f3b"):
        download(other, settings=FAST)


def test_openai_layout(server: ModelServer, tmp_path: Path) -> None:
    folder = tmp_path / "openai"
    checkpoints.write(folder, CONFIG, TENSORS.items(), format="openai", codec=CODEC)
    server.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, wrong, message in (
        ("hparams.json", json.dumps(SIZES["124M"].to_dict()).encode(), "expected that of tiny"),
        ("model.ckpt.index", b"x" * 300, "expected a TensorFlow checkpoint's index"),
        ("model.ckpt.data-00000-of-00001", b"x" * 100, r"expected [\d,]+ bytes for tiny, got 100"),
    ):
        server.faults[name] = [faulty.other_file(wrong)]
        with pytest.raises(IntegrityError, match=message):
            download(spec(server, source="openai"), settings=FAST)
    download(spec(server, source="openai"), settings=FAST)
    assert checkpoints.detect(store.resolve("tiny")) == "openai"
    assert_whole()


def test_two_processes_at_once(server: ModelServer) -> None:
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), *filter(None, sys.path)]!r}
from gpt2.checkpoints.download import Spec, download
from test_download import CONFIG
print(download(Spec("tiny", CONFIG, "huggingface", {server.url!r})))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len([name for name, _ in server.requests if name == WEIGHTS]) == 1
    assert_whole()


def test_import_of_files_at_hand(files: dict[str, bytes], tmp_path: Path, server: ModelServer) -> None:
    folder = tmp_path / "at hand"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / WEIGHTS).rename(tmp_path / WEIGHTS)
    with pytest.raises(DownloadError, match=f"missing {WEIGHTS}"):
        import_folder(folder, spec(server))
    (folder / WEIGHTS).write_bytes(b"<html>")
    with pytest.raises(IntegrityError, match="HTML"):
        import_folder(folder, spec(server))
    (tmp_path / WEIGHTS).rename(folder / WEIGHTS)
    import_folder(folder, spec(server))
    assert_whole()
    assert server.requests == []
    with pytest.raises(DownloadError, match="is there already"):
        import_folder(folder, spec(server))


@pytest.mark.parametrize("url", ["file:///etc", "ftp://127.0.0.1", "127.0.0.1/x", "", "http://"])
def test_only_http(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="expected http:// or https://"):
        fetch(url, tmp_path / "x", limit=10, settings=FAST)
    if url:
        with pytest.raises(DownloadError, match="expected http:// or https://"):
            released("124M", base_url=url)


def test_released_sizes() -> None:
    assert released("small").base_url == "https://openaipublic.blob.core.windows.net/gpt-2/models/124M"
    assert released("xl", source="huggingface").base_url.endswith("openai-community/gpt2-xl/resolve/main")
    assert released("774M", base_url="http://127.0.0.1:1/m/").base_url == "http://127.0.0.1:1/m"
    with pytest.raises(ConfigError, match="size: expected one of 124M"):
        released("125M")
    with pytest.raises(ConfigError, match="source: expected one of openai, huggingface"):
        released("124M", source="torrent")


def test_names_stay_in_the_store(server: ModelServer) -> None:
    with pytest.raises(ModelNameError, match="expected up to 64 letters"):
        download(spec(server, name="../evil"), settings=FAST)
    assert server.requests == []


def test_a_full_disk_is_seen_beforehand(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(DownloadError, match=r"expected 0.0 GB of free space, found 0.0 GB"):
        download(spec(server), settings=FAST)
    assert server.requests == []
