"""Names and folders of the store: nothing outside it is ever found, written or removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2 import store
from gpt2.errors import CheckpointNotFoundError, GPT2Error, ModelNameError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_home_is_the_platforms_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2_HOME")
    assert store.home().name == "gpt2"
    assert store.home().is_absolute()


def test_add_resolve_list_remove(tmp_path: Path, home: Path) -> None:
    source = model(tmp_path / "source")
    assert store.list_models() == []
    assert store.add(source, "mine") == home / "models" / "mine"
    assert store.resolve("mine") == home / "models" / "mine"
    assert store.list_models() == ["mine"]
    with pytest.raises(ModelNameError, match="mine is taken"):
        store.add(source, "mine")
    store.remove("mine")
    assert store.list_models() == []
    assert (source / "config.json").is_file()
    with pytest.raises(ModelNameError, match="got 'mine'"):
        store.remove("mine")


def test_resolve_paths_and_names(tmp_path: Path, home: Path) -> None:
    here = model(tmp_path / "folder")
    assert store.resolve("./folder") == Path("folder")
    assert store.resolve("folder") == Path("folder")
    assert store.resolve(here) == here
    model(home / "models" / "folder")
    assert store.resolve("folder") == home / "models" / "folder", "a name in the store comes before a folder here"
    with pytest.raises(CheckpointNotFoundError, match="found nothing"):
        store.resolve("./none")
    assert store.resolve(None) == store.resolve("bundled") == store.bundled_path()


def test_a_size_that_is_not_here_says_how_to_get_it(home: Path) -> None:
    for name in ("124M", "small", "gpt2"):
        with pytest.raises(ModelNameError, match="gpt2 download 124M"):
            store.resolve(name)
    model(home / "models" / "124M")
    assert store.resolve("small") == home / "models" / "124M"


def test_an_unknown_name_shows_the_known_ones(home: Path) -> None:
    model(home / "models" / "tales")
    with pytest.raises(ModelNameError, match=r"one of bundled, tales, got 'tale'; did you mean tales\?"):
        store.resolve("tale")


BAD = ["", ".", "..", "../x", "a/b", "a\\b", "/etc", "~", "-x", "x" * 65, "a b", "é", "a\n", "a\0", "con", "NUL.txt"]


@pytest.mark.parametrize("name", [*BAD, "bundled", "Bundled", "x.", ".hidden"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    source = model(tmp_path / "source")
    for action in (lambda: store.add(source, name), lambda: store.remove(name)):
        with pytest.raises(ModelNameError, match="name: "):
            action()


def test_a_link_in_the_store_is_not_followed(tmp_path: Path, home: Path) -> None:
    outside = model(tmp_path / "outside")
    (home / "models").mkdir(parents=True)
    (home / "models" / "link").symlink_to(outside)
    for action in (lambda: store.remove("link"), lambda: store.resolve("link")):
        with pytest.raises(ModelNameError, match="is a link"):
            action()
    assert (outside / "config.json").is_file()


PARTS = ["..", ".", "/", "\\", "a", "\0", "~", "%2e", "C:"]
NAMES = st.text(max_size=80) | st.lists(st.sampled_from(PARTS)).map("".join)


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_no_name_leads_out_of_the_store(tmp_path: Path, name: str) -> None:
    try:
        folder = store.folder_of(name)
    except GPT2Error:
        return
    assert folder.parent == store.models_folder()
    assert folder.resolve().is_relative_to(store.models_folder().resolve())


def test_removing_and_adding_hostile_names_changes_nothing_outside(tmp_path: Path) -> None:
    source = model(tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    for name in BAD:
        for action in (lambda name=name: store.add(source, name), lambda name=name: store.remove(name)):
            with pytest.raises(GPT2Error):
                action()
    assert sorted(tmp_path.rglob("*")) == before
