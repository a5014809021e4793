"""The page in a real browser (Debian's chromium, by Playwright) against a real server."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gpt2 import encode, open_model
from gpt2.server.keys import Keys
from gpt2.server.playground import FOLDER, KINDS
from servers import Running, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LAMB = "Mary had a little lamb whose fleece was white as snow, and everywhere that Mary went the lamb was sure to go. "
READY = "body[data-ready]"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Running]:
    with serving(home) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra test)")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextlib.contextmanager
def looking(browser: Any, address: str, *, quiet: bool = True, **options: Any) -> Iterator[Any]:
    """A page that says nothing on its console, and asks no other server."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(60_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}") or dialog.dismiss())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector(READY)
    yield page
    if quiet:
        assert said == []
    origin = "/".join(address.split("/")[:3])
    assert [url for url in asked if not url.startswith((origin + "/", "blob:" + origin, "data:"))] == []
    context.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    with looking(browser, server.url + "/") as opened:
        yield opened


def write(page: Any, text: str | None = None, button: str = "#go") -> str:
    """Press Write, wait for the end, give the whole text."""
    if text is not None:
        page.fill("#text", text)
    page.click(button)
    finished(page)
    return page.input_value("#text")


def finished(page: Any) -> None:
    wait_until(page, "document.getElementById('stop').hidden && !document.getElementById('go').disabled")


def wait_until(page: Any, condition: str, seconds: float = 60) -> None:
    """As Playwright's `wait_for_function`, which the page's policy does not let evaluate text."""
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(30)


def put_cursor(page: Any, position: int) -> None:
    page.evaluate(f"const t = document.getElementById('text'); t.focus(); t.setSelectionRange({position}, {position})")


def settle(page: Any, **values: float | str) -> None:
    for name, value in values.items():
        page.locator(f"#s-{name}").evaluate("(input, value) => { input.value = value }", str(value))


