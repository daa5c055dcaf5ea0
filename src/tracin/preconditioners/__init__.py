"""What multiplies a query's gradient."""

from tracin.preconditioners.adam import Adam as Adam
from tracin.preconditioners.ekfac import EKFAC as EKFAC
from tracin.preconditioners.kept_metrics import KeptMetrics as KeptMetrics
from tracin.preconditioners.kernel import Kernel as Kernel
from tracin.preconditioners.kfac import KFAC as KFAC
from tracin.preconditioners.preconditioner import BatchFit as BatchFit
from tracin.preconditioners.preconditioner import HasDescribedFit as HasDescribedFit
from tracin.preconditioners.preconditioner import JointMetric as JointMetric
from tracin.preconditioners.preconditioner import Metric as Metric
from tracin.preconditioners.preconditioner import Place as Place
from tracin.preconditioners.preconditioner import Preconditioner as Preconditioner
from tracin.preconditioners.preconditioner import Scaling as Scaling
from tracin.preconditioners.preconditioner import metric_parts as metric_parts
