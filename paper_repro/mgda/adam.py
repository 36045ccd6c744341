"""Is the answer of the regularised max–min problem a direction of common descent?"""

import mtlfunc as mf

from ..report.decisions import Claims, Exact, exact
from ..report.extremes import largest
from ..report.findings import Findings, Settings
from .common import gram, rows_of, solved, square

CLAIMS = {
    "SU-11": Exact(
        "Regularised problem: max over u of min_t ⟨g_t, u⟩ - ½‖u‖². Where it is "
        "largest min_t ⟨g_t, u⟩ >= ½‖u‖² >= 0, so a non-zero u gives common descent along -u.",
        exact(
            ("largest |min ⟨g_t, u*⟩/‖u*‖² - 1|", "<", 1e-9),
            ("largest relative difference of the value from ½‖u*‖²", "<", 1e-9),
            ("active set against projected gradient: largest relative *", "<", 1e-5),
        ),
    )
}
claim = Claims(CLAIMS)


def run(settings: Settings) -> Findings:
    draws = settings.count(2000)
    few = slice(0, max(4, draws // 20))
    below = off = apart = 0.0
    for tasks, size in ((2, 3), (5, 8), (20, 30)):
        g = gram(rows_of(draws, tasks, size, 500 + 2 * tasks, spread=5.0, common=0.3))
        found = solved(mf.solvers.active_set(), g)
        least, smallest = square(g, found.weights), found.rates.amin(-1)
        below = largest(below, (1 - smallest / least).abs())
        # the concave objective's value at u*, by its definition, against half the squared length
        off = largest(off, ((smallest - 0.5 * least) / (0.5 * least) - 1).abs())
        other = solved(mf.solvers.projected_gradient(1000), g[few])
        away = square(g[few], other.weights - found.weights[few]) / least[few]
        apart = largest(apart, away.sqrt())
    yield claim(
        "SU-11",
        {
            "largest |min ⟨g_t, u*⟩/‖u*‖² - 1|": below,
            "largest relative difference of the value from ½‖u*‖²": off,
            "active set against projected gradient: largest relative difference of u*": apart,
        },
        f"{3 * draws} random matrices, T = 2, 5, 20: the minimum even equals ‖u*‖², and u* is "
        "unique. Of a plain step along u*; X-05 asks what an optimizer leaves of it",
    )
