"""One file a method: geometry and state in, weights out."""

from .cagrad import cagrad as cagrad
from .common import stateless as stateless
from .gradnorm import gradnorm as gradnorm
from .mean import mean as mean
from .mgda import mgda as mgda
from .pcgrad import pcgrad as pcgrad
