"""Plane and solid geometry of the pictures: clipped polygons, convex hulls, cones, the simplex."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..analysis.diagnostics import stationarity


def hull(points: np.ndarray) -> list[np.ndarray]:
    """Polygons `[corner, dim]` that bound the convex hull of points `[n, dim]`, dim 2 or 3.

    In the plane one polygon with its corners in order, in space the triangles of the surface.
    Points that span less than the space give one flat polygon, segment or point.
    """
    from scipy.spatial import ConvexHull

    centred = points - points.mean(0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    # Coordinates within the span, scaled alike: which points are corners does not depend on that.
    inside = left[:, lengths > 1e-12 * np.abs(points).max(initial=0)]
    if inside.shape[1] == 0:
        return [points[:1]]
    if inside.shape[1] == 1:
        return [points[[inside[:, 0].argmin(), inside[:, 0].argmax()]]]
    found = ConvexHull(inside)
    if inside.shape[1] == 2:
        return [points[found.vertices]]
    return [points[corners] for corners in found.simplices]


def cone_faces(rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    """Polygons `[corner, 3]` that bound {d: g_t·d >= 0 for all t}.

    The box ends the cone, and before it a plane across its axis: the shortest combination of unit
    gradients, which vanishes with the cone's inside.
    """
    unit, size = units(rows), float((high - low).max())
    ends = [(np.eye(3), low), (-np.eye(3), -high)]
    if len(unit):
        axis = stationarity(torch.from_numpy(unit @ unit.T)).weights.numpy() @ unit
        if np.linalg.norm(axis) > 1e-6:
            ends.append((-axis[None], -np.linalg.norm(axis) * np.linalg.norm(rows, axis=1).max()))
    faces = []
    for normal in unit:
        # A square in the plane g_t·d = 0, cut by the other tasks' half-spaces.
        basis = np.linalg.svd(normal[None])[2][1:]
        square = 4 * size * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ basis
        face = clip(square, unit, slack=1e-9 * size)
        for normals, offsets in ends:
            face = clip(face, normals, offsets)
        if np.abs(face).max(initial=0) > 1e-6 * size:
            faces.append(face)
    return faces


def units(rows: np.ndarray) -> np.ndarray:
    """Directions `[n, dim]` of the rows that are not zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1.0))[lengths[:, 0] > 0]


def clip(
    polygon: np.ndarray, normals: np.ndarray, offsets: np.ndarray | float = 0.0, slack: float = 0.0
) -> np.ndarray:
    """The part of a convex polygon `[n, dim]` where normal·x >= offset for all normals `[k, dim]`.

    By Sutherland and Hodgman 1974; empty and flat parts are also parts.
    """
    for normal, offset in zip(normals, np.broadcast_to(offsets, len(normals)), strict=True):
        height = polygon @ normal - offset + slack
        kept = []
        for i in range(len(polygon)):
            j = (i + 1) % len(polygon)
            if height[i] >= 0:
                kept.append(polygon[i])
            if (height[i] > 0 > height[j]) or (height[i] < 0 < height[j]):
                share = height[i] / (height[i] - height[j])
                kept.append(polygon[i] + share * (polygon[j] - polygon[i]))
        polygon = np.array(kept).reshape(-1, polygon.shape[1])
    return polygon


def barycentric(weights: np.ndarray) -> np.ndarray:
    """Points `[n, 2]` of weights `[n, 3]`: task 1 left, task 2 right, task 3 on top."""
    return weights @ np.array([[0, 0], [1, 0], [0.5, math.sqrt(3) / 2]])


def staircase(kept: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Corners `[n, 2]` of the region that non-dominated points `[n, 2]` dominate up to `corner`.

    The points are sorted by their first coordinate; those beyond the corner add nothing.
    """
    inside = kept[(kept < corner).all(1)]
    last = [[corner[0], inside[-1, 1] if len(inside) else corner[1]]]
    return np.concatenate([inside, last])
