"""What is public is a promise: this list is kept by hand."""

import inspect
import subprocess
import sys

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
