"""The report of a run: what it reads from a run's files, and a page that is whole and harmless."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpt2.errors import TrainingError
from gpt2.report import read_metrics, write_report

RUN = {
    "format": 1,
    "base": "bundled",
    "model": {"n_vocab": 50257, "n_ctx": 64, "n_embd": 48, "n_head": 4, "n_layer": 2},
    "parameters": 1_000_000,
    "trainable_parameters": 250_000,
    "data": {"train_tokens": 5000, "valid_tokens": 500, "files": ["<b>.txt"]},
    "training": {"steps": 30, "learning_rate": 3e-4, "lora_rank": None, "note": "</td><script>x</script>"},
    "versions": {"gpt2": "0.1.0", "tensorflow": "2.17.0", "keras": "3.12.3", "python": "3.11.7"},
}
VOID = {"meta", "br", "link", "img", "input", "hr", "base"}


def entry(step: int, **changes: Any) -> dict[str, Any]:
    numbers = {"loss": 3.0 - step / 100, "valid_loss": None, "learning_rate": 3e-4, "gradient_norm": 0.5}
    speeds = {"tokens_per_second": 1000.0, "ceiling_share": 0.4, "seconds": step * 1.0, "seconds_left": 30.0 - step}
    return {"step": step, "tokens": step * 100, **numbers, **speeds, **changes}


def make_run(folder: Path, entries: list[dict[str, Any]] | None, samples: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(RUN))
    for name, lines in (("metrics.jsonl", entries), ("samples.jsonl", samples)):
        if lines is not None:
            (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Page(HTMLParser):
    """What a browser would make of the page: its elements, and the text in each kind of them."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.loads.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_metrics_are_read_in_order(tmp_path: Path) -> None:
    run = make_run(tmp_path, [entry(10), entry(20, valid_loss=2.5)])
    assert read_metrics(run / "metrics.jsonl") == [entry(10), entry(20, valid_loss=2.5)]


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    (tmp_path / "metrics.jsonl").touch()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([10, 20, 30, 30], [(10, 0), (20, 1), (30, 3)]),
        ([10, 20, 30, 40, 20, 30], [(10, 0), (20, 4), (30, 5)]),
        ([10, 20, 30, 40, 25], [(10, 0), (20, 1), (25, 4)]),
        ([10, 20, 30, 20, 30, 10], [(10, 5)]),
    ],
)
def test_a_restarted_run(tmp_path: Path, steps: list[int], kept: list[tuple[int, int]]) -> None:
    run = make_run(tmp_path, [entry(step, loss=float(line)) for line, step in enumerate(steps)])
    assert [(line["step"], line["loss"]) for line in read_metrics(run / "metrics.jsonl")] == kept


def test_a_half_line_at_the_end(tmp_path: Path) -> None:
    whole = json.dumps(entry(10)) + "\n"
    path = tmp_path / "metrics.jsonl"
    for end in (1, 8, 40, len(whole) - 3):
        path.write_text(whole + json.dumps(entry(20))[:end])
        assert read_metrics(path) == [entry(10)]
    path.write_bytes(whole.encode() + '{"step": 20, "note": "é'.encode()[:-1])
    assert read_metrics(path) == [entry(10)]


def test_a_run_goes_on_in_the_middle_of_a_half_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps(entry(10)) + "\n" + json.dumps(entry(20))[:30] + json.dumps(entry(20)) + "\n[1]\n{}\n7\n\n"
    )
    assert read_metrics(tmp_path / "metrics.jsonl") == [entry(10), entry(20)]
    nested = {**entry(20), "options": {"window": 8}, "title": "{"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(nested)[:-9] + json.dumps(nested) + "\n")
    assert read_metrics(tmp_path / "metrics.jsonl") == [nested]


