"""Rules on small problems with known answers, at their best rates, against a static search."""

from .contest import REFERENCES as REFERENCES
from .contest import SHORT as SHORT
from .contest import arena as arena
from .contest import contestants as contestants
from .problems import QUICK as QUICK
from .problems import BenchmarkProblem as BenchmarkProblem
from .problems import standard as standard
from .result import MEASURES as MEASURES
from .result import Rank as Rank
from .result import Result as Result
from .result import normalize_losses as normalize_losses
from .study import STATIC as STATIC
from .study import Cell as Cell
from .study import Contestant as Contestant
from .study import Settings as Settings
from .study import compete as compete
