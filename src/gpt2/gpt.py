"""What a user holds: load a model, let it write, look at its parameters, train it, save it.

    model = load_model()                                  # the bundled one; or "124M", or a folder
    print(model.generate("Once upon a time")[0].text)
    save_model(model, "my-model", format="huggingface")

It puts the parts together and knows nothing of their insides: formats are `gpt2.checkpoints`, the network is
`gpt2.model`, asking is `gpt2.language_model`. A `Model` computes with parameters that can change, by the reference
engine; whoever only wants text, and fast, opens a model with `gpt2.language_model.open_model`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2 import checkpoints, exports, store
from gpt2.checkpoints.names import checked_values
from gpt2.codec import Codec, fitting_default
from gpt2.config import GPT2Config, TrainingConfig, shape_of
from gpt2.data.batches import Tokens, TrainingBatches
from gpt2.data.prepare import codec_hash, read_tokens
from gpt2.data.rows import ArrayTokens
from gpt2.data.shards import Prepared, is_prepared
from gpt2.engines.keras import KerasEngine
from gpt2.errors import CodecError, ConfigError, EvaluationError, TensorMismatchError, TrainingError
from gpt2.language_model import LanguageModel, Prompt
from gpt2.model import GPT2
from gpt2.monitors import Monitor, Watch, check_monitors
from gpt2.runs import Run
from gpt2.training import LogEntry, Progress, train
from gpt2.training.devices import is_chief
from gpt2.training.schedule import peak_learning_rate
from gpt2.training.step import Stepper, new_stepper

__all__ = [
    "LanguageModel",
    "Model",
    "Prompt",
    "load_model",
    "new_model",
    "resume_training",
    "save_model",
    "train_model",
]


class Model(LanguageModel):
    """A language model whose network is at hand: it can be looked into, changed, trained and saved.

    Made by `load_model`, `new_model` or `train_model`. It is run by the reference engine, which computes with the
    network's own parameters.
    """

    def __init__(self, network: GPT2, codec: Codec | None, *, name: str) -> None:
        super().__init__(KerasEngine(network), codec, name=name)
        self.network = network

    def parameters(self) -> dict[str, np.ndarray]:
        """Every parameter under its canonical name (`wte`, `h0/attn/c_attn/w`), as float32 copies."""
        return dict(self.network.arrays())

    def set_parameters(self, values: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]) -> None:
        """Replace some parameters or all of them.

        Args:
            values: canonical name -> array of the parameter's shape, or such pairs.

        Raises:
            TensorMismatchError: a name that the network does not have, a wrong shape, or a number that is not finite.
                Parameters before it, in the order given, have been replaced.
        """
        variables = self.network.tensors()
        pairs = values.items() if isinstance(values, Mapping) else values
        for name, array in checked_values(pairs, source="set_parameters"):
            if name not in variables:
                raise TensorMismatchError(f"{name}: no such parameter; names are like wte or h0/attn/c_attn/w")
            shape = tuple(variables[name].shape)
            if array.shape != shape:
                raise TensorMismatchError(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")
            variables[name].assign(array)


def load_model(name_or_path: str | os.PathLike[str] | None = None) -> Model:
    """Load a model.

    Args:
        name_or_path: None for the bundled model, the name of one in the store (`124M`; see `gpt2 models list`), or a
            folder or file in one of the formats of `gpt2.checkpoints`.

    Raises:
        ModelNameError: the store has no such model.
        CheckpointError: the folder cannot be read; nothing is ever left at random weights.
    """
    path = store.resolve(name_or_path)
    config, tensors = checkpoints.read(path)
    network = GPT2(config, initialize=False)
    network.set_tensors(tensors)
    return Model(
        network,
        checkpoints.codec_of(path, config.n_vocab),
        name=store.BUNDLED if name_or_path is None else str(name_or_path),
    )


def shape_and_codec(name_or_path: str | os.PathLike[str] | None = None) -> tuple[GPT2Config, Codec | None]:
    """The shape and the vocabulary of a model that `load_model` would load, without its weights."""
    path = store.resolve(name_or_path)
    config = checkpoints.describe(path, quick=True).config
    return config, checkpoints.codec_of(path, config.n_vocab)


def new_model(config: GPT2Config | str, *, seed: int = 0, codec: Codec | None = None, name: str = "new") -> Model:
    """A model with random weights, as GPT-2 begins its training.

    Args:
        config: a shape, or the name of a released size.
        seed: of the weights.
        codec: None takes GPT-2's own vocabulary where it fits.
        name: what it is called.
    """
    import keras

    config = shape_of(config) if isinstance(config, str) else config
    keras.utils.set_random_seed(seed)
    return Model(GPT2(config), codec or fitting_default(config.n_vocab), name=name)


def save_model(
    model: Model,
    path: str | os.PathLike[str],
    format: str = "native",
    *,
    dtype: str = "float32",
    check: bool | None = None,
    on_report: Callable[[exports.Report], None] | None = None,
) -> Path:
    """Save a model, atomically: killed at any moment it leaves the old one or the new one.

    Args:
        model: what to save.
        path: the folder, or for gguf a file whose name ends in `.gguf`; a model of the same kind that is already there
            is replaced, anything else is refused.
        format: `native`, `huggingface` or `openai`, which can be loaded again; or to be run elsewhere `savedmodel`,
            `gguf`, `onnx` or `litert` (see `gpt2.exports`).
        dtype: how the matrices are stored: `float32`, or what else `gpt2.exports.PRECISIONS` has for the format, such
            as `float16` (native, huggingface, gguf, onnx), `int8` (onnx, litert) or `q8_0` (gguf).
        check: compare what the format's own runtime computes before anything is replaced, which takes some seconds.
            None does so for every format but native, where its runtime is installed; True demands it, False does not.
        on_report: told what was written, and how far the runtime's logits are from the model's.

    Returns:
        The folder or file.

    Raises:
        ConfigError: no such format or dtype, or a library is not installed.
        CheckpointError: it cannot be written, or what was written computes something else; what was there before is
            untouched.
    """
    target = Path(path)
    source = exports.Source(
        model.config, model.codec, model.network.arrays, lambda: model.engine, network=model.network
    )
    unasked = check is None and format == "native"  # what we write for ourselves, often
    report = exports.export(target, source, format, dtype, check=False if unasked else check)
    if on_report is not None:
        on_report(dataclasses.replace(report, not_checked="nobody asked for it") if unasked else report)
    return target


Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | np.ndarray | Tokens
"""Text to train on: a folder made by `gpt2 prepare`, files or folders of any kind that it reads (all of them is trained
on), or tokens (N,), in memory or as something with `gather`, `digest` and a length."""


def train_model(
    data: Data,
    *,
    model: Model | str | None = None,
    config: GPT2Config | str | None = None,
    valid_data: Data | None = None,
    training: TrainingConfig | None = None,
    run: str | os.PathLike[str] | None = None,
    monitors: Sequence[Monitor] = (),
    on_log: Callable[[LogEntry], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    note: Callable[[str], None] | None = None,
    stop_asked: Callable[[], bool] | None = None,
    strategy: Any = None,
) -> Model:
    """Train a model from scratch, or fine-tune one; the model that is given stays as it is.

    Args:
        data: text or tokens, see `Data`.
        model: what to fine-tune: a model, or a name or path for `load_model`.
        config: instead of `model`, the shape of a new network, or the name of a released size.
        valid_data: held-out text, as `data`; None takes that of a prepared folder, if there is any.
        training: how; None takes the defaults.
        run: a new folder for settings, numbers, checkpoints and a report (see `gpt2.runs`), from which
            `resume_training` can go on; None keeps nothing.
        monitors: evaluations that are made before the first step and at each checkpoint of the run.
        on_log: called with each `LogEntry`.
        on_step: called with each step's number.
        note: told what a person should know, such as a checkpoint that was saved.
        stop_asked: asked after each step; if so, a checkpoint is saved, and the training ends with a `CancelledError`.
        strategy: of `tf.distribute`, for several devices or machines; each has to call this with the same arguments.

    Returns:
        The trained model, with the weights of the last step. Training in bfloat16 keeps float32 weights, so it is a
        float32 model in any case.

    Raises:
        ConfigError: both or neither of `model` and `config`, or `monitors` without a run.
        EvaluationError: the data of a monitor is not there, or the model has no vocabulary to read it with.
        TrainingError: the text cannot be used, the loss is no longer a number, or `run` holds something.
    """
    if (model is None) == (config is None):
        raise ConfigError("train_model: expected one of model (to fine-tune) and config (to begin anew)")
    if monitors and run is None:
        raise ConfigError("monitors: expected a run beside them, in which the results are kept; got none")
    check_monitors(monitors)
    training = training or TrainingConfig()
    if model is None:
        assert config is not None
        base = new_model(config, seed=training.seed, name="trained")
    else:
        base = load_model(model) if isinstance(model, (str, os.PathLike)) else model
    if monitors and base.codec is None:
        raise EvaluationError("monitors: expected a model with a vocabulary, since test sets are text; it has none")
    name = base.name if model is None else f"{base.name}-tuned"
    tokens, valid_tokens = read_data(data, valid_data, base.codec)
    T = training.sequence_length or base.config.n_ctx
    if valid_data is None and valid_tokens is not None and len(valid_tokens) <= T:
        (note or _ignore)(f"the {len(valid_tokens):,} tokens held out do not fill a sequence of {T}; not measured on")
        valid_tokens = None
    base_name = None if model is None else base.name
    told = (on_log, on_step, note, stop_asked)
    work = _Training(base, base_name, name, training, tokens, valid_tokens, monitors, *told, strategy)
    del base, model  # unless the caller keeps it, its memory is needed
    if run is None:
        return work.go(None)
    return work.begin(Path(run))


def resume_training(
    run: str | os.PathLike[str],
    *,
    data: Data | None = None,
    valid_data: Data | None = None,
    on_log: Callable[[LogEntry], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    note: Callable[[str], None] | None = None,
    stop_asked: Callable[[], bool] | None = None,
    strategy: Any = None,
) -> Model:
    """Go on with a run that was stopped, from its newest whole checkpoint, to the end that it was given.

    What comes out is the same to the last bit as if it had not been stopped (on the same machine and versions).

    Args:
        run: its folder.
        data: None for the files that it was begun with; they must hold the same tokens.
        valid_data: as `data`.
        on_log: called with each new `LogEntry`.
        on_step: called with each step's number.
        note: told what a person should know, such as a damaged checkpoint that is skipped.
        stop_asked: as for `train_model`.
        strategy: as for `train_model`; the number of devices must be the same.

    Raises:
        TrainingError: it is no run, its data have changed, or none of its checkpoints is whole.
    """
    opened = Run.open(Path(run), note or _ignore)
    facts = opened.facts
    training = TrainingConfig.from_dict(facts["training"])
    base = load_model(Path(run) / "base")
    rows = []
    for given, key, name in ((data, "train", "data"), (valid_data, "valid", "valid_data")):
        files = facts["data"][f"{key}_files"]
        row = given if given is not None else files and [os.path.join(run, file) for file in files]
        digest = facts["data"][f"{key}_sha256"]
        if row is None and digest is not None:
            raise TrainingError(f"{name}: expected the tokens that the run was begun with, since they were in no files")
        tokens = None
        if row is not None:
            train, valid = read_data(row, None, base.codec)
            tokens = valid if key == "valid" and valid is not None else train
        if tokens is not None and tokens.digest != digest:
            raise TrainingError(f"{name}: expected the text that the run was begun with, got other tokens")
        rows.append(tokens)
    assert rows[0] is not None
    monitors = [Monitor(**values) for values in facts.get("monitors", ())]
    settings = (base, facts["base"], facts["name"], training, rows[0], rows[1], monitors)
    work = _Training(*settings, on_log, on_step, note, stop_asked, strategy)
    del base, settings
    return work.go(opened)


class _Training:
    """The parts of one call of `train_model` or `resume_training`."""

    def __init__(
        self,
        base: Model,
        base_name: str | None,
        name: str,
        config: TrainingConfig,
        tokens: Tokens,
        valid_tokens: Tokens | None,
        monitors: Sequence[Monitor],
        on_log: Callable[[LogEntry], None] | None,
        on_step: Callable[[int], None] | None,
        note: Callable[[str], None] | None,
        stop_asked: Callable[[], bool] | None,
        strategy: Any,
    ) -> None:
        self.base_name, self.name, self.config = base_name, name, config
        self.tokens, self.valid_tokens, self.strategy = tokens, valid_tokens, strategy
        self.on_log, self.on_step, self.note = on_log, on_step, note or _ignore
        self.stop_asked, self.monitors = stop_asked, monitors
        self.shape, self.codec = base.config, base.codec
        self.source: GPT2 | None = base.network
        """What training begins from, until it has been copied."""

    def begin(self, folder: Path) -> Model:
        """Make the run's folder, then train."""
        data: dict[str, Any] = {}
        for key, tokens in (("train", self.tokens), ("valid", self.valid_tokens)):
            files = [_within(path, folder) for path in tokens.paths] if isinstance(tokens, FileTokens) else None
            data[f"{key}_tokens"] = 0 if tokens is None else len(tokens)
            data[f"{key}_files"] = files
            data[f"{key}_sha256"] = None if tokens is None else tokens.digest
        stepper = self._stepper()
        facts = {
            "name": self.name,
            "base": self.base_name,
            "model": self.shape.to_dict(),
            "parameters": self.shape.num_parameters,
            "trainable_parameters": stepper.num_trainable,
            "data": data,
            "training": self.config.to_dict(),
            "monitors": [dataclasses.asdict(monitor) for monitor in self.monitors],
        }
        if is_chief(self.strategy):
            run = Run.create(folder, facts, self.note, self._save_base)
        else:
            run = Run(folder, facts, _ignore)
        self.source = None
        return self._train(stepper, run, Progress())

    def go(self, run: Run | None) -> Model:
        """Train from the beginning, or from where a run is."""
        stepper = self._stepper()
        self.source = None
        return self._train(stepper, run, Progress() if run is None else run.restore(stepper))

    def _save_base(self, folder: Path) -> None:
        assert self.source is not None
        checkpoints.write(folder, self.shape, self.source.arrays(), format="native", codec=self.codec, dtype="float32")

    def _stepper(self) -> Stepper:
        assert self.source is not None
        end = None if self.codec is None else self.codec.end_of_text
        return new_stepper(self.source, self.config, end_of_text=end, strategy=self.strategy)

    def _train(self, stepper: Stepper, run: Run | None, progress: Progress) -> Model:
        writes = run is not None and is_chief(self.strategy)
        result = GPT2(self.shape, initialize=False)
        trained = Model(result, self.codec, name=self.name)

        def update_result() -> None:
            result.set_tensors(stepper.parameters())

        def on_log(entry: LogEntry) -> None:
            if run is not None and writes:
                run.log(entry)
                if self.config.sample_prompts and self.codec is not None:
                    update_result()
                    for prompt in self.config.sample_prompts:
                        length, seed = self.config.sample_tokens, self.config.seed
                        sample = trained.generate(prompt, max_tokens=length, top_k=40, seed=seed)[0]
                        run.sample(entry.step, prompt, sample.text)
            if self.on_log is not None:
                self.on_log(entry)

        def on_save(progress: Progress) -> None:
            assert run is not None
            run.save(stepper, progress, self.codec)
            if self.stop_asked is None or not self.stop_asked():  # else it is made when the run goes on
                look(progress.step)

        def look(step: int) -> None:
            if watch is not None and watch.is_due(step):
                update_result()
                watch.look(step)

        with run.locked() if run is not None and writes else contextlib.nullcontext():
            watch = None
            if run is not None and writes:
                run.forget_after(progress.step)
                watch = Watch(run, self.monitors, trained, self.note)
            try:
                look(progress.step)
                train(
                    stepper,
                    self.tokens,
                    peak=peak_learning_rate(self.config, fine_tuning=self.base_name is not None),
                    valid_tokens=self.valid_tokens,
                    progress=progress,
                    on_log=on_log,
                    on_step=self.on_step,
                    on_save=on_save if writes else None,
                    stop_asked=self.stop_asked,
                )
            finally:
                if run is not None and writes:
                    run.close()
        update_result()
        return trained


