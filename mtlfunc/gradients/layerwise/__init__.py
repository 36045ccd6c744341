"""Gramians layer by layer: what a forward shows, and the cheapest form of each layer's part."""

from .forms import Choices as Choices
from .forms import Form as Form
from .forms import Group as Group
from .forms import Layout as Layout
from .forms import costs as costs
from .forms import layouts as layouts
from .forms import sample_block as sample_block
from .forms import task_block as task_block
from .graph import Graph as Graph
from .graph import batching as batching
from .graph import better_apart as better_apart
from .graph import read_graph as read_graph
from .graph import separate as separate
from .plan import Engine as Engine
from .plan import Plan as Plan
from .plan import decide as decide
from .plan import groups_of as groups_of
from .plan import sample_plan as sample_plan
from .plan import worth_watching as worth_watching
from .samplewise import proved_apart as proved_apart
from .samplewise import rows_apart as rows_apart
from .taps import Tapped as Tapped
from .uses import Use as Use
