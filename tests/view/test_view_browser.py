"""The page in a real browser: by keyboard alone, hostile data, another site, a phone.

A command of its own: `pip install playwright`, a chromium on the path, and

    python -m pytest tests/view/test_view_browser.py

With TRACIN_VIEW_PICTURES=docs it draws the pictures of docs/view.md.
"""

import csv
import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from served import saved, saved_many
from test_view_process import served

import tracin
from accessibility import violations
from tracin.view import save_examples

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the path")
DRAWN, WHY = "body[data-drawn]", "body[data-why='{}']"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"],
        )
        yield browser
        browser.close()


class Page:
    """One tab, and what it said and asked for."""

    def __init__(self, context, base, address):
        self.tab = context.new_page()
        self.said, self.asked = [], []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.said.append("dialog") or dialog.dismiss())
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.base = base
        self.tab.goto(address)
        self.tab.wait_for_selector(DRAWN)

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)
            self.tab.wait_for_timeout(150)

    def decided(self):
        cells = self.tab.locator("#rows tr td:last-child").all_text_contents()
        return [cell for cell in cells if cell]

    def focus(self):
        return self.tab.evaluate("document.activeElement.tagName")


@pytest.fixture
def looked_at(chromium, tmp_path):
    """Opens a folder in a browser."""
    closing = []

    def open_folder(folder, **options):
        serving = served(folder, tmp_path / "tmp")
        process = serving.__enter__()
        context = chromium.new_context(**options)
        closing.extend([serving, context])
        page = Page(context, process.base, process.file.as_uri())
        return page, process, context

    yield open_folder
    for one in reversed(closing):
        one.close() if hasattr(one, "close") else one.__exit__(None, None, None)


def test_decisions_by_keyboard_alone_end_in_a_known_table(looked_at, tmp_path):
    folder = saved(tmp_path / "results")
    page, _, _ = looked_at(folder)
    focus = [page.focus()]
    for key in ("w", "r", "s"):
        page.press(key)
        focus.append(page.focus())
    page.press("l", "0", "Enter", "u", "u", "Shift+U", "/", "Escape", "k", "c", "j")
    focus.append(page.focus())

    assert set(focus) == {"TR"}
    assert page.said == []
    tracin.Decisions.open(folder).save(tmp_path / "decisions.csv")
    with (tmp_path / "decisions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Ranked 1, 3, 5, 7, ...; 7 was relabelled and taken back, then 5 was taken back and done again.
    assert {row["position"]: (row["decision"], row["new_label"]) for row in rows} == {
        "1": ("wrong", ""),
        "5": ("relabelled", "0"),
    }


def test_undo_works_after_a_reload_and_a_held_key_decides_once(looked_at, tmp_path):
    page, _, _ = looked_at(saved(tmp_path / "results"))
    page.tab.keyboard.down("w")
    for _ in range(5):
        page.tab.keyboard.down("w")  # repeats while it is held
    page.tab.keyboard.up("w")
    page.tab.wait_for_timeout(300)
    assert page.decided() == ["wrong"]

    page.tab.reload()
    page.tab.wait_for_selector("#rows tr")
    page.press("u")

    assert page.decided() == []
    assert page.tab.text_content("#say").startswith("Taken back")


def test_undo_reaches_a_row_on_another_page(looked_at, tmp_path):
    page, process, _ = looked_at(saved_many(tmp_path / "results", 250))
    page.press("w")
    page.tab.wait_for_selector("#rows .wrong")
    page.press("n")
    page.tab.wait_for_selector("#rows tr:first-child :text-is('101')")

    page.press("u")
    page.tab.wait_for_timeout(300)

    assert page.tab.text_content("#say").startswith("Taken back")
    assert process.ask("api/rows")["decided"] == 0
    page.press("p")
    page.tab.wait_for_timeout(300)
    assert page.decided() == []


def test_the_token_leaves_the_address_and_nothing_else_is_asked(looked_at, tmp_path):
    page, process, context = looked_at(saved(tmp_path / "results"))

    assert page.tab.url == page.base
    assert all(url.startswith((page.base, "file://")) for url in page.asked)
    assert process.token not in "".join(url for url in page.asked if "file" not in url[:5])
    assert context.cookies() == []
    stranger = context.new_page()  # a tab has its own session storage
    stranger.goto(page.base)
    stranger.wait_for_selector("text=This page needs its token")


HOSTILE = [
    "<script>document.title='hurt'</script>",
    "<img src=x onerror=alert(1)>",
    '"onerror="alert(1)',
    "{{7*7}} ${7*7}",
    "exe\u202egnp.",
    "\u05e9\u05dc\u05d5\u05dd",
    "no-space-" * 2000,
    "👩‍👩‍👧 =1+1",
]


def test_hostile_texts_stay_texts_and_push_nothing_off_the_page(looked_at, tmp_path):
    labels = [text[:100] for text in HOSTILE]
    saved(tmp_path / "results", ids=labels, given_labels=labels)
    save_examples(tmp_path / "results", texts=HOSTILE)
    for width in (1280, 390):
        page, _, context = looked_at(tmp_path / "results", viewport={"width": width, "height": 800})
        for _ in HOSTILE:
            page.press("j")
        assert page.said == []
        assert "hurt" not in page.tab.title()
        assert page.tab.locator("#list img, #detail script, #detail img").count() == 0
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
        assert "\u202e" not in page.tab.text_content("body")
        context.close()


def test_the_policy_holds_even_where_the_page_itself_would_break_it(looked_at, tmp_path):
    page, _, _ = looked_at(saved(tmp_path / "results"))

    thrown = page.tab.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return 'none' } "
        "catch (error) { return error.name } }"
    )
    fetched = page.tab.evaluate(
        "() => fetch('https://example.org/').then(() => 'came', error => error.name)"
    )

    assert thrown == "TypeError"
    assert fetched == "TypeError"


