"""One file a method: geometry and state in, weights out."""

from ._align import align
from ._aligned_mtl import aligned_mtl
from ._cagrad import cagrad
from ._config import config
from ._conicgrad import conicgrad
from ._cosmos import cosmos
from ._db_mtl import db_mtl
from ._dualproj import dualproj
from ._dwa import dwa
from ._epo import epo
from ._excess_mtl import excess_mtl
from ._fairgrad import fairgrad
from ._famo import famo
from ._gls import gls
from ._gradnorm import gradnorm
from ._gradvac import gradvac
from ._imtl_g import imtl_g
from ._imtl_l import imtl_l
from ._krum import krum
from ._mean import mean
from ._mgda import mgda
from ._moco import moco
from ._modo import modo
from ._momentum import momentum
from ._nash_mtl import nash_mtl
from ._normalize import normalize
from ._pareto_mtl import pareto_mtl
from ._pbi import pbi
from ._pcd import pcd
from ._pcgrad import pcgrad
from ._rlw import rlw
from ._safe import safe
from ._sdmgrad import sdmgrad
from ._stch import stch
from ._upgrad import upgrad
from ._uw import uw
from .common import stateless
from .functional import aggregate, weights

__all__ = [
    "aggregate", "align", "aligned_mtl", "cagrad", "config", "conicgrad", "cosmos", "db_mtl",
    "dualproj", "dwa", "epo", "excess_mtl", "fairgrad", "famo", "gls", "gradnorm", "gradvac",
    "imtl_g", "imtl_l", "krum", "mean", "mgda", "moco", "modo", "momentum", "nash_mtl", "normalize",
    "pareto_mtl", "pbi", "pcd", "pcgrad", "rlw", "safe", "sdmgrad", "stateless", "stch", "upgrad",
    "uw", "weights",
]  # fmt: skip