def _within(path: str, folder: Path) -> str:
    """A path relative to a run's folder if it is in it, so that the run can be moved; else the path as it is."""
    inside = Path(path).is_relative_to(Path(os.path.abspath(folder)))
    return os.path.relpath(path, os.path.abspath(folder)) if inside else path


def _ignore(_: str) -> None:
    """What to do with a note that nobody asked for."""


def steps_of(epochs: float, data: Tokens, training: TrainingConfig, config: GPT2Config) -> int:
    """How many steps go that many times through the text, rounded up."""
    T = training.sequence_length or config.n_ctx
    batches = TrainingBatches(data, training.batch_size, T, training.seed).epoch_length
    return max(1, math.ceil(epochs * batches / training.accumulation_steps))


@dataclass(frozen=True)
class FileTokens:
    """Tokens that were read from files, and which files, so that a run can find them again."""

    tokens: Tokens
    paths: tuple[str, ...]
    """Absolute."""

    @property
    def digest(self) -> str:
        """A hash of the tokens."""
        return self.tokens.digest

    def __len__(self) -> int:
        return len(self.tokens)

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The windows (B, length) int32 that begin at `starts` (B,)."""
        return self.tokens.gather(starts, length)


def read_data(
    data: Data, valid_data: Data | None, codec: Codec | None, config: GPT2Config | None = None
) -> tuple[Tokens, Tokens | None]:
    """The tokens to train on and those to look at, or None, from whatever stands for them.

    Args:
        data: text or tokens.
        valid_data: the same, or None for the held-out part of `data`, where that is a prepared folder.
        codec: the model's vocabulary; None takes GPT-2's own where `config` is given and it fits.
        config: the shape of a new model.

    Raises:
        TrainingError: it cannot be read.
        CodecError: text, but no vocabulary.
    """
    if codec is None and config is not None:
        codec = fitting_default(config.n_vocab)
    if isinstance(data, (list, tuple)) and len(data) == 1:
        data = data[0]
    if isinstance(data, (str, os.PathLike)) and is_prepared(data):
        prepared = Prepared(Path(data))
        if codec is not None and prepared.manifest["codec"]["sha256"] != codec_hash(codec):
            raise TrainingError(f"{data}: expected tokens of this model's vocabulary, got those of another")
        path = (os.path.abspath(data),)
        held_out = None if prepared.valid is None else FileTokens(prepared.valid, path)
        return FileTokens(prepared.train, path), held_out if valid_data is None else _tokens(valid_data, codec)
    return _tokens(data, codec), None if valid_data is None else _tokens(valid_data, codec)


def _tokens(data: Any, codec: Codec | None) -> Tokens:
    if isinstance(data, np.ndarray):
        return ArrayTokens(data)
    if hasattr(data, "gather"):
        tokens: Tokens = data
        return tokens
    if codec is None:
        raise CodecError("training data: expected tokens, since this model has no vocabulary; got text files")
    paths = [Path(path) for path in ([data] if isinstance(data, (str, os.PathLike)) else data)]
    if len(paths) == 1 and is_prepared(paths[0]):
        return FileTokens(Prepared(paths[0]).train, (os.path.abspath(paths[0]),))
    row = ArrayTokens(read_tokens(paths, codec))
    return FileTokens(row, tuple(os.path.abspath(path) for path in paths))
