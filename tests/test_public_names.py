"""What is public is a promise: this list is kept by hand."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import tracin
from tracin import errors

PUBLIC = [
    "Agreement",
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "Contributions",
    "Correlations",
    "CoupledExamplesError",
    "Coverage",
    "CrossEntropy",
    "DataError",
    "DataWarning",
    "DeviceError",
    "Explanations",
    "Finder",
    "Goodness",
    "Index",
    "IndexingError",
    "LabelError",
    "LearningRateError",
    "LossError",
    "ModelInUseError",
    "NonFiniteError",
    "OptimizerState",
    "Outcome",
    "OutputError",
    "ParametersError",
    "Path",
    "Projection",
    "QueryError",
    "Recall",
    "Recorder",
    "Replay",
    "RunFileError",
    "Selection",
    "StepTaken",
    "Suspects",
    "TracIn",
    "TracInError",
    "TracInWarning",
    "Trace",
    "Tracer",
    "TracingError",
    "TracingWarning",
    "UnsupportedModelError",
    "Update",
    "Verification",
    "Visits",
    "Way",
    "WithIds",
    "compare_selections",
    "contributions",
    "correlations",
    "open_checkpoints",
    "select_checkpoints",
    "training_losses",
    "update_rule",
    "with_ids",
]


def test_the_public_names_are_those_promised():
    assert sorted(tracin.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(tracin))
    assert all(getattr(tracin, name).__name__ == name for name in PUBLIC)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(tracin.__file__).read_text())
    imported = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tracin")
        for alias in node.names
    }

    assert imported == set(PUBLIC)


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
        "polars torchvision"
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