EVIL = """<!doctype html><title>evil</title>
<iframe id="frame" src="BASE"></iframe><img id="image" src="BASEmedia/0/1-64.webp">
<form id="form" method="post" enctype="text/plain" action="BASEapi/decide" target="frame">
<input name='{"rows":[1],"seen":[0],"kind":"wrong","tab":"x","a":"' value='"}'></form>
<script>
const tried = [];
const attempt = (name, options) =>
  fetch(name, options)
    .then(answer => tried.push([answer.type, answer.status]), () => tried.push("no"));
Promise.all([
  attempt("BASEapi/about"),
  attempt("BASEapi/about", { headers: { authorization: "Bearer x" } }),
  attempt("BASEapi/decide", { method: "POST", body: "{}" }),
  attempt("BASEapi/decide", { method: "POST", mode: "no-cors", body: "{}" }),
  attempt("REBOUNDapi/about"),
]).then(() => {
  document.getElementById("form").submit();
  document.body.dataset.tried = JSON.stringify(tried);
});
</script>"""


def test_another_site_in_the_same_browser_reads_and_decides_nothing(looked_at, tmp_path):
    page, process, context = looked_at(saved(tmp_path / "results"))
    site = tmp_path / "site"
    site.mkdir()
    port = process.base.rsplit(":", 1)[1]
    rebound = f"http://evil.example:{port}"
    text = EVIL.replace("BASE", process.base).replace("REBOUND", rebound)
    (site / "index.html").write_text(text)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        evil = context.new_page()
        evil.goto(f"http://evil.example:{server.server_address[1]}/")
        evil.wait_for_selector("body[data-tried]")
        evil.wait_for_timeout(500)
        tried = evil.evaluate("document.body.dataset.tried")
        pixels = evil.evaluate("document.getElementById('image').naturalWidth")
        direct = context.new_page()
        answer = direct.goto(rebound)
        server.shutdown()

    assert '"basic"' not in tried
    assert '"cors"' not in tried
    assert "200" not in tried
    assert pixels == 0
    assert answer.status == 421
    assert process.ask("api/rows")["decided"] == 0
    page.press("w")
    assert process.ask("api/rows")["decided"] == 1


