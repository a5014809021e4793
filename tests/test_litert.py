"""The fast engine against the reference: over random prompts, chunks, batches, joins and leaves, and window slides."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2 import checkpoints, store
from gpt2.checkpoints.names import expected_shapes
from gpt2.config import GPT2Config
from gpt2.engines import registry
from gpt2.engines.keras import KerasEngine
from gpt2.engines.litert import LiteRTEngine
from gpt2.engines.litert_build import PRECISIONS, build, read_settings
from gpt2.engines.paged import BLOCK, Pool, Row
from gpt2.engines.quantization import Scheme, unpack
from gpt2.errors import (
    CacheFullError,
    CheckpointError,
    CheckpointFormatError,
    ConfigError,
    ContextLengthError,
    PromptError,
    TensorMismatchError,
)
from gpt2.gpt import Model, load_model, new_model, save_model
from gpt2.language_model import open_model
from gpt2.model import GPT2

CONFIG = GPT2Config(n_vocab=101, n_ctx=96, n_embd=64, n_head=4, n_layer=3)


def network_of(config: GPT2Config) -> GPT2:
    """Weights larger than at the start of training, so that errors show."""
    rng = np.random.default_rng(7)
    network = GPT2(config, initialize=False)
    for name, shape in expected_shapes(config).items():
        spread = 0.5 if len(shape) == 1 else 0.2
        network.tensors()[name].assign(rng.standard_normal(shape) * spread + (1 if name.endswith("/g") else 0))
    return network


@pytest.fixture(scope="module")
def network() -> GPT2:
    return network_of(CONFIG)


@pytest.fixture(scope="module")
def engines(network: GPT2, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LiteRTEngine]:
    folder = tmp_path_factory.mktemp("built")
    for precision in PRECISIONS:
        build(folder / precision, CONFIG, network.arrays(), precision)
    return {precision: LiteRTEngine(folder / precision, threads=2) for precision in PRECISIONS}


def ids(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG.n_vocab, shape)


def as_computed(network: GPT2, precision: str) -> GPT2:
    """The network with the weights that an engine of a precision computes with."""
    config = network.config
    layers, embedding = PRECISIONS[precision]
    rounded = GPT2(config, initialize=False)
    for name, exact in network.arrays():
        array = exact
        if name == "wte":
            scheme = embedding.fitting(config.n_embd)
            array = unpack(scheme, scheme.pack(exact))
        elif name.endswith("/w"):
            scheme = layers.fitting(len(exact))
            array = unpack(scheme, scheme.pack(exact.T)).T
        rounded.tensors()[name].assign(array)
    return rounded


# Numbers


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        GPT2Config(n_vocab=50, n_ctx=40, n_embd=6, n_head=3, n_layer=1),  # heads of 2, int4 falls back to int8
        GPT2Config(n_vocab=70, n_ctx=200, n_embd=160, n_head=2, n_layer=2),  # heads of 80, longer than a chunk of LANES
    ],
)
def test_float32_equals_the_reference(config: GPT2Config, tmp_path: Path) -> None:
    network = network_of(config)
    build(tmp_path / "built", config, network.arrays(), "float32")
    tokens = np.random.default_rng(0).integers(0, config.n_vocab, (2, config.n_ctx))
    wanted = KerasEngine(network).logits(tokens)
    found = LiteRTEngine(tmp_path / "built").logits(tokens)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * wanted.std())


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.05), ("int4", 0.05)])
def test_fewer_bits_equal_the_reference_with_the_same_weights(
    network: GPT2, engines: dict[str, LiteRTEngine], precision: str, error: float
) -> None:
    """What is left is the rounding of activations to 8 bits and of the cache to float16."""
    tokens = ids(0, 2, 96)
    wanted = KerasEngine(as_computed(network, precision)).logits(tokens)
    found = engines[precision].logits(tokens)
    assert np.sqrt(np.mean((found - wanted) ** 2)) < error * wanted.std()
    exact = KerasEngine(network).logits(tokens)
    assert np.abs(found - exact).max() > 1e-3  # it does have fewer bits


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 96), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_cuts_and_neighbours_change_no_bit(
    engines: dict[str, LiteRTEngine], precision: str, lengths: list[int], seed: int
) -> None:
    """Rows of any length, cut into calls in any way, joined and left in any order: the bits of each row alone."""
    engine = engines[precision]
    rng = np.random.default_rng(seed)
    rows = [ids(n + 10 * length, length).tolist() for n, length in enumerate(lengths)]
    wanted = [engine.feed(engine.new_cache(1), [row], all_positions=True)[0] for row in rows]
    cache = engine.new_cache(len(rows))
    numbers = list(range(len(rows)))  # the row of each place of the cache
    done = [0] * len(rows)
    while numbers:
        most = rng.choice([2, 10, 60])  # single tokens of several rows, some tokens, many
        counts = [rng.integers(0, min(most, lengths[number] - done[number] + 1)) for number in numbers]
        fed = [rows[number][done[number] : done[number] + count] for number, count in zip(numbers, counts, strict=True)]
        given_logits = engine.feed(cache, fed, all_positions=True)
        for number, count, logits in zip(numbers, counts, given_logits, strict=True):
            np.testing.assert_array_equal(logits, wanted[number][done[number] : done[number] + count])
            done[number] += count
        stay = [place for place, number in enumerate(numbers) if done[number] < lengths[number]]
        cache, numbers = cache.select(stay), [numbers[place] for place in stay]


def test_the_last_position_is_the_same_bits_with_and_without_the_others(engines: dict[str, LiteRTEngine]) -> None:
    engine = engines["int8"]
    tokens = ids(1, 50).tolist()
    every = engine.feed(engine.new_cache(1), [tokens], all_positions=True)[0]
    assert every.shape == (50, CONFIG.n_vocab)
    np.testing.assert_array_equal(engine.feed(engine.new_cache(1), [tokens])[0], every[-1:])


def test_more_threads_change_no_bit(engines: dict[str, LiteRTEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.engines.attention._SHARED_FROM", 0)
    wanted = engines["float32"].logits(ids(2, 1, 96))
    for threads in (1, 3, 9):  # 9 is more than there are heads
        found = LiteRTEngine(engines["float32"].folder, threads=threads).logits(ids(2, 1, 96))
        np.testing.assert_array_equal(found, wanted)


def test_text_equals_the_references_also_where_the_window_slides(
    network: GPT2, engines: dict[str, LiteRTEngine]
) -> None:
    from gpt2.config import GenerationConfig
    from gpt2.generation import generate

    config = GenerationConfig.from_options(max_tokens=150, num_samples=3, seed=4)
    prompts = [ids(3, 60).tolist(), ids(4, 5).tolist()]
    wanted = [c.tokens for c in generate(KerasEngine(network), None, prompts, config)]
    assert [c.tokens for c in generate(engines["float32"], None, prompts, config)] == wanted


# The cache


def test_copies_share_until_they_differ(engines: dict[str, LiteRTEngine]) -> None:
    engine = engines["float32"]
    first = engine.new_cache(1)
    engine.feed(first, [ids(5, 40).tolist()])
    before = engine.pool.available
    copies = first.select([0, 0, 0])
    assert engine.pool.available == before
    logits = engine.feed(copies, [[1], [2], [1]])
    assert engine.pool.available == before - 3  # each has its own last block now, none the first
    np.testing.assert_array_equal(logits[0], logits[2])
    assert np.abs(logits[0] - logits[1]).max() > 0
    np.testing.assert_array_equal(engine.feed(first, [[1]])[0], logits[0])


def test_what_was_computed_once_is_taken_over(
    engines: dict[str, LiteRTEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engines["float32"]
    fed = []
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda work: fed.append([len(part.tokens) for part in work]) or run(work))
    start = ids(6, 2 * BLOCK + 5).tolist()
    wanted = engine.feed(engine.new_cache(1), [[*start, 7]])[0]
    again = engine.feed(engine.new_cache(1), [[*start, 7]])[0]
    assert fed == [[2 * BLOCK + 6], [6]]
    np.testing.assert_array_equal(again, wanted)
    other = [start[0] ^ 1, *start[1:]]
    engine.feed(engine.new_cache(1), [other])
    assert fed[-1] == [len(other)]  # the same tokens behind another beginning are not the same


def test_what_is_not_kept_makes_room_at_once(engines: dict[str, LiteRTEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LiteRTEngine(engines["float32"].folder)

    def used() -> int:
        return int(engine.pool.keys.any(axis=(0, 2, 3, 4)).sum())

    for n in range(4):
        engine.feed(engine.new_cache(2, keep=False).select([0, 1]), ids(n, 2, 2 * BLOCK + 5).tolist())
    assert used() == 6  # the same ones every time
    fed = []
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda work: fed.append([len(part.tokens) for part in work]) or run(work))
    tokens = ids(9, 2 * BLOCK + 5).tolist()
    wanted = [engine.feed(engine.new_cache(1, keep=keep), [tokens])[0] for keep in (False, True, False)]
    assert fed == [[len(tokens)], [len(tokens)], [5]]  # not found behind the first; found, where another one kept it
    np.testing.assert_array_equal(wanted[0], wanted[1])
    np.testing.assert_array_equal(wanted[0], wanted[2])


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_scan_shows_the_bits_that_feed_gives(engines: dict[str, LiteRTEngine], precision: str) -> None:
    """Whatever is left out of the last layer and the head, and however rows, chunks and groups of positions fall."""
    engine = LiteRTEngine(engines[precision].folder)
    rows = [ids(n, length).tolist() for n, length in enumerate((90, 1, 70, 96, 33, 95, 96, 80, 90, 96, 90))]
    rng = np.random.default_rng(3)
    wanted = [
        np.flatnonzero(rng.random(len(row)) < share) for row, share in zip(rows, [1, 1, 0, *[0.4] * 8], strict=True)
    ]
    shown: list[list[tuple[int, np.ndarray]]] = [[] for _ in rows]

    def take(row: np.ndarray, number: np.ndarray, logits: np.ndarray) -> None:
        assert len(row) == len(number) == len(logits) <= 64
        for r, n, values in zip(row, number, logits, strict=True):
            shown[r].append((n, values.copy()))

    cache = engine.new_cache(len(rows))
    engine.scan(cache, rows, wanted, take)
    assert cache.lengths.tolist() == [len(row) for row in rows]
    for row, places, found in zip(rows, wanted, shown, strict=True):
        assert [n for n, _ in found] == places.tolist()
        every = engine.feed(engine.new_cache(1), [row], all_positions=True)[0]
        for n, values in found:
            np.testing.assert_array_equal(values, every[n])
    again: list[int] = []
    engine.scan(engine.new_cache(1), [rows[3]], [np.array([80, 95])], lambda row, number, _: again.extend(number))
    assert again == [80, 95]  # counted from the row's beginning, which was taken over and not computed again


def test_a_block_that_is_written_anew_is_not_taken_for_what_it_was(engines: dict[str, LiteRTEngine]) -> None:
    """A full block had its name, was cut back into by a rejected draft, and was then found under the old name."""
    engine = LiteRTEngine(engines["float32"].folder)
    tokens = ids(8, BLOCK + 1).tolist()
    wanted = engine.feed(engine.new_cache(1), [tokens], all_positions=True)[0][-1:]
    cache = engine.new_cache(1)
    engine.feed(cache, [tokens])
    cache.truncate(0, BLOCK - 3)
    engine.feed(cache, [[1, 2, 3, 4]])
    np.testing.assert_array_equal(engine.feed(engine.new_cache(1), [tokens])[0], wanted)


def test_pool_is_bounded_and_refuses_cleanly(engines: dict[str, LiteRTEngine]) -> None:
    engine = LiteRTEngine(engines["int8"].folder, cache_bytes=1)  # as much as one full row
    total = engine.pool.available
    assert total == -(-CONFIG.n_ctx // BLOCK)
    cache = engine.new_cache(2)
    tokens = ids(7, 2, 64).tolist()
    wanted = engine.feed(cache, [tokens[0], []])[0]
    with pytest.raises(CacheFullError, match=f"all of its {total} blocks"):
        engine.feed(cache, [[], tokens[1]])
    assert cache.lengths.tolist() == [64, 0]
    cache.truncate(0, 0)
    assert engine.pool.available == total
    engine.feed(cache, [[], tokens[1]])  # evicts what was kept of the first
    cache.truncate(1, 0)
    np.testing.assert_array_equal(engine.feed(cache, [tokens[0], []])[0], wanted)
    del cache
    assert engine.pool.available == total


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=40))
def test_pool_keeps_count(moves: list[tuple[int, int]]) -> None:
    """Whatever is done with rows: no block is lost, and none has two owners that write."""
    pool = Pool(GPT2Config(n_vocab=5, n_ctx=64, n_embd=4, n_head=1, n_layer=1), 12, np.float32)
    rows: list[Row] = []
    for kind, number in moves:
        if kind == 0:
            rows.append(Row(pool, keep=number % 2 == 0))
        elif rows and kind == 1:
            row = rows[number % len(rows)]
            tokens = [number % 5] * number
            known = row.adopt(tokens) if not row.tokens else 0
            try:
                row.reserve(len(tokens) - known)
                row.append(tokens[known:])
            except CacheFullError:
                row.truncate(len(row.tokens))
        elif rows and kind == 2:
            rows.append(rows[number % len(rows)].copy())
        elif rows:
            row = rows[number % len(rows)]
            row.truncate(min(number, len(row.tokens)))
        used = {block for row in rows for block in row.blocks}
        assert pool.available == 12 - len(used)
        for row in rows:
            assert len(row.blocks) == -(-len(row.tokens) // BLOCK)
            assert len(row.names) == len(row.tokens) // BLOCK or not row.keep
    for row in rows:
        row.truncate(0)
    assert pool.available == 12


def test_what_cannot_be_fed(engines: dict[str, LiteRTEngine]) -> None:
    engine = engines["float32"]
    cache = engine.new_cache(1)
    with pytest.raises(PromptError, match="expected 1 rows as in the cache, got 2"):
        engine.feed(cache, [[1], [2]])
    with pytest.raises(PromptError, match="expected ids from 0 to 100, got 101"):
        engine.feed(cache, [[101]])
    with pytest.raises(ContextLengthError, match="n_ctx = 96"):
        engine.feed(cache, [[1] * 97])
    assert [part.shape for part in engine.feed(cache, [[]])] == [(0, CONFIG.n_vocab)]


# Weights in fewer bits


@pytest.mark.parametrize("scheme", [Scheme("int8"), Scheme("int4", 32)])
def test_rounding_is_to_the_nearest(scheme: Scheme) -> None:
    weights = np.random.default_rng(0).standard_normal((40, 96)).astype(np.float32)
    weights[3] = 0
    packed = scheme.pack(weights)
    assert [(array.dtype.type, array.shape) for array in packed] == scheme.layout(40, 96)
    back = unpack(scheme, packed)
    assert not back[3].any()
    peaks = np.abs(weights).max(axis=1, keepdims=True) / 127
    if scheme.type == "int8":
        assert (np.abs(back - weights) <= 0.5 * peaks + 1e-6).all()
    else:
        plain = np.abs(weights.reshape(40, 3, 32)).max(axis=-1, keepdims=True) / 7
        simple = (np.rint(weights.reshape(40, 3, 32) / np.where(plain, plain, 1)) * plain).reshape(40, 96)
        assert ((back - weights) ** 2).mean() < ((simple - weights) ** 2).mean()
    assert Scheme("int4", 32).fitting(48) == Scheme("int8")


# Building and opening


@pytest.fixture
def saved(network: GPT2, tmp_path: Path) -> Path:
    return save_model(Model(network, None, name="tiny"), tmp_path / "tiny")


def test_built_once_and_again_when_the_model_changes(saved: Path, network: GPT2) -> None:
    notes: list[str] = []
    engine = registry.open_engine(saved, precision="int8", note=notes.append)
    assert notes[0].startswith("built for litert, int8, in ")
    assert notes[1] == f"engine: litert, int8, {engine.threads} threads"  # type: ignore[attr-defined]
    notes.clear()
    registry.open_engine(saved, precision="int8", note=notes.append)
    assert len(notes) == 1
    before = engine.logits(ids(0, 1, 5))
    network.tensors()["wpe"].assign(network.tensors()["wpe"] * 2)
    try:
        save_model(Model(network, None, name="tiny"), saved)
    finally:
        network.tensors()["wpe"].assign(network.tensors()["wpe"] / 2)
    notes.clear()
    after = registry.open_engine(saved, precision="int8", note=notes.append).logits(ids(0, 1, 5))
    assert len(notes) == 2
    assert np.abs(after - before).max() > 0.01
    assert [entry.name for entry in store.builds_folder().iterdir() if entry.is_dir()] == [
        store.build_folder(saved, "int8").name
    ]


def test_damaged_builds_are_built_again(saved: Path) -> None:
    registry.open_engine(saved, precision="int8")
    weights = store.build_folder(saved, "int8") / "model.tflite"
    os.truncate(weights, weights.stat().st_size - 100)
    with pytest.raises(CheckpointFormatError, match="bytes of weights, got"):
        read_settings(weights.parent)
    notes: list[str] = []
    registry.open_engine(saved, precision="int8", note=notes.append)
    assert notes[0].startswith("built")


def test_few_builds_stay(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MAX_BUILDS", 2)
    for precision in ("float32", "int8", "int4"):
        registry.open_engine(saved, precision=precision)
    assert not store.build_folder(saved, "float32").exists()
    assert store.build_folder(saved, "int4").exists()
    assert store.remove_builds(saved) == 2


def test_processes_build_once(saved: Path) -> None:
    """Three at the same time: one builds, two wait for it."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from gpt2.engines import registry
        registry.build_of(Path(sys.argv[1]), "int8", note=print)
    """)
    command = [sys.executable, "-c", program, str(saved)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(3)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(text.startswith("built") for text in said) == [False, False, True]


def test_what_cannot_be_opened(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="engine: expected auto or one of litert, keras, got 'torch'"):
        registry.open_engine(saved, "torch")
    with pytest.raises(ConfigError, match="precision: expected one of float32, int8, int4, got 'int2'"):
        registry.open_engine(saved, precision="int2")
    with pytest.raises(ConfigError, match="precision: expected float32 with the keras engine"):
        registry.open_engine(saved, "keras", "int8")
    build(tmp_path / "built", CONFIG, network_of(CONFIG).arrays(), "int8")
    with pytest.raises(ConfigError, match="expected litert for"):
        registry.open_engine(tmp_path / "built", "keras")
    with pytest.raises(CheckpointFormatError, match="can be asked for text, but not read"):
        load_model(tmp_path / "built")
    monkeypatch.setattr(registry, "_missing", lambda: "numba")
    notes: list[str] = []
    assert registry.open_engine(saved, note=notes.append).name == "keras"
    assert notes == ["engine: keras, float32 (litert needs numba)"]
    with pytest.raises(ConfigError, match="litert needs the package numba"):
        registry.open_engine(saved, precision="int8")


def test_where_nothing_can_be_written_the_reference_is_taken(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "file" / "home"))
    notes: list[str] = []
    assert registry.open_engine(saved, note=notes.append).name == "keras"
    assert "nothing can be built" in notes[0]
    with pytest.raises(CheckpointError, match="cannot be written"):
        registry.open_engine(saved, "litert")


def test_a_broken_model_is_no_reason_for_another_engine(saved: Path) -> None:
    os.truncate(saved / "model.safetensors", 5000)
    with pytest.raises(CheckpointError):
        registry.open_engine(saved)


def test_a_tensor_that_is_missing_is_found_while_building(tmp_path: Path, network: GPT2) -> None:
    tensors = [(name, array) for name, array in network.arrays() if name != "ln_f/b"]
    with pytest.raises(TensorMismatchError, match="missing ln_f/b"):
        build(tmp_path / "built", CONFIG, tensors, "int8")
    assert not (tmp_path / "built").exists()


def test_models_of_runs_and_folders(saved: Path) -> None:
    model = open_model(saved, precision="int8")
    assert model.engine.name == "litert"
    assert model.generate([1, 2, 3], max_tokens=4, seed=0)[0].tokens
    np.testing.assert_allclose(
        open_model(saved).logits(ids(0, 1, 9)), load_model(saved).logits(ids(0, 1, 9)), atol=1e-3
    )


# Without TensorFlow


def test_neither_building_nor_writing_imports_tensorflow(tmp_path: Path) -> None:
    model = new_model(GPT2Config(n_vocab=50257, n_ctx=16, n_embd=4, n_head=2, n_layer=1))
    save_model(model, tmp_path / "model")
    assert checkpoints.detect(tmp_path / "model") == "native"
    program = textwrap.dedent("""
        import sys
        from gpt2 import query_model
        query_model("Once", model=sys.argv[1], max_tokens=2)
        sys.exit(any(name in sys.modules for name in ("tensorflow", "keras", "jax", "torch")))
    """)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for _ in range(2):  # at first it is built
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "model")], env=env, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr == b""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["774M", "1558M"])
@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_large_sizes_build_in_little_memory_and_run(tmp_path: Path, size: str, precision: str) -> None:
    """Random weights as they come; the peak counts the interpreter and everything. Needs 7 GB of disk, 13 of memory."""
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        import numpy as np
        from gpt2.checkpoints.names import expected_shapes
        from gpt2.config import SIZES
        from gpt2.engines.litert import LiteRTEngine
        from gpt2.engines.litert_build import build
        config, precision, folder = SIZES[sys.argv[1]], sys.argv[2], Path(sys.argv[3])
        rng = np.random.default_rng(0)
        def tensors():
            for name, shape in expected_shapes(config).items():
                array = rng.standard_normal(shape, dtype=np.float32)
                array *= 0.02
                yield name, array
        build(folder, config, tensors(), precision)
        peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
        assert peak < 1.5 * 4 * config.num_parameters, peak
        engine = LiteRTEngine(folder)
        cache = engine.new_cache(1)
        whole = engine.feed(cache, [[1, 2, 3, 4]], all_positions=True)[0]
        assert np.isfinite(whole).all()
        cache.truncate(0, 3)
        assert np.array_equal(engine.feed(cache, [[4]])[0], whole[-1:])
    """)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, size, precision, str(tmp_path / "built")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    shutil.rmtree(tmp_path / "built", ignore_errors=True)
    assert done.returncode == 0, done.stderr
