"""What a canvas shows, as numbers: the data of whatever is drawn, in the units of its axes."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection, PathCollection
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation
from mpl_toolkits.mplot3d.art3d import Poly3DCollection


def shown(panels: Iterable[Axes]) -> list[dict[str, Any]]:
    """A record a line, area, contour, cloud of points, surface or picture: its `panel` from 1, the
    panel's labels, its own in the legend, and its numbers. Null separates parts of an outline.
    """
    return [
        {"panel": i, "axes": [panel.get_xlabel(), panel.get_ylabel()], "label": label} | data
        for i, panel in enumerate(panels, 1)
        for artist in panel.get_children()
        for label in ["" if str(artist.get_label()).startswith("_") else str(artist.get_label())]
        if artist not in (panel.patch, *panel.spines.values()) and (data := _data(artist))
    ]


def _data(artist: Any) -> dict[str, Any]:
    names, gap = "xyz", np.full((1, 2), np.nan)
    if isinstance(artist, AxesImage):
        return {
            "rows": [*map(_list, np.ma.asanyarray(artist.get_array()))],
            "extent": _list(artist.get_extent()),
        }
    if isinstance(artist, Line2D):
        found = getattr(artist, "get_data_3d", artist.get_data)()
    elif isinstance(artist, Poly3DCollection):
        faces = artist._faces if hasattr(artist, "_faces") else artist._vec[:3].T  # pyright: ignore
        found = np.unique(faces.reshape(-1, 3), axis=0).T
    elif isinstance(artist, PathCollection):
        colour = artist.get_array()
        names, found = ("x", "y", "value"), [*np.transpose(artist.get_offsets())]
        found += [] if colour is None else [colour]
    elif isinstance(artist, Collection):
        codes = ((path, [0] if path.codes is None else path.codes) for path in artist.get_paths())
        starts = ((path.vertices, np.flatnonzero(np.equal(x, path.MOVETO))) for path, x in codes)
        parts = [part for x, at in starts for part in np.split(x, at[at > 0])]
        found = np.concatenate([gap, *(x for part in parts for x in (part, gap))])[1:-1].T
    elif isinstance(artist, Annotation) and artist.arrow_patch is not None:
        found = np.transpose([artist.xyann, artist.xy])
    elif isinstance(artist, Patch):
        found = artist.get_patch_transform().transform(artist.get_path().vertices).T
    else:
        return {}
    return dict(zip(names, map(_list, found), strict=False))


def _list(values: Any) -> list[float]:
    return [float(f"{x:.7g}") for x in np.ma.filled(np.asanyarray(values, float), np.nan).ravel()]
