"""The command line as a real process: what it prints, where, and with what status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.gpt import new_model, save_model

CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\n")


def gpt2(*arguments: str, stdin: str | bytes | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `gpt2` with a closed or given standard input."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    code = "from gpt2.cli import main; main()"
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        input=data if data is not None else b"",
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def out(*arguments: str, stdin: str | bytes | None = None) -> str:
    done = gpt2(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    assert b"\x1b" not in done.stdout, "piped output has no colours"
    return done.stdout.decode()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=32, n_embd=16, n_head=2, n_layer=1)
    return str(save_model(new_model(config, codec=CODEC, seed=1), tmp_path_factory.mktemp("models") / "tiny"))


def test_encode_and_decode() -> None:
    assert out("encode", "Hello world") == "15496 995\n"
    assert out("encode", stdin="Hello world") == "15496 995\n"
    assert out("encode", "--json", "Hello world") == "[15496, 995]\n"
    assert out("encode", "<|endoftext|>") == "27 91 437 1659 5239 91 29\n"
    assert out("encode", "--allow-special", "<|endoftext|>") == "50256\n"
    for ids in (("15496", "995"), ("15496,995",), ("[15496, 995]",)):
        assert out("decode", *ids) == "Hello world"
    assert out("decode", stdin="15496\n995\n") == "Hello world"
    assert gpt2("decode", "47249").stdout == b"\xf0\x9f\x98", "half a character comes out as its bytes"


def test_a_models_own_vocabulary(tiny: str) -> None:
    assert out("encode", "the", "--model", tiny) == "257\n"
    assert out("decode", "257", "-m", tiny) == "the"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["encode", "Hello world"], ["decode", "15496"], ["models", "list"], ["generate", "--help"]],
)
def test_light_commands_import_no_tensorflow(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom gpt2.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    print([m for m in ('tensorflow', 'keras', 'jax', 'torch') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.returncode == 0


def test_generate_is_repeatable_and_labels_itself(tiny: str) -> None:
    text = out("generate", "the", "-m", tiny, "-n", "8", "--seed", "3")
    assert text.startswith("the")
    assert text.endswith("\n")
    assert text == out("generate", "the", "-m", tiny, "-n", "8", "--seed", "3")
    record = json.loads(out("generate", "the", "-m", tiny, "-n", "8", "--seed", "3", "--json", "--logprobs", "2"))
    assert record["text"] == text.removesuffix("\n")
    assert record["synthetic"] is True
    assert record["seed"] == 3
    assert len(record["log_probabilities"]) == len(record["tokens"]) == 9
    assert record["log_probabilities"][0] is None


def test_generate_reads_a_pipe(tiny: str) -> None:
    direct = out("generate", "a prompt", "-m", tiny, "-n", "5", "--seed", "1")
    assert out("generate", "-m", tiny, "-n", "5", "--seed", "1", stdin="a prompt\n") == direct
    assert out("generate", "-", "-m", tiny, "-n", "5", "--seed", "1", stdin="a prompt") == direct
    assert out("generate", "a prompt", "-m", tiny, "-n", "5", "--seed", "1", "--no-echo") == direct.removeprefix(
        "a prompt"
    )


def test_generate_without_a_prompt_is_unconditional(tiny: str) -> None:
    assert "endoftext" not in out("generate", "-m", tiny, "-n", "5", "--seed", "1")


def test_generate_several_and_beams(tiny: str) -> None:
    text = out("generate", "the", "-m", tiny, "-n", "4", "--seed", "1", "--num-samples", "3")
    assert text.count("SAMPLE") == 3
    lines = out("generate", "the", "-m", tiny, "-n", "4", "--num-samples", "2", "--num-beams", "3", "--json")
    assert len(lines.splitlines()) == 2


def test_stop(tiny: str) -> None:
    whole = out("generate", "the", "-m", tiny, "-n", "20", "--seed", "1", "--no-echo")
    cut = out("generate", "the", "-m", tiny, "-n", "20", "--seed", "1", "--no-echo", "--stop", whole[3])
    assert cut == whole[: whole.index(whole[3])] + "\n"


def test_interactive(tiny: str) -> None:
    done = gpt2("generate", "-i", "-m", tiny, "-n", "4", "--seed", "1", stdin="the\na\n\nnever read\n")
    assert done.returncode == 0
    assert done.stdout.decode("utf-8", "replace").splitlines()[0].startswith("the")
    assert done.stderr.count(b">>>") == 3


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "message"),
    [
        (["nope"], None, 2, "No such command"),
        (["generate", "--nope"], None, 2, "No such option"),
        (["generate", "x", "-n", "many"], None, 2, "--max-tokens"),
        (["generate", "x", "--temperature", "-1"], None, 2, "temperature: expected a number from 0 to 100, got -1.0"),
        (["generate", "x", "--top-p", "nan"], None, 2, "top_p: expected a number from 0 to 1, got nan"),
        (["generate", ""], None, 2, "prompt: expected text, got an empty one"),
        (["generate", "-"], b"\n", 2, "prompt: expected text, got an empty one"),
        (["generate"], b"\xff\xfe\0", 2, "expected UTF-8 text, got the byte 0xff at 0"),
        (["generate", "x", "-m", "nobody"], None, 1, "expected a folder or one of bundled, got 'nobody'"),
        (["generate", "x", "-m", "124M"], None, 1, "gpt2 download 124M"),
        (["generate", "x", "-m", "."], None, 1, "expected a model"),
        (["decode", "abc"], None, 2, "expected token ids such as 15496 995, got 'abc'"),
        (["decode", "50257"], None, 2, "expected integers of the vocabulary (0 to 50256), got 50257"),
        (["encode"], b"\xe9", 2, "expected UTF-8"),
        (["convert", "nobody", "x", "--to", "native"], None, 1, "nobody"),
        (["convert", "bundled", "x", "--to", "pickle"], None, 2, "format: expected one of native"),
        (["download", "999M"], None, 2, "size: expected one of 124M"),
        (["download", "124M", "--base-url", "file:///x"], None, 1, "expected http:// or https://"),
        (["models", "remove", "../x"], None, 1, "name: expected up to 64 letters"),
        (["models", "show", "nobody"], None, 1, "got 'nobody'"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, arguments: list[str], stdin: bytes | None, status: int, message: str
) -> None:
    done = gpt2(*arguments, stdin=stdin)
    error = done.stderr.decode()
    assert done.returncode == status, error
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("gpt2: ")
    assert message in error
    assert done.stdout == b""


def test_debug_shows_the_traceback() -> None:
    done = gpt2("--debug", "models", "show", "nobody")
    assert b"Traceback" in done.stderr


def test_prompt_past_the_context(tiny: str) -> None:
    done = gpt2("generate", "x" * 40, "-m", tiny, "--no-slide")
    assert done.returncode == 2
    assert b"expected at most 32 tokens (n_ctx) together with max_tokens" in done.stderr
    assert len(out("generate", "x" * 40, "-m", tiny, "-n", "40", "--seed", "1")) > 40


def test_reader_that_leaves_early(tiny: str) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    command = f'"{sys.executable}" -c "from gpt2.cli import main; main()" generate the -m "{tiny}" -n 200 | head -c 4'
    done = subprocess.run(command, shell=True, capture_output=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.stderr == b""


def test_ctrl_c_is_clean(tiny: str) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-c", "from gpt2.cli import main; main()", "generate", "the", "-m", tiny, "-n", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error == b"\n"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are looked up in /proc")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_what_ends_a_command_leaves_nothing_behind(tiny: str, tmp_path: Path, number: int, status: int) -> None:
    """Unfinished files beside the target, temporary folders and the process of the check stayed.

    After a kill the files stay for the next writer to remove; the process goes.
    """
    target, temporary = tmp_path / "out" / "model", tmp_path / "temporary"
    temporary.mkdir()
    path = os.pathsep.join(filter(None, sys.path))
    code = "from gpt2.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "convert", tiny, str(target), "--to", "native", "--check"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(temporary)},
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (found := [child for child in children.read_text().split() if "exports.runtimes" in command_of(child)]):
        assert process.poll() is None, "it ended before its check began"
        time.sleep(0.01)
    assert any(".gpt2-tmp-" in entry.name for entry in target.parent.iterdir())
    assert list(temporary.iterdir())
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (status, b"")
    if number != signal.SIGKILL:
        assert list(target.parent.iterdir()) == []
        assert list(temporary.iterdir()) == []
    while is_running(found[0]):  # it may have been on its way when the signal came
        time.sleep(0.05)


def command_of(process_id: str) -> str:
    try:
        return Path("/proc", process_id, "cmdline").read_text()
    except OSError:
        return ""


def is_running(process_id: str) -> bool:
    try:
        return Path("/proc", process_id, "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_hangup_that_is_ignored_stays_ignored(tiny: str) -> None:
    """As `nohup` starts a command."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from gpt2.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "generate", "the", "-m", tiny, "-n", "500", "--min-tokens", "500"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    process.stdout.read(5)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_convert_for_others(tiny: str, tmp_path: Path) -> None:
    """What it prints is a line for people or JSON; a target that is no GGUF file is refused as misuse."""
    pytest.importorskip("gguf")
    target = str(tmp_path / "m.gguf")
    report = json.loads(out("convert", tiny, target, "--to", "gguf", "--precision", "F16", "--no-check", "--json"))
    assert (report["path"], report["format"], report["precision"]) == (target, "gguf", "float16")
    assert report["bytes"] == os.path.getsize(target)
    assert (report["parity"], report["not_checked"]) == (None, "as was asked")
    assert "not checked: as was asked" in out("convert", tiny, target, "--to", "gguf", "--no-check")
    done = gpt2("convert", tiny, str(tmp_path / "m"), "--to", "gguf", "--no-check")
    assert done.returncode == 2
    assert b"ends in .gguf" in done.stderr


