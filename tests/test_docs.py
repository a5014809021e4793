"""The documents are true: their Python blocks run, what they name exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = [
    pytest.param(match[1], id=f"{path.name}-{n}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if path.name != "server.md"  # which needs a server: test_server.py
    for n, match in enumerate(re.finditer(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "block", "exec"), {})


def test_links_lead_somewhere() -> None:
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if not target.startswith(("http", "mailto:")):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_nothing_is_left_to_fill_in() -> None:
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"<!--|TODO|FIXME", path.read_text(encoding="utf-8")), path.name


def test_every_module_stands_in_the_readmes_tree() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "src" / "gpt2").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert path.name in readme, path.name


def test_make_targets_that_are_named_exist() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (ROOT / "README.md", ROOT / "DEVELOPERS.md"):
        assert set(re.findall(r"`make ([a-z-]+)`", path.read_text(encoding="utf-8"))) <= known


def test_no_machine_paths_or_registry_hosts_are_tracked() -> None:
    try:
        names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = [
        name
        for name in names
        if (ROOT / name).suffix in {".md", ".py", ".txt", ".toml", ""} and (ROOT / name).is_file()
        if re.search(
            r"/(home|root|Users)/\w|pypi\.(org|python)|--index-url", (ROOT / name).read_text("utf-8", "ignore")
        )
    ]
    assert [name for name in found if not name.startswith("tests/")] == []
