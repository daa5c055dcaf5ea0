"""What a browser makes of a report; needs Playwright and a Chromium."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import tracin
from accessibility import violations
from reported_results import HOSTILE, diagnostics_of, explanations_of, suspects_of
from tracin import Shown

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
COLUMNS = ("given", "suggested")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        # Root, as in a container, has no sandbox.
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def hostile(tmp_path):
    """A report whose every text is hostile."""
    count = len(HOSTILE)
    given = [each[:3000] for each in HOSTILE]
    result = explanations_of(queries=2, k=4, train=count, checkpoints=40)
    names = np.array([f"{each} {at}" for at, each in enumerate(given)], dtype=object)
    sides = [
        replace(side, ids=names[side.positions]) for side in (result.proponents, result.opponents)
    ]
    result = replace(result, proponents=sides[0], opponents=sides[1], notes=tuple(HOSTILE))
    return tracin.write_report(
        tmp_path / "hostile.html",
        result,
        suspects_of(given, given[::-1], names.tolist()),
        title="".join(HOSTILE),
        labels=HOSTILE,
    ).path


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_hostile_page_asks_for_nothing_runs_nothing_and_fits(browser, hostile, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("dialog", lambda dialog: (seen.append("dialog"), dialog.dismiss()))

    page.goto(hostile.as_uri())

    outside = [each for each in seen if not each.startswith("data:")]
    assert outside == [hostile.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_table_sorts_filters_and_is_whole_without_a_script(browser, tmp_path):
    suspects = suspects_of([0, 1, 2, 1], [1, 1, 0, 1])
    scores = {"margin": torch.tensor([0.3, float("nan"), -0.2, 0.1])}
    suspects = replace(suspects, scores={**suspects.scores, **scores})
    train = ["a", "b", "c", "d"]
    path = tracin.write_report(
        tmp_path / "page.html", suspects, train=train, show=lambda text: Shown(text=text)
    ).path
    page = browser.new_page()
    page.goto(path.as_uri())
    rows = "tbody tr[data-given]:not([hidden])"

    def ranks() -> list[str]:
        return [page.locator(rows).nth(at).locator("td").first.inner_text() for at in range(4)]

    page.click("th button:text-is('margin')")
    down = ranks()
    page.click("th button:text-is('margin')")
    up = ranks()
    page.fill("input[type=search]", "c")
    found = page.locator(rows).count()
    page.fill("input[type=search]", "")
    page.check("input[type=checkbox]")
    preferred = page.locator(rows).count()
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(path.as_uri())

    assert (down, up) == (["1", "4", "3", "2"], ["3", "4", "1", "2"])
    assert (found, preferred) == (1, 2)
    assert page.inner_text("[role=status]") == "2 of 4 rows shown"
    assert plain.locator(rows).count() == 4
    assert plain.locator("button").count() == 0
    assert not plain.locator(".tools").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_a_page_with_every_part(browser, tmp_path, scheme):
    train = torch.rand(12, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    actual = np.random.default_rng(0).normal(1, 1, (50, 3))
    scores = torch.arange(12, 0, -1.0)
    path = tracin.write_report(
        tmp_path / "page.html",
        explanations_of(),
        suspects_of([0, 1, 2] * 4, [1, 1, 2] * 4),
        tracin.analysis.found_curve(scores, torch.arange(12) < 3),
        diagnostics_of(actual * 3, actual),
        train=train,
        queries=train,
    ).path
    context = browser.new_context(bypass_csp=True, color_scheme=scheme)
    page = context.new_page()
    page.goto(path.as_uri())

    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert violations(page) == [], width
    context.close()


def test_on_paper_the_columns_that_matter_are_on_the_first_page(browser, tmp_path):
    train = torch.rand(300, 8, 8), torch.arange(300) % 3
    suspects = suspects_of([0, 1, 2] * 100, [1, 1, 2] * 100, [f"{at}" * 40 for at in range(300)])
    named = tracin.WithIds(train, suspects.ids.tolist())
    path = tracin.write_report(tmp_path / "page.html", suspects, train=named).path
    page = browser.new_page(viewport={"width": 718, "height": 1040})  # A4 less its margins
    page.goto(path.as_uri())

    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    page.emulate_media(media="print")
    boxes = [page.locator("th", has_text=name).first.bounding_box() for name in COLUMNS]
    printed = page.locator("tbody tr[data-given]:visible").count()

    assert printed == 100  # of 300: nobody wants the rest on paper
    assert 3 <= pages <= 12
    for box in boxes:
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 718
        assert box["y"] + box["height"] <= 1040
