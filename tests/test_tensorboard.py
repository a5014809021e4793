"""What is written for TensorBoard, as TensorBoard's own reader sees it."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from gpt2.errors import TrainingError
from gpt2.tensorboard import SCALARS, TensorBoardLog

ENTRY: dict[str, Any] = {
    "step": 10,
    "tokens": 1000,
    "loss": 3.5,
    "valid_loss": 3.0,
    "learning_rate": 0.25,
    "gradient_norm": 0.5,
    "tokens_per_second": 1000.0,
    "ceiling_share": 0.4,
    "seconds": 1.0,
    "seconds_left": 2.0,
}


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, tag: str) -> dict[int, float]:
    """Scalars come back as tensors: the reader rewrites them on the way."""
    """Scalars come back as tensors: the reader rewrites them on the way."""
    values: dict[int, float] = {}
    for event in read(folder).Tensors(tag):
        assert event.step not in values
        values[event.step] = event.tensor_proto.float_val[0]
    return values


def test_scalars_are_read_back(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path / "a" / "b") as log:
        log.metrics(ENTRY)
        log.metrics({**ENTRY, "step": 20, "loss": 2.5, "valid_loss": None})
    assert set(read(tmp_path / "a" / "b").Tags()["tensors"]) == set(SCALARS)
    assert scalars(tmp_path / "a" / "b", "loss") == {10: 3.5, 20: 2.5}
    assert scalars(tmp_path / "a" / "b", "valid_loss") == {10: 3.0}
    assert scalars(tmp_path / "a" / "b", "perplexity") == {10: pytest.approx(math.exp(3.0))}
    assert scalars(tmp_path / "a" / "b", "learning_rate") == {10: 0.25, 20: 0.25}


def test_what_is_written_can_be_read_at_once(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log.metrics(ENTRY)
    assert scalars(tmp_path, "loss") == {10: 3.5}
    log.close()
    log.close()


def test_samples_are_text_and_no_markdown(tmp_path: Path) -> None:
    with TensorBoardLog(tmp_path) as log:
        log.sample(10, "Once / upon\na time", "# <script>\n\nx\x0cy \ud83d é")
        log.sample(20, "", "")
    accumulator = read(tmp_path)
    (event,) = accumulator.Tensors("samples/Once upon a time")
    assert event.step == 10
    assert event.tensor_proto.string_val[0].decode() == "    # <script>\n    \n    x\x0cy ? é"
    assert set(accumulator.PluginTagToContent("text")) == {"samples/Once upon a time", "samples/no prompt"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_numbers_that_are_none(tmp_path: Path, bad: float) -> None:
    with TensorBoardLog(tmp_path) as log:
        log.metrics({**dict.fromkeys(ENTRY, bad), "step": 1})
    (value,) = scalars(tmp_path, "loss").values()
    assert value == pytest.approx(bad if abs(bad) != 1e300 else math.inf, nan_ok=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be written"):
        TensorBoardLog(tmp_path / "file" / "folder")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", lambda self, mode: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    with pytest.raises(TrainingError, match="No space left"):
        TensorBoardLog(tmp_path)


def test_it_needs_no_tensorflow(tmp_path: Path) -> None:
    code = f"""if True:
        import sys
        from pathlib import Path
        from gpt2.tensorboard import TensorBoardLog
        with TensorBoardLog(Path({str(tmp_path)!r})) as log:
            log.metrics({{"step": 1, "loss": 2.0}})
            log.sample(1, "a", "b")
        assert not {{"tensorflow", "keras"}} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "src"})
    assert scalars(tmp_path, "loss") == {1: 2.0}