def test_metrics_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be read"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_the_page_tells_the_run(tmp_path: Path) -> None:
    entries = [entry(step, valid_loss=[2.0, 1.5, 1.75][step // 10 - 1]) for step in (10, 20, 30)]
    run = make_run(tmp_path / "my run", entries, [{"step": 10, "prompt": "Once", "text": "Once more."}])
    for name in ("step-00000030", "step-00000020", "step-00000100.tmp", "other"):
        (run / "checkpoints" / name).mkdir(parents=True)
    (run / "checkpoints" / "step-00000010").touch()  # a file is no checkpoint

    path = write_report(run)

    assert path == run / "report.html"
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in run.iterdir() if file.is_file()) == sorted(
        ["run.json", "metrics.jsonl", "samples.jsonl", "loss.png", "report.html"]
    )
    page = Page(path)
    assert page.tags.count("svg") == 5
    for text in ("my run", "Finished at step 30", "1,000,000", "250,000 trained, 25.0%", "the bundled model"):
        assert text in page.text
    assert f"1.5000perplexity {math.exp(1.5):.2f} at step 20" in page.text
    assert "1.7500validation; training 2.7000" in page.text
    assert "40% of the machine's measured ceiling" in page.text
    commands = re.findall(r"gpt2 generate --model '(.*)'", page.text)
    assert commands == [f"{run}@20", f"{run}@30"]
    assert "1.5000 (best saved)" in page.text
    assert "lora_ranknone" in re.sub(r"\s", "", page.text)


def test_samples_are_shown_as_they_are(tmp_path: Path) -> None:
    hostile = [
        "</pre><script>alert(1)</script>",
        "<img src=https://evil.example/x onerror=alert(1)> &amp; &lt; \"q\" 'q'",
        "<!-- <style>*{display:none}</style> ]]> <svg/onload=x>",
    ]
    samples = [{"step": 10 * (n + 1), "prompt": "<b>&\"'", "text": "<b>&\"'" + text} for n, text in enumerate(hostile)]
    samples.append({"step": 30, "prompt": "</h3><script>", "text": "\n  indented\x00\x1b[31m \ud83d"})
    path = write_report(make_run(tmp_path, [entry(10)], samples))
    page = Page(path)
    assert {"script", "img", "b", "style"} & set(page.tags) == {"style"}
    assert page.tags.count("style") == 1
    for text in hostile:
        assert text in page.text
    assert "\n\n  indented␀␛[31m ?" in page.text
    assert "Synthetic text" in page.text


def test_samples_stand_under_their_prompts_in_order(tmp_path: Path) -> None:
    lines = [
        (10, "A", "a10"),
        (10, "B", "b10"),
        (20, "A", "a20"),
        (30, "A", "old"),
        (20, "A", "a20 again"),
        (30, "A", "a30"),
    ]
    samples = [{"step": step, "prompt": prompt, "text": text} for step, prompt, text in lines]
    page = Page(write_report(make_run(tmp_path, [entry(10)], samples)))
    assert re.findall(
        r"Prompt: .|[ab]\d\d(?: again)?|old", page.text.partition("Samples")[2].partition("Checkpoints")[0]
    ) == [
        *["Prompt: A", "a10", "a20 again", "a30"],
        *["Prompt: B", "b10"],
    ]


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page_path = write_report(make_run(tmp_path, [entry(step, valid_loss=2.0) for step in range(1, 100)]))
    page = Page(page_path)
    assert not re.search(r"https?://|//\w|@import|url\((?!#)", page_path.read_text())
    assert "default-src 'none'" in page_path.read_text()
    assert page.loads
    assert all(load.startswith("#") for load in page.loads)
    assert {load[1:] for load in page.loads} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_curves_take_the_colours_of_the_page(tmp_path: Path) -> None:
    """A curve or a letter in a colour of its own could not be seen in one of light and dark."""
    text = write_report(make_run(tmp_path, [entry(step, valid_loss=2.0) for step in (1, 2, 3)])).read_text()
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        assert "var(--ink)" in svg
        assert not re.search(r"#[0-9a-f]{6}\b", svg)


@pytest.mark.parametrize("entries", [None, [], [entry(10)], [entry(10, valid_loss=2.0)], [{"step": 1}]])
def test_a_run_that_has_just_begun(tmp_path: Path, entries: list[dict[str, Any]] | None) -> None:
    page = Page(write_report(make_run(tmp_path, entries)))
    assert page.tags.count("svg") == 5
    assert ("Nothing measured yet" in page.text) == (not entries)
    assert "nan" not in page.text.lower().replace("finance", "")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e6, 10**400, "text", 0.0, -1.0])
def test_numbers_that_are_none(tmp_path: Path, bad: Any) -> None:
    broken = dict.fromkeys(set(entry(0)) - {"step"}, bad)
    page = Page(write_report(make_run(tmp_path, [entry(10, valid_loss=2.0), entry(20, **broken), entry(30)])))
    assert page.tags.count("svg") == 5
    is_number = isinstance(bad, float) and math.isfinite(bad)
    assert ("The training loss was not a number at step 20." in page.text) == (not is_number)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"run\.json: expected a run's settings"):
        write_report(tmp_path)
    for text, expected in (("{", "as JSON"), ("[]", "expected a JSON object, found list")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(TrainingError, match=expected):
            write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"model": null, "training": []}')
    assert write_report(tmp_path).exists()
