"""What is public is a promise: this list is kept by hand."""

import importlib
import inspect
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

import tracin
from tracin import errors

PUBLIC = [
    "Adam",
    "Agreement",
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "Contributions",
    "Correlations",
    "ConflictingDuplicates",
    "CoupledExamplesError",
    "Coverage",
    "CrossEntropy",
    "CurvatureError",
    "CurvatureWarning",
    "DataError",
    "DataWarning",
    "DecisionError",
    "Decisions",
    "DeviceError",
    "EKFAC",
    "Explanations",
    "Finder",
    "HeldOut",
    "Index",
    "IndexingError",
    "KFAC",
    "Kernel",
    "LabelError",
    "LearningRateError",
    "Logit",
    "LossError",
    "LogitMargin",
    "LowRank",
    "MeanOfRuns",
    "MemorisedWarning",
    "ModelInUseError",
    "NonFiniteError",
    "OptimizerState",
    "Outcome",
    "OutputError",
    "ParametersError",
    "Preconditioner",
    "Predicted",
    "PreconditionerError",
    "Projection",
    "QueryError",
    "Recall",
    "Recorder",
    "Replay",
    "ReviewSample",
    "RunFileError",
    "SelectedExamples",
    "Selection",
    "Shown",
    "Suspects",
    "TargetOutcome",
    "TokenShares",
    "Tokens",
    "TracIn",
    "TracInError",
    "TracInWarning",
    "Tracer",
    "TracingError",
    "TracingWarning",
    "UnsupportedModelError",
    "Verification",
    "Visits",
    "GradientMethod",
    "WithIds",
    "WrongLabels",
    "compare_selections",
    "conflicting_duplicates",
    "contributions",
    "correlations",
    "documents",
    "mean",
    "open_checkpoints",
    "select",
    "select_checkpoints",
    "training_losses",
    "with_ids",
    "write_report",
]

SUBPACKAGES = {
    "analysis",
    "baselines",
    "engines",
    "evaluate",
    "integrations",
    "tracing",
    "view",
}
TRACING = [
    "Quadrature",
    "Replay",
    "StepTaken",
    "Trace",
    "TraceDiagnostics",
    "Tracer",
    "Update",
    "update_rule",
]


def test_the_public_names_are_those_promised():
    assert sorted(tracin.__all__) == sorted({*PUBLIC, *SUBPACKAGES})
    assert set(PUBLIC) <= set(dir(tracin))
    assert all(getattr(tracin, name).__name__ == name for name in set(PUBLIC) - SUBPACKAGES)


def test_the_names_of_tracing_live_there():
    from tracin import tracing

    assert all(inspect.getdoc(getattr(tracing, name)) for name in TRACING)


def test_every_error_is_exported_and_has_the_common_base():
    defined = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == "tracin.errors"
    }

    assert defined <= set(PUBLIC)
    assert all(
        issubclass(getattr(errors, name), errors.TracInError | UserWarning) for name in defined
    )


def test_every_public_name_has_a_docstring():
    assert all(inspect.getdoc(getattr(tracin, name)) for name in PUBLIC)


def test_no_object_of_a_public_class_is_shown_by_its_address():
    from tracin import tracing

    classes = [getattr(tracin, name) for name in PUBLIC] + [getattr(tracing, n) for n in TRACING]
    made = [one for one in classes if inspect.isclass(one) and not getattr(one, "_is_protocol", 0)]

    assert [one.__name__ for one in made if one.__repr__ is object.__repr__] == []


def test_objects_say_in_a_line_what_they_are(tmp_path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.ones(3, 2), torch.zeros(3)
    row = {"input_ids": [5, 6, 7, 8, 9], "position_ids": [0, 1, 2, 0, 1]}

    with tracin.Recorder(model, optimizer, tmp_path / "record") as recorder:
        recorder.batch([0, 1, 2])
        model(data[0]).sum().backward()
        optimizer.step()
        recorder.epoch()
        said = [
            repr(recorder),
            repr(tracin.Replay(model, optimizer, tmp_path / "record", data)),
            repr(tracin.documents([row])),
            repr(tracin.documents([row], in_context=True)),
            repr(tracin.WithIds(data, ["a", "b", "c"])),
            repr(tracin.WithIds([1.0], [7])),
            repr(tracin.with_ids(DataLoader([1.0, 2.0]))),
        ]
    with tracin.Tracer(model, optimizer, "mse", None, data, tmp_path / "trace") as tracer:
        said.append(repr(tracer))

    assert said == [
        f"Recorder(Linear, 1 checkpoint, 1 step so far, {tmp_path}/record)",
        "Replay(Linear, steps 0 to 1 on 3 examples)",
        "WithIds(2 examples of a DocumentsAlone, ids 0:0 to 0:1)",
        "WithIds(2 examples of a DocumentsInContext, ids 0:0 to 0:1)",
        "WithIds(3 examples of a tuple, ids a to c)",
        "WithIds(1 example of a list, id 7)",
        "with_ids(2 batches of a list)",
        f"Tracer(Linear, 3 examples, no queries, 0 steps so far, {tmp_path}/trace)",
    ]


@pytest.mark.parametrize("trainer", ["transformers", "lightning"])
def test_callbacks_say_in_a_line_what_they_record(tmp_path, trainer):
    pytest.importorskip(trainer)
    made = importlib.import_module(f"tracin.integrations.{trainer}").TracInCallback

    assert repr(made(tmp_path, every_n_epochs=2)) == f"TracInCallback({tmp_path}, every 2 epochs)"
    assert repr(made(tmp_path, 50)) == f"TracInCallback({tmp_path}, every 50 steps)"


def test_using_the_library_imports_nothing_heavier_than_torch():
    heavy = (
        "pyarrow typer pydantic transformers peft accelerate lightning sklearn matplotlib pandas "
        "polars torchvision starlette uvicorn PIL"
    )
    code = (
        "import sys, tracin\n"
        "tracin.TracIn, tracin.Recorder, tracin.Suspects\n"
        f"print([name for name in {heavy.split()} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_importing_the_front_door_imports_little_more_than_torch():
    heavy = "import sys, torch; before = set(sys.modules); import tracin; tracin.TracIn\n"
    heavy += "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
    heavy += "print(*sorted(new), *(m for m in set(sys.modules) - before if m[:6] == 'torch.'))"

    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)

    found = set(ran.stdout.split())
    assert not {name for name in found if name.startswith("torch.")}
    assert not found & {"torch", "sympy", "scipy", "pandas", "pyarrow", "transformers", "lightning"}
