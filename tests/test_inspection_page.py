"""What is shown of an inspection: the page in a real browser, pictures, the command."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from gpt2.codec import Codec
from gpt2.config import GPT2Config
from gpt2.errors import ConfigError
from gpt2.gpt import new_model, save_model
from gpt2.inspection import (
    Inspection,
    ablate_heads,
    ablate_neurons,
    find_induction,
    inspect,
    pictures,
    run_with_cache,
    steer,
)
from gpt2.inspection import page as page_module
from gpt2.inspection.page import attention_html
from gpt2.verification import verify

HOSTILE = (
    "the </script><script>document.title='owned'</script><img src=x onerror=document.title='owned'>\n$x$ &amp; the"
)
CODEC = Codec.from_merges("#version: 0.2\nt h\nth e\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPT2Config(n_vocab=CODEC.n_vocab, n_ctx=160, n_embd=16, n_head=2, n_layer=2)
    model = new_model(config, codec=CODEC, seed=1)
    return save_model(model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def seen(folder: Path) -> Inspection:
    from gpt2.gpt import load_model

    return inspect(load_model(folder), HOSTILE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1200, 1201, 1440, 1600])
def test_a_wide_page_shows_the_whole_table(seen: Inspection, tmp_path: Path, browser: Any, width: int) -> None:
    file = tmp_path / "page.html"
    wordy = dataclasses.replace(seen, vocabulary=lambda token: " subsequently")
    file.write_text(attention_html(wordy), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(file.as_uri())
    page.locator(".token").first.click()
    assert page.evaluate("(s => s.scrollWidth - s.clientWidth)(document.querySelector('.scroll'))") == 0
    page.close()


def test_page_in_a_browser(seen: Inspection, tmp_path: Path, browser: Any) -> None:
    file = tmp_path / "page.html"
    hostile = dataclasses.replace(seen, changes=({"said": HOSTILE},))
    file.write_text(attention_html(hostile), encoding="utf-8")
    T, said, asked = len(seen.ids), [], []
    page = browser.new_page(viewport={"width": 390, "height": 800}, has_touch=True)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    assert page.title().startswith("Inside "), "what a text says is never run"
    texts = page.locator(".token").all_text_contents()
    assert [text.replace("⏎", "\n") for text in texts] == list(seen.texts)
    assert HOSTILE in page.locator("#changed").text_content()
    assert page.locator("img").count() == 0

    def weights() -> list[float]:
        return page.evaluate("[...document.querySelectorAll('.token')].map(t => t.style.getPropertyValue('--a') ** 2)")

    def expected(layer: int, head: int, token: int) -> Any:
        return pytest.approx(seen.patterns[layer, head, token], abs=0.004)

    assert weights() == expected(0, 0, T - 1)
    page.locator(".token").nth(5).tap()
    assert weights() == expected(0, 0, 5)
    page.keyboard.press("ArrowRight")
    assert weights() == expected(0, 0, 6)
    page.locator("#layer").select_option("1")
    assert weights() == expected(1, 0, 6)
    page.locator("[role=radio][aria-checked=true]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#head").input_value() == "1"
    assert weights() == expected(1, 1, 6)
    page.locator("#to").check()
    assert weights() == pytest.approx(seen.patterns[1, 1, :, 6], abs=0.004)
    rows = page.locator("#lens tr")
    assert rows.count() == 3
    best = seen.vocabulary(int(seen.lens.predictions[-1].top[6, 0]))
    assert rows.nth(2).locator("code").first.text_content() == best.replace(" ", "␣").replace("\n", "⏎")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out on a telephone"
    axe = pytest.importorskip("axe_core_python.sync_playwright")
    page.emulate_media(color_scheme="dark")
    # The page's policy lets no script in but its own, so the checker is put into a copy without one.
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    file.write_text(policy.sub("", file.read_text(encoding="utf-8")), encoding="utf-8")
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.goto(file.as_uri())
        found = axe.Axe().run(page)["violations"]
        assert [(v["id"], v["nodes"][0]["html"][:200]) for v in found] == []
    page.close()
    assert said == []
    assert set(asked) == {file.as_uri()}


def test_page_is_one_file_that_can_do_nothing_else(seen: Inspection) -> None:
    page = attention_html(seen)
    assert re.findall(r"<script[ >]", page) == ["<script ", "<script>"], "the data and the script"
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//[a-z]|src=|@import|url\(|innerHTML", page.replace("src=x onerror", ""))
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["tokens"] == list(seen.texts)
    assert data["losses"][0] is None
    assert data["losses"][1:] == pytest.approx(seen.losses[1:], abs=1e-4)


def test_a_changed_model_is_not_shown_as_the_intact_one(folder: Path, seen: Inspection) -> None:
    from gpt2.gpt import load_model

    model = load_model(folder)
    tables = ablate_heads([(1, 0)]), ablate_neurons([(0, 7)]), {"h0/in": lambda value: None}
    changed = inspect(model, "the $x$", *tables)
    said = "without heads 1.0; without neurons 0.7; hooks at h0/in"
    assert changed.changed == said
    page = attention_html(dataclasses.replace(changed, changes=({"said": "<b>$x$</b>"}, *changed.changes)))
    for tag in ("title", "h1"):
        assert f"<{tag}>Inside {model.name}, changed</{tag}>" in page
        assert f"<{tag}>Inside {model.name}</{tag}>" in attention_html(seen)
    assert f"Not the model as it is:</strong> &lt;b&gt;$x$&lt;/b&gt;; {said}.</p>" in page
    for shown, whole in ((changed, page), (seen, attention_html(seen))):
        assert shown.weights_sha256 == model.engine.weights_sha256
        assert f">{model.engine.weights_sha256}</span>" in whole
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["changes"][1:] == list(changed.changes)
    assert (data["model"], data["weights_sha256"]) == (model.name, model.engine.weights_sha256)
    assert "Not the model" not in attention_html(seen)
    draw = (
        pictures.loss_figure,
        pictures.lens_figure,
        pictures.heads_figure,
        lambda one: pictures.head_figure(one, 0, 1),
    )
    for figure in draw:
        assert figure(changed).get_supxlabel().replace("\n", " ") == f"Not the model as it is: {said}"
        assert figure(inspect(model, "the")).get_supxlabel() == ""


def test_page_refuses_what_no_browser_could_show(seen: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MAX_ATTENTION", 1000)
    with pytest.raises(ConfigError, match=r"text: expected at most \d+ tokens for a page of 4 heads, got \d+"):
        attention_html(seen)


def test_pictures(folder: Path) -> None:
    from gpt2.gpt import load_model

    model = load_model(folder)
    seen = inspect(model, "the $x_1$\n")
    figures = [pictures.loss_figure(seen), pictures.lens_figure(seen), pictures.heads_figure(seen)]
    figures += [pictures.head_figure(seen, 1, 0), pictures.induction_figure(find_induction(model, length=8, rows=2))]
    for figure in figures:
        svg = pictures.as_bytes(figure, "svg")
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert pictures.as_bytes(figures[0], "png").startswith(b"\x89PNG")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["the", "·", "$", "x", "_", "1", "$", "⏎"]
    assert [bar.get_height() for bar in axes.patches][1:] == pytest.approx(seen.losses[1:])
    np.testing.assert_allclose(
        np.asarray(figures[3].axes[0].images[0].get_array()) ** 2, seen.patterns[1, 0], atol=1e-6
    )
    with pytest.raises(ConfigError, match="layer: expected 0 to 1, got 2"):
        pictures.head_figure(seen, 2, 0)
    with pytest.raises(ConfigError, match="text: expected at most 80 tokens for a picture, got 100"):
        pictures.loss_figure(inspect(model, list(range(100))))


# The command


def gpt2(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-m", "gpt2", "inspect", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )


def main(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The command in this process, where TensorFlow is loaded already."""
    from gpt2.cli import main as run

    with pytest.raises(SystemExit) as left:
        run(["inspect", *arguments])
    printed = capsys.readouterr()
    return int(left.value.code or 0), printed.out, printed.err


