"""What TracIn is compared with: each takes a run and ranks suspects; some also explain queries."""

from tracin.baselines.area_under_margin import AreaUnderMargin as AreaUnderMargin
from tracin.baselines.baseline import Baseline as Baseline
from tracin.baselines.baseline import ExplainingBaseline as ExplainingBaseline
from tracin.baselines.baseline import HasInfluence as HasInfluence
from tracin.baselines.bm25 import BM25 as BM25
from tracin.baselines.confident_learning import ConfidentLearning as ConfidentLearning
from tracin.baselines.cross_validation import cross_validated as cross_validated
from tracin.baselines.el2n import EL2N as EL2N
from tracin.baselines.embedding_cosine import EmbeddingCosine as EmbeddingCosine
from tracin.baselines.forgetting import Forgetting as Forgetting
from tracin.baselines.grand import GraNd as GraNd
from tracin.baselines.influence_functions import FittedInfluence as FittedInfluence
from tracin.baselines.influence_functions import InfluenceFunctions as InfluenceFunctions
from tracin.baselines.loss import Loss as Loss
from tracin.baselines.margin import Margin as Margin
from tracin.baselines.mean_probability import MeanProbability as MeanProbability
from tracin.baselines.nearest_neighbours import NearestNeighbours as NearestNeighbours
from tracin.baselines.random_scores import RandomScores as RandomScores
from tracin.baselines.representer_points import FittedRepresenters as FittedRepresenters
from tracin.baselines.representer_points import RepresenterPoints as RepresenterPoints
from tracin.baselines.solvers import ConjugateGradient as ConjugateGradient
from tracin.baselines.solvers import Direct as Direct
from tracin.baselines.solvers import LiSSA as LiSSA
from tracin.baselines.suspect_scores import SuspectScores as SuspectScores