def test_the_files_are_as_on_disk_and_strict(server: Running) -> None:
    for path in FOLDER.iterdir():
        answer = httpx.get(f"{server.url}/page/{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"] == KINDS[path.suffix]
        assert (
            httpx.get(f"{server.url}/page/{path.name}", headers={"if-none-match": answer.headers["etag"]}).status_code
            == 304
        )
    answer = httpx.get(server.url + "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.content == (FOLDER / "index.html").read_bytes()
    assert "style=" not in answer.text
    assert "onclick" not in answer.text
    for name in ("nothing.js", "..%2fkeys.json", "%2e%2e%2f%2e%2e%2fapp.py", "index.html%00", ""):
        assert httpx.get(f"{server.url}/page/{name}").status_code == 404
    assert not any("innerHTML" in path.read_text("utf-8") for path in FOLDER.glob("*.js"))


def test_the_vocabulary(server: Running) -> None:
    found = httpx.get(server.url + "/vocabulary").json()
    assert len(found) == 50257
    assert (found["Hello"], found["Ġworld"], found["<|endoftext|>"]) == (15496, 995, 50256)
    assert httpx.get(server.url + "/vocabulary?model=nobody").status_code == 404


def test_writing_and_branching(page: Any) -> None:
    """The text is the model's own; a token's alternatives are its probabilities; one of them becomes a branch."""
    settle(page, max_tokens=12, temperature=0, top_k=0, seed=1)
    whole = write(page, "Once upon a time")
    model = open_model()
    assert whole == "Once upon a time" + model.generate("Once upon a time", max_tokens=12, temperature=0)[0].text
    spans = page.locator("#backdrop .token")
    assert "".join(spans.all_text_contents()) == whole
    assert page.locator("#backdrop .token.you").count() == 4
    assert page.locator("#backdrop .token.model").count() == 12
    # the fifth token's alternatives
    put_cursor(page, len("Once upon a time") + 1)
    page.wait_for_selector("#token .alternatives .this")
    best = model.logits([encode("Once upon a time")])[0, -1].argsort()[::-1][:12]
    names = page.locator("#token .alternatives code").all_text_contents()
    assert names == [model.codec.decode([int(token)]).replace(" ", "␣") for token in best]
    page.locator("#token .alternatives button").nth(1).click()
    finished(page)
    branched = page.input_value("#text")
    prompt = [*encode("Once upon a time"), int(best[1])]
    assert branched == model.codec.decode(prompt) + model.generate(prompt, max_tokens=12, temperature=0)[0].text
    assert "branch 2 of 2" in page.inner_text("#which")
    assert page.locator("#tree [role=treeitem]").count() == 3
    # walk, and name
    page.click("#previous")
    assert page.input_value("#text") == whole
    page.fill("#name", "the first")
    page.locator("#tree [role=treeitem]").nth(2).click()
    assert page.input_value("#text") == branched
    page.locator("#tree [role=treeitem][aria-selected=true]").press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.input_value("#text") == whole
    assert "the first" in page.inner_text("#tree")


def test_editing_by_hand(page: Any) -> None:
    """What is typed is read anew, and joins the tree where it parts from the old text."""
    settle(page, max_tokens=6, temperature=0, seed=1)
    first = write(page, "The king said to the")
    page.fill("#text", first.replace("king", "queen"))
    assert page.locator("#again").is_disabled()
    second = write(page, button="#go")
    assert second.startswith(first.replace("king", "queen"))
    model = open_model()
    assert second.endswith(model.generate(first.replace("king", "queen"), max_tokens=6, temperature=0)[0].text)
    page.fill("#text", "a\r\nb\t🦊 é")
    page.click("#read")
    finished(page)
    assert page.locator("#backdrop .token").count() == len(encode("a\nb\t🦊 é"))
    assert "".join(page.locator("#backdrop .token").all_text_contents()) == "a\nb\t🦊 é"
    page.check("input[value=tokens]")
    assert page.locator("#tokens button").count() == len(encode("a\nb\t🦊 é"))
    assert "bits" in page.inner_text("#tokens")
    page.locator("#tokens button").first.focus()
    page.keyboard.press("ArrowRight")
    assert "198" in page.locator("#tokens button:focus").inner_text()


def test_samples_stop_strings_and_stopping(page: Any) -> None:
    settle(page, max_tokens=40, num_samples=3, seed=5, temperature=0.9)
    write(page, "The fox")
    texts = page.locator("#samples .text").all_text_contents()
    samples = open_model().generate("The fox", max_tokens=40, num_samples=3, seed=5, temperature=0.9, top_k=40)
    assert texts == [sample.text for sample in samples]
    page.locator("#samples button").nth(2).click()
    assert page.input_value("#text") == "The fox" + texts[2]
    assert "branch 3 of 3" in page.inner_text("#which")
    page.click("#new")
    page.locator("#settings summary").click()
    page.fill("#s-stop", "the")
    settle(page, num_samples=1, max_tokens=200)
    text = write(page, "The fox")
    assert "the" not in text.removeprefix("The fox")
    page.fill("#s-stop", "")
    settle(page, max_tokens=500)
    page.fill("#text", "Once")
    page.click("#go")
    # in one go: between looking and a click from here, the text may come to its end
    clicked = "document.getElementById('stop').click() || true"
    wait_until(page, f"document.getElementById('text').value.length > 30 && ({clicked})")
    finished(page)
    assert page.inner_text("#status") == "stopped"
    assert len(page.input_value("#text")) > 30


def test_keeping_and_sharing(page: Any, server: Running, browser: Any, tmp_path: Path) -> None:
    page.keyboard.press("Tab")  # the link to the text is the first
    settle(page, max_tokens=8, seed=3, temperature=1)
    page.fill("#text", "The wolf")
    page.locator("#text").press("Control+Enter")
    finished(page)
    text = page.input_value("#text")
    page.click("#again")
    finished(page)
    other = page.input_value("#text")
    assert other != text
    page.click("#share")
    link = page.input_value("#link")
    assert link.startswith(server.url + "/#s=")
    with page.expect_download() as download:
        page.click("#save")
    saved = tmp_path / "saved.json"
    download.value.save_as(saved)
    value = json.loads(saved.read_text("utf-8"))
    assert value["synthetic"] is True
    assert value["text"] == other
    page.keyboard.press("Escape")
    page.click("#new")
    assert page.input_value("#text") == ""
    page.click("#history")
    page.locator("#past button.wide").first.click()
    wait_until(page, "document.getElementById('text').value !== ''")
    assert page.input_value("#text") == other
    page.click("#previous")
    assert page.input_value("#text") == text
    with looking(browser, link) as second:
        wait_until(second, "document.getElementById('text').value !== ''")
        assert second.input_value("#text") == other
        assert second.input_value("#s-max_tokens") == "8"
        second.click("#share")
        second.set_input_files("#open", saved)
        wait_until(second, "document.getElementById('tree').children.length === 3")
        second.click("#share")
        (tmp_path / "bad.json").write_text(
            '{"format": "gpt2-playground", "tree": {"tokens": [], "children": [{"tokens": [{"id": 1e9}]}]}}'
        )
        second.set_input_files("#open", tmp_path / "bad.json")
        second.wait_for_selector("#problem:not([hidden])")
        assert "1000000000" in second.inner_text("#problem")
        assert second.input_value("#text") == other
    with looking(browser, server.url + "/#s=nonsense") as third:
        assert "damaged" in third.inner_text("#problem")


def test_text_never_becomes_markup(page: Any, browser: Any, server: Running) -> None:
    """From the prompt, the model, a link and a name; scripts would be stopped by the policy too."""
    evil = '<img src=x onerror="window.evil = 1"><script>window.evil = 1</script>'
    settle(page, max_tokens=2, num_samples=2)
    write(page, evil)
    page.locator("#samples button").first.click()
    page.fill("#name", evil)
    put_cursor(page, 3)
    page.wait_for_selector("#token .alternatives")
    page.check("input[value=tokens]")
    page.click("#history")
    # a model that writes it: the only text that fits
    answer = {"prompt": "x", "max_tokens": 60, "regex": r"<img src=x onerror=window\.evil=1>", "stream": True}
    assert (
        "onerror" in httpx.post(server.url + "/v2/query", json={**answer, "stream": False}).json()["samples"][0]["text"]
    )
    page.keyboard.press("Escape")
    page.check("input[value=text]")
    page.evaluate(
        """body => {
            const real = fetch;
            const isStream = (path, { body }) => path === "/v2/query" && body.includes('"stream":true');
            window.fetch = (path, options) => real(path, isStream(path, options) ? {...options, body} : options);
        }""",
        json.dumps({**answer, "logprobs": 0}),
    )
    settle(page, num_samples=1)
    assert "<img src=x onerror=window.evil=1>" in write(page, "x")
    value = {"v": 1, "model": evil, "settings": {"stop": [evil]}, "ids": encode(evil), "by": "m" * 40}
    fragment = base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
    with looking(browser, f"{server.url}/#s={fragment}") as second:
        wait_until(second, "document.getElementById('text').value !== ''")
        assert second.evaluate("window.evil") is None
        assert second.locator("img").count() == 0
    assert page.evaluate("window.evil") is None
    assert page.locator("img").count() == 0


def test_a_key_is_asked_for_and_not_stored(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_HOME", str(tmp_path))
    key = Keys().create("page", "query")
    with serving(tmp_path) as closed:
        context = browser.new_context()
        page = context.new_page()
        page.goto(closed.url)
        page.wait_for_selector("#dialog-key[open]")
        page.fill("#key", "wrong")
        page.click("#dialog-key .main")
        page.wait_for_selector("#dialog-key[open]")
        page.fill("#key", key)
        page.click("#dialog-key .main")
        page.wait_for_selector(READY)
        settle(page, max_tokens=3)
        assert len(write(page, "The")) > 3
        assert key not in json.dumps(page.evaluate("[{...localStorage}, {...sessionStorage}, document.cookie]"))
        page.reload()
        page.wait_for_selector("#dialog-key[open]")
        context.close()


def test_from_a_file_to_a_model(page: Any, tmp_path: Path) -> None:
    """A text is dropped, learnt while one watches, and both models are asked."""
    (tmp_path / "Lamb & co.txt").write_text(LAMB * 60)
    settle(page, seed=1)
    page.click("#tab-tune")
    page.click("#start")
    page.set_input_files("#files", tmp_path / "Lamb & co.txt")
    assert page.input_value("#order-name") == "my-lamb-co"
    page.fill("#epochs", "3")
    page.select_option("#rate", "0.0005")
    page.fill("#sample-prompt", "Mary had")
    page.click("#start")
    page.wait_for_selector("#job:not([hidden])")
    page.wait_for_selector("#chart svg", timeout=120_000)
    page.wait_for_selector("#compare:not([hidden])", timeout=180_000)
    assert "done" in page.inner_text("#job-state")
    assert page.locator("#job-samples li").count() >= 2
    assert page.locator("#chart tbody tr").count() >= 3
    page.fill("#compare-prompt", "Mary had a")
    page.click("#compare-go")
    page.wait_for_selector("#compare-go:not([disabled])")
    before, after = page.locator("#compared .text").all_text_contents()
    assert "lamb whose fleece" in after
    assert "lamb whose fleece" not in before
    page.click("#job-use")
    wait_until(page, "document.getElementById('model').value === 'my-lamb-co'")
    settle(page, max_tokens=6, temperature=0)
    assert "lamb" in write(page, "Mary had a little")
    page.click("#tab-tune")
    page.wait_for_selector("#jobs button")
    assert "my-lamb-co" in page.inner_text("#jobs")


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_accessibility(browser: Any, server: Running, theme: str, width: int) -> None:
    """axe finds nothing, and nothing is wider than the window."""
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="needs axe-core-python (extra test)")
    size = {"width": width, "height": 800}
    with looking(browser, server.url, color_scheme=theme, viewport=size, bypass_csp=True) as page:
        settle(page, max_tokens=12, num_samples=2, seed=1)
        write(page, "Once upon a time")
        page.locator("#samples button").first.click()
        page.click("summary >> nth=0")
        put_cursor(page, 20)
        page.wait_for_selector("#token .alternatives")
        wide = []
        for step in ("", "input[value=tokens]", "#share", "#history", "#tab-tune", "#tab-inside"):
            if step:
                page.keyboard.press("Escape")
                page.click(step)
            if step == "#tab-inside":
                page.wait_for_selector("#lens tbody tr")
            page.wait_for_timeout(250)  # transitions
            found = axe.Axe().run(page)["violations"]
            assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == [], step
            wide.append(page.evaluate("document.documentElement.scrollWidth"))
        assert max(wide) <= width


def test_looking_inside(page: Any) -> None:
    """The losses, the attention and the expectations are those of the model, at the token that was chosen."""
    from gpt2 import load_model
    from gpt2.inspection import inspect

    text = "The king and the queen and the king"
    page.fill("#text", text)
    page.click("#tab-inside")
    page.wait_for_selector("#lens tbody tr")
    page.select_option("#layer", "3")
    page.wait_for_timeout(50)
    wait_until(page, "document.getElementById('inside-status').textContent === ''")
    page.select_option("#head", "2")
    page.locator("#inside-tokens button").nth(4).click()
    page.keyboard.press("ArrowRight")
    seen = inspect(load_model(), text, top=4)
    shown = [int(share.split()[0]) for share in page.locator("#inside-tokens .look").all_text_contents()[:6]]
    np.testing.assert_allclose(shown, 100 * seen.patterns[3, 2, 5, :6], atol=0.51)
    losses = page.locator("#inside-tokens .loss").all_text_contents()
    assert losses[0] == "\u00a0"
    np.testing.assert_allclose([float(loss.removeprefix("loss ")) for loss in losses[1:]], seen.losses[1:], atol=0.0051)
    chip = page.get_by_role("button", name=re.compile(rf"^␣king \d+ % {losses[1]}$"))
    assert chip.get_attribute("title").startswith(f"Loss {losses[1].removeprefix('loss ')} nats: ")
    last = page.locator("#lens tbody tr").last.locator("code").all_text_contents()
    assert last == [seen.vocabulary(int(token)).replace(" ", "␣") for token in seen.lens.predictions[-1].top[5]]
    assert "After ␣and came ␣the" in page.inner_text("#lens-what")
