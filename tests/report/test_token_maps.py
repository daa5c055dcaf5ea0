"""Shares of tokens on a page: coloured by classes alone, in words as well, and never obeyed."""

import pytest
import torch

import tracin
from reported_results import HOSTILE
from tracin.report import token_maps
from tracin.results.token_shares import PairTokens, TextShares, TokenShares


def shares_of(*tokens: str) -> TokenShares:
    query = TextShares(tuple(tokens), torch.tensor([1.0, -0.5, *[0.0] * (len(tokens) - 2)]))
    train = TextShares((), torch.tensor([0.0, 0.5]))
    return TokenShares((PairTokens("q", 3, 3, 0.5, query, train),))


def test_a_page_colours_each_token_by_its_share_and_names_the_strongest(tmp_path):
    report = tracin.write_report(tmp_path / "page.html", shares_of("a", "b", "\n"))

    page = report.path.read_text()
    assert "<h1>Which tokens carry the scores?</h1>" in page
    assert '<span class="u5" title="1">a</span><span class="d3" title="−0.5">b</span>' in page  # noqa: RUF001
    assert '<span title="0">⏎</span>' in page
    assert "strongest: a 1, b −0.5" in page  # noqa: RUF001
    assert 'title="0.5">1</span>' in page  # without names, tokens are known by their places


def test_tokens_from_data_are_shown_and_not_obeyed(tmp_path):
    report = tracin.write_report(tmp_path / "page.html", shares_of(*HOSTILE))

    page = report.path.read_text()
    assert "<img" not in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert 'onmouseover="' not in page
    assert "style=" not in page


def test_long_texts_and_many_pairs_are_cut_and_the_page_says_so(
    tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(token_maps, "TOKENS", 2)
    many = TokenShares(shares_of("a", "b", "c").pairs * 40)

    report = tracin.write_report(tmp_path / "page.html", many)

    assert report.left_out == ("32 of 40 pairs are shown",)
    assert "… and 1 more tokens" in report.path.read_text()
