"""What axe-core finds wrong with a page: contrast, names of controls, order of headings, ..."""

import pytest


def violations(page) -> list[str]:
    """The rules that a Playwright page breaks, and where; it must have been opened by `bypass_csp`.

    Skips the test where axe-playwright-python is not installed. The rules:
    https://github.com/dequelabs/axe-core/blob/develop/doc/rule-descriptions.md
    """
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]}"
        for rule in found
        for node in rule["nodes"]
    ]
