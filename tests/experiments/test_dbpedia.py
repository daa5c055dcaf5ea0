"""The experiment on DBPedia's articles runs, and its pieces and names are what they say."""

import pytest
import torch
from experiments.dbpedia_articles import LONGEST, pieces_of

from experiments import dbpedia


@pytest.mark.slow
def test_a_quick_run_shows_an_article_with_proponents_and_opponents(data_folder, tmp_path):
    dbpedia.main(["--quick", "--folder", str(tmp_path), "--threads", "1"])

    findings = (tmp_path / "quick" / "findings.md").read_text()
    lines = [line for line in findings.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert "**A subset:**" in findings
    by_name = {row[0]: row for row in rows}
    assert float(by_name["training accuracy"][1]) > 0.8
    assert by_name["training accuracy"][2] == "0.955"
    article = next(at for at, row in enumerate(rows) if row[0] == "the article")
    assert rows[article][1] == dbpedia.POLITICIAN
    shown = rows[article + 1 : article + 10]
    assert [row[3][0] for row in shown] == ["+"] * 3 + ["-"] * 6
    assert all(row[1] == row[2] for row in shown[:6])  # misclassified articles are dropped
    assert float(by_name["opponents, misclassified dropped"][3]) == 0
    figure = tmp_path / "quick" / "dbpedia-opponents.png"
    assert 0 < figure.stat().st_size < 150_000


def test_the_mean_and_maximum_of_a_text_do_not_see_its_padding():
    model = dbpedia.net(0)
    pieces = torch.tensor([[5, 6, 7, 0, 0, 0]])

    assert torch.allclose(model(pieces), model(pieces[:, :3]), atol=1e-6)


def test_pieces_are_learned_from_the_training_texts_and_fit_a_row():
    pytest.importorskip("sentencepiece")
    train = [f"the mayor of town number {number} sang in a choir" for number in range(50)]

    split, other = pieces_of(train, [["the mayor " * 200, "a"]])

    assert split.shape == (50, LONGEST)
    assert (other[0] > 0).all()
    assert (split[:, -1] == 0).all()
