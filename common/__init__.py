"""What experiments and reproductions share: cells that are kept, rates that are chosen, reports.

An experiment says what one cell is (`cells.Cell`: a problem, a method, one of its variants, a
learning rate, a seed) and how to perform it; `study.conduct` runs all that the plan needs and
nothing twice, chooses rates on validation data, and `command.finish` makes a command of it that can
be stopped at any time and goes on where it was.
"""

from . import sources as sources  # it looks at all of them before one is imported