def test_command_as_a_process(folder: Path, tmp_path: Path) -> None:
    done = gpt2("--model", str(folder), "-o", str(tmp_path / "out.html"), stdin="the the the\n")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == f"wrote {tmp_path / 'out.html'}\n"
    assert (tmp_path / "out.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_command_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["the the\x1b[31m the", "--model", str(folder)]
    status, out, _ = main(*given, capsys=capsys)
    assert status == 0
    assert "\x1b" not in out
    assert r'"\u001b"' in out
    losses = [float(line.split()[-1 if "0 " in line else 2]) for line in out.splitlines()[2:4]]
    status, out, _ = main(*given, "--json", capsys=capsys)
    record = json.loads(out)
    assert record["tokens"][0]["loss"] is None
    assert [round(token["loss"], 3) for token in record["tokens"][1:2]] == losses[:1] or losses
    assert np.asarray(record["attention"]).shape[:2] == (2, 2)
    assert len(record["lens"]) == 3
    for options, shown in (
        (["--what", "lens"], "layer 1"),
        (["--what", "lens", "--token", "0"], 'after token 0, "the":'),
        (["--what", "attention"], "mean distance"),
        (["--what", "attention", "--layer", "1", "--head", "0"], "looks at"),
    ):
        status, out, _ = main(*given, *options, capsys=capsys)
        assert status == 0
        assert shown in out
    silencing = ["--ablate", "1.0", "--ablate", "0.1"]
    silent = json.loads(main(*given, "--json", *silencing, capsys=capsys)[1])
    assert silent["mean_loss"] != record["mean_loss"]
    assert record["changes"] == []
    without = {"kind": "ablated heads", "said": "without heads 0.1, 1.0", "heads": [[0, 1], [1, 0]], "to": "zero"}
    assert silent["changes"] == [without]
    assert silent["weights_sha256"] == record["weights_sha256"] == verify(folder).weights_sha256
    assert main(*given, *silencing, capsys=capsys)[1].startswith("not the model as it is: without heads 0.1, 1.0\n")
    assert "not the model" not in main(*given, capsys=capsys)[1]
    begun = json.loads(main(*given, "--json", "--start", capsys=capsys)[1])
    assert [token["id"] for token in begun["tokens"][1:]] == [token["id"] for token in record["tokens"]]
    assert begun["tokens"][1]["loss"] is not None


def test_command_silences_neurons_and_steers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gpt2.gpt import load_model

    given = ["the the t", "--model", str(folder), "--json", "--start"]
    model = load_model(folder)
    start, ids = model.prompt_tokens(None)[0], model.prompt_tokens("the the t")[0]

    def losses(*options: str) -> tuple[list[float], list[Any]]:
        status, out, error = main(*given, *options, capsys=capsys)
        assert status == 0, error
        record = json.loads(out)
        return [token["loss"] for token in record["tokens"][1:]], record["changes"]

    plain, _ = losses()
    got, changes = losses("--ablate-neuron", "1.63", "--ablate-neuron", "0.5")
    assert got == pytest.approx(inspect(model, [*start, *ids], ablate_neurons([(0, 5), (1, 63)])).losses[1:])
    assert got != plain
    assert [change["said"] for change in changes] == ["without neurons 0.5, 1.63"]

    steering = ["--steer", "h1/in", "--toward", "the h", "--away", "t"]
    name = "blocks.1.hook_resid_pre"
    toward, away = ([*start, *model.prompt_tokens(text)[0]] for text in ("the h", "t"))
    direction = run_with_cache(model, toward)[1][name][0, -1] - run_with_cache(model, away)[1][name][0, -1]
    for strength in (1.0, -2.5):
        got, changes = losses(*steering, *(["--strength", str(strength)] if strength != 1 else []), "--ablate", "0.0")
        expected = inspect(model, [*start, *ids], ablate_heads([(0, 0)]), steer(name, direction, strength))
        assert got == pytest.approx(expected.losses[1:])
        assert [change["kind"] for change in changes] == ["ablated heads", "steered"]
        assert changes[1]["said"] == f'steered at {name} by {strength:g} times the way from "t" to "the h"'
        assert (changes[1]["at"], changes[1]["toward"], changes[1]["away"]) == (name, "the h", "t")
        assert changes[1]["strength"] == strength
    assert got != plain


def test_command_saves_activations(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gpt2.gpt import load_model

    model, file = load_model(folder), tmp_path / "kept.npz"
    saving = ["--save", "h*/out", "--save", "blocks.0.attn.hook_pattern", "--arrays", str(file)]
    status, out, error = main("the the", "-m", str(folder), "--ablate", "0.1", *saving, capsys=capsys)
    assert (status, error) == (0, f"wrote {file}\n")
    assert "mean loss" in out, "what was to be shown is shown as well"
    _, seen = run_with_cache(model, "the the", ablate_heads([(0, 1)]))
    with np.load(file, allow_pickle=False) as kept:
        names = {"blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.0.attn.hook_pattern"}
        assert set(kept) == names | {"ids", "about"}
        for name in names:
            np.testing.assert_array_equal(kept[name], seen[name])
        np.testing.assert_array_equal(kept["ids"], seen.ids)
        about = json.loads(str(kept["about"]))
    assert about["weights_sha256"] == model.engine.weights_sha256
    assert [change["said"] for change in about["changes"]] == ["without heads 0.1"]
    before = file.read_bytes()
    status, _, error = main("the", "-m", str(folder), "--save", "h7/out", *saving[4:], capsys=capsys)
    assert (status, error[:56]) == (2, "gpt2: --save: expected names such as blocks.0.attn.hook_")
    assert "got 'h7/out'" in error
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.npz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ablate", "2.0"], "--ablate: expected layers 0 to 1 and heads 0 to 1, got 2.0"),
        (["--ablate", "0.2"], "--ablate: expected layers 0 to 1 and heads 0 to 1, got 0.2"),
        (["--ablate-neuron", "1.64"], "--ablate-neuron: expected layers 0 to 1 and neurons 0 to 63, got 1.64"),
        (["--steer", "h9/in"], "--steer: expected names such as blocks.0.attn.hook_pattern"),
        (["--steer", "h*/in"], "--steer: expected the name of one activation of each token, such as"),
        (["--steer", "h0/attn/pattern"], "--steer: expected the name of one activation of each token, such as"),
    ],
)
def test_command_refuses_what_the_network_has_not(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if options[0] == "--steer":
        options = [*options, "--toward", "x", "--away", "y"]
    status, out, error = main("the", "-m", str(folder), *options, capsys=capsys)
    assert (status, out) == (2, "")
    assert error.startswith(f"gpt2: {message}")


def test_command_patches(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["the the t", "--against", "the h t", "--what", "patch", "-m", str(folder), "--start"]
    status, out, error = main(*given, capsys=capsys)
    assert status == 0, error
    assert "1 foretells what the other text does" in out
    record = json.loads(main(*given, "--json", capsys=capsys)[1])
    assert record["weights_sha256"] == verify(folder).weights_sha256
    effects = np.asarray(record["effects"])
    assert effects.shape == (2, len(record["tokens"]))
    parts = [ours != theirs for ours, theirs in zip(record["tokens"], record["other"], strict=True)]
    assert parts.count(True) == 1
    np.testing.assert_allclose(effects[0], parts, atol=0.02)
    file = tmp_path / "patch.svg"
    assert main(*given, "-o", str(file), capsys=capsys)[0] == 0
    assert ElementTree.fromstring(file.read_bytes()).tag.endswith("svg")
    assert "the other text, where it differs" in file.read_text()


def test_command_says_what_is_too_long(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long, steered = "the " * 4000, ["the", "--steer", "h0/in"]
    for given, argument in (
        ([long], "text"),
        (["the", "--what", "patch", "--against", long], "--against"),
        ([*steered, "--toward", long, "--away", "the"], "--toward"),
        ([*steered, "--toward", "the", "--away", long], "--away"),
    ):
        status, _, error = main(*given, "-m", str(folder), capsys=capsys)
        assert status == 2
        assert re.match(rf"gpt2: {argument}: expected at most n_ctx = 160 tokens, got \d+", error)


def test_command_looks_for_induction(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--what", "induction", "--model", str(folder), "--length", "8"]
    status, out, _ = main(*given, capsys=capsys)
    assert status == 0
    assert "no induction heads" in out
    record = json.loads(main(*given, "--json", capsys=capsys)[1])
    assert np.asarray(record["scores"]).shape == (2, 2)
    assert set(record) >= {
        "model",
        "weights_sha256",
        "first_loss",
        "second_loss",
        "gain",
        "shuffled_gain",
        "found",
        "best",
        "random",
    }
    assert main(*given, "-o", str(tmp_path / "i.svg"), capsys=capsys)[0] == 0
    assert (tmp_path / "i.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_command_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    for options in (["loss"], ["lens"], ["attention"], ["attention", "--layer", "0", "--head", "1"]):
        file = tmp_path / f"{len(options)}{options[0]}.{ending}"
        assert main("the the", "-m", str(folder), "-o", str(file), "--what", *options, capsys=capsys)[0] == 0
        assert file.read_bytes()[:4] in (b"<?xm", b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--what", "all"], "--what: expected one of loss, lens, attention, patch, induction, got 'all'"),
        (
            ["x", "-o", "out.pdf"],
            "--output: expected a name that ends in one of .html, .svg, .png, .json, got 'out.pdf'",
        ),
        (["x", "--layer", "1"], "--layer, --head: expected both or neither"),
        (["x", "--layer", "1", "--head", "0"], "--layer, --head: expected none but for --what attention"),
        (["x", "--token", "0"], "--token: expected none but for --what lens in the terminal"),
        (["x", "--seed", "0"], "--seed, --length: expected none but for --what induction"),
        (["x", "--json", "-o", "x.html"], "--json: expected no --output, or one that ends in .json, got 'x.html'"),
        (["--what", "induction", "--start"], "--start: expected none with --what induction"),
        (["x", "--ablate", "5"], "--ablate: expected LAYER.HEAD such as 5.1, got '5'"),
        (["x", "--ablate-neuron", "5.x"], "--ablate-neuron: expected LAYER.NEURON such as 5.100, got '5.x'"),
        (["x", "--steer", "h0/in", "--toward", "y"], "--steer: expected --toward and --away with a text each"),
        (["x", "--steer", "h0/in", "--toward", "y", "--away", ""], "--steer: expected --toward and --away with"),
        (["x", "--away", "y"], "--steer: expected --toward and --away with a text each"),
        (["x", "--strength", "2"], "--steer: expected --toward and --away with a text each"),
        (
            ["x", "--steer", "h0/in", "--toward", "y", "--away", "z", "--strength", "nan"],
            "--strength: expected a finite number, got nan",
        ),
        (["x", "--save", "h0/in"], "--save: expected --arrays with a file"),
        (["x", "--arrays", "x.npz"], "--save: expected --arrays with a file"),
        (["x", "--save", "h0/in", "--arrays", "x.npy"], "--arrays: expected a name that ends in .npz, got 'x.npy'"),
        (["--what", "induction", "--ablate", "0.1"], "--what induction: expected no --ablate, --ablate-neuron"),
        (["x", "--what", "patch", "--against", "y", "--ablate-neuron", "0.1"], "--what patch: expected no --ablate"),
        (["x", "--what", "induction"], "--what induction: expected no text"),
        (["x", "--what", "patch"], "--what patch: expected --against with another text"),
        (["x", "--against", "y"], "--what patch: expected --against with another text"),
        ([""], "text: expected some to look at, got none"),
    ],
)
def test_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, error = main(*arguments, capsys=capsys)
    assert (status, out) == (2, "")
    assert error.startswith(f"gpt2: {message}")