def test_two_tabs_see_each_other(looked_at, tmp_path):
    one, process, context = looked_at(saved(tmp_path / "results"))
    other = Page(context, one.base, process.file.as_uri())

    one.press("w")
    other.press("r")  # it has not seen the decision yet

    assert "another tab" in other.tab.text_content("#say")
    assert other.decided() == ["wrong"]
    other.press("r")
    one.tab.wait_for_selector("#rows .right", timeout=6000)
    assert one.decided() == ["right"]


def trained(folder: Path) -> Path:
    """Digits, some with a wrong label, with pictures and an index."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    inputs = torch.tensor(digits.images[:1000] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target[:1000])
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(1000, generator=generator) < 0.05
    labels = torch.where(wrong, (labels + 1) % 10, labels)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    checkpoints = []
    for _ in range(4):
        for _ in range(40):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        checkpoints.append({name: one.clone() for name, one in model.state_dict().items()})
    run = tracin.TracIn(model, "cross_entropy", checkpoints, learning_rates=[0.5] * 4)
    suspects = run.find_mislabelled((inputs, labels), rank_by="loss")
    suspects.save(folder / "results" / "mislabelled.parquet")
    projection = tracin.Projection(dim=256)
    run.index((inputs, labels), folder / "index", projection, progress=False)
    save_examples(folder / "results", pictures=inputs)
    return folder


def test_a_person_sees_pictures_explanations_and_when_to_stop(looked_at, tmp_path):
    page, _, _ = looked_at(trained(tmp_path / "digits"), viewport={"width": 1280, "height": 800})
    page.tab.wait_for_selector("#why .hits")
    where = os.environ.get("TRACIN_VIEW_PICTURES")

    page.press("w", "s", "r")
    page.tab.wait_for_selector("#why .hits")
    page.tab.wait_for_timeout(500)
    assert page.tab.locator("#why .hits li").count() == 12
    assert page.tab.evaluate("[...document.images].every(one => !one.complete || one.naturalWidth)")
    assert page.tab.text_content("#stop") == "Of the last 3 looked at, 2 were wrong."
    if where:
        page.tab.wait_for_timeout(4200)
        page.tab.screenshot(path=f"{where}/view-light.png")
        page.tab.emulate_media(color_scheme="dark")
        page.tab.screenshot(path=f"{where}/view-dark.png")
        page.tab.emulate_media(color_scheme="light")
    before = page.tab.text_content("#detail strong")
    page.press("Enter", "Enter")  # into the proponents, and to the first of them
    page.tab.wait_for_timeout(300)
    assert page.tab.text_content("#detail strong") != before
    page.press("Backspace")
    assert page.tab.text_content("#detail strong") == before
    page.tab.set_viewport_size({"width": 390, "height": 844})
    page.tab.wait_for_timeout(300)
    assert page.tab.evaluate("document.documentElement.scrollWidth") == 390
    if where:
        page.tab.screenshot(path=f"{where}/view-phone.png")
    assert page.said == []


def test_axe_finds_nothing_in_either_scheme_or_on_a_phone(looked_at, tmp_path):
    folder = trained(tmp_path / "digits")
    page, _, _ = looked_at(folder, bypass_csp=True, viewport={"width": 1280, "height": 800})
    page.tab.wait_for_selector("#why .hits")
    page.press("w", "r", "s")  # each kind of decision has a colour of its own
    page.tab.wait_for_selector("#why .hits")

    for scheme in ("light", "dark"):
        page.tab.emulate_media(color_scheme=scheme)
        for width in (1280, 390):
            page.tab.set_viewport_size({"width": width, "height": 800})
            assert violations(page.tab) == [], (scheme, width)
        page.tab.set_viewport_size({"width": 1280, "height": 800})
        page.press("?")
        assert page.tab.locator("dialog[open]").count() == 1
        assert violations(page.tab) == [], scheme
        page.press("Escape")
