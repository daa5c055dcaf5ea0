"""How (Hessian + damping)^-1 is multiplied with gradients."""

from tracin.baselines.solvers.conjugate_gradient import ConjugateGradient as ConjugateGradient
from tracin.baselines.solvers.direct import Direct as Direct
from tracin.baselines.solvers.lissa import LiSSA as LiSSA
from tracin.baselines.solvers.solver import InverseHessian as InverseHessian
from tracin.baselines.solvers.solver import Solver as Solver
