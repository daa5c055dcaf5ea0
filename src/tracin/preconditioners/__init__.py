"""What multiplies a query's gradient."""

from tracin.preconditioners.adam import Adam as Adam
from tracin.preconditioners.preconditioner import Preconditioner as Preconditioner
from tracin.preconditioners.preconditioner import Scaling as Scaling
