"""Training itself, traced: what each step did to the queries' losses, shared among its examples."""

from tracin.tracing.diagnostics import TraceDiagnostics as TraceDiagnostics
from tracin.tracing.paths import Quadrature as Quadrature
from tracin.tracing.replay import Replay as Replay
from tracin.tracing.trace import Trace as Trace
from tracin.tracing.tracer import Tracer as Tracer
from tracin.tracing.updates import StepTaken as StepTaken
from tracin.tracing.updates import Update as Update
from tracin.tracing.updates import update_rule as update_rule