def test_convert_and_models(tiny: str, tmp_path: Path) -> None:
    home = str(tmp_path / "store")
    os.environ["GPT2_HOME"] = home
    assert "huggingface" in out("convert", tiny, str(tmp_path / "hf"), "--to", "huggingface", "--no-check")
    assert json.loads(out("models", "show", str(tmp_path / "hf"), "--json"))["format"] == "huggingface"
    assert "mine" in out("models", "add", str(tmp_path / "hf"), "--name", "mine")
    rows = json.loads(out("models", "list", "--json"))
    assert [row["name"] for row in rows] == ["bundled", "mine"]
    assert "mine" in out("models", "list")
    assert out("generate", "the", "-m", "mine", "-n", "3", "--seed", "1") == out(
        "generate", "the", "-m", tiny, "-n", "3", "--seed", "1"
    )
    assert gpt2("models", "remove", "mine", stdin="n\n").returncode == 130
    assert "removed" in out("models", "remove", "mine", "--yes")
    assert [row["name"] for row in json.loads(out("models", "list", "--json"))] == ["bundled"]


def test_doctor() -> None:
    facts = json.loads(out("doctor", "--json"))
    assert facts["tensorflow"].startswith("2.17")
    assert facts["generation"] == "works"
    assert "parameters" in facts["bundled model"]


def test_example_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "gpt2.example"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Synthetic text")
    assert "Once upon a time" in done.stdout
    assert done.stderr == ""


def test_version() -> None:
    assert out("--version").startswith("gpt2 ")
