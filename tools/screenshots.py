"""Makes the pictures of the server's page in docs/, from a real server and a real browser.

    python tools/screenshots.py STORY.txt

The text is what the fine-tuning is shown with. Needs the extra `test` and Debian's chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import serving

ROOT = Path(__file__).parent.parent
SIZE = {"width": 1280, "height": 860}


def finished(page: Any) -> None:
    """Wait until nothing is written any more."""
    page.wait_for_selector("#stop", state="hidden")
    page.wait_for_selector("#go:not([disabled])")
    page.wait_for_timeout(500)


def write(page: Any) -> None:
    """A text with three branches, the cursor on a token."""
    page.fill("#s-seed", "11")
    page.fill("#text", "Once upon a time there was a fox who")
    page.click("#go")
    finished(page)
    page.locator("#text").evaluate("t => { t.focus(); t.setSelectionRange(52, 52) }")
    page.wait_for_timeout(800)
    page.locator("#token .alternatives button").nth(1).click()
    finished(page)
    page.click("#again")
    finished(page)
    page.fill("#name", "as it ends well")
    page.locator("#text").evaluate("t => { t.focus(); t.setSelectionRange(90, 90) }")
    page.wait_for_timeout(800)
    page.screenshot(path=ROOT / "docs" / "page-write.png")


def samples(page: Any) -> None:
    """Several samples, on a telephone, in the dark."""
    page.fill("#s-num_samples", "2")
    page.fill("#s-max_tokens", "30")
    page.click("#go")
    finished(page)
    page.screenshot(path=ROOT / "docs" / "page-phone.png")


def tune(page: Any, story: Path) -> None:
    """A fine-tuning with its curve, and both models on one prompt."""
    page.click("#tab-tune")
    page.set_input_files("#files", story)
    page.fill("#epochs", "2")
    page.click("#start")
    page.wait_for_selector("#compare:not([hidden])", timeout=1_800_000)
    page.click("#compare-go")
    page.wait_for_selector("#compare-go:not([disabled])")
    page.locator("#job").scroll_into_view_if_needed()
    page.locator("#job-samples").evaluate("list => { list.style.maxHeight = '9rem' }")
    page.locator("#tune .middle").screenshot(path=ROOT / "docs" / "page-tune.png")


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("story", type=Path)
    story = parser.parse_args().story
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as server, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for view, options in (
            (write, {"viewport": SIZE}),
            (samples, {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}),
            (lambda page: tune(page, story), {"viewport": SIZE}),
        ):
            page = browser.new_page(**options)
            page.goto(server.url)
            page.wait_for_selector("body[data-ready]")
            if view is samples:
                page.fill("#s-seed", "4")
                page.fill("#text", "The old woman")
            view(page)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
