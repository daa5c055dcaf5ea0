"""Which scores predict retraining: the whole in its quick form, and the parts of the problems."""

import pytest
import torch
from experiments.retraining_problems import PROBLEMS, losses

from experiments import retraining
from tracin.analysis.seeded import seeded


def test_a_quick_run_compares_methods_with_retraining(data_folder, tmp_path):
    arguments = ["--quick", "--threads", "1", "--problems", "digits", "--folder", str(tmp_path)]

    retraining.main(arguments)

    found = (tmp_path / "quick" / "findings.md").read_text()
    rows = [line.split(" | ")[0] for line in found.splitlines() if line.startswith("| ")]
    assert {"| TracIn", "| KFAC()", "| random"} <= set(rows)
    assert "Ceiling" in found


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_a_problem_has_data_and_a_net_that_fit_together(data_folder, name):
    problem = PROBLEMS[name]().shortened()

    with seeded(0):
        model = problem.model()

    assert losses(model, problem.queries).shape == (5,)
    assert bool(torch.isfinite(losses(model, problem.train)).all())
    assert problem.epochs % problem.every == 0


def test_the_transformer_sees_no_later_character(data_folder):
    problem = PROBLEMS["characters"]()
    with seeded(0):
        model = problem.model()
    codes = problem.queries[0][:1].clone()

    before = model(codes)
    codes[0, 20] = (codes[0, 20] + 1) % 60
    after = model(codes)

    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.equal(before[:, 20:], after[:, 20:])
