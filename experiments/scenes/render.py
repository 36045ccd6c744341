"""A ray caster for small rooms: an image, and the exact class, depth and normal of every pixel.

The camera sits at the origin; x points right, y down, z into the room. It is turned by yaw and
pitch, and a pixel's ray is (u, v, 1) in its own frame, so that the length along a ray is the depth
along the optical axis. A room has a floor, a ceiling, a left, a right and a back wall, a window and
a picture on the walls, spheres and boxes on the ground in four textures: 13 classes. Colours are
drawn independently of the class, except that a window shines. All is a function of a key.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

import mtlfunc as mf

TEXTURES = ("plain", "striped", "checked", "dotted")
CLASSES = (
    *("floor", "ceiling", "wall", "window", "picture"),
    *(f"{texture} sphere" for texture in TEXTURES),
    *(f"{texture} box" for texture in TEXTURES),
)
FLOOR, CEILING, WALL, WINDOW, PICTURE, SPHERE, BOX = 0, 1, 2, 3, 4, 5, 9
HEIGHT, WIDTH = 24, 36
FOCAL = 0.8  # in widths of the image
OBJECTS = 2  # of spheres, and as many boxes
NOISE = 0.02  # standard deviation of the pixels' noise, of a range of 1


class Rooms(NamedTuple):
    """Rooms and where they are seen from, in metres and radians."""

    walls: Float[Tensor, "room 5"]  # distances to the left, right, back wall, floor and ceiling
    turn: Float[Tensor, "room 2"]  # yaw, positive to the right; pitch, positive downwards
    light: Float[Tensor, "room 3"]  # unit, from the surface to the light
    paint: Float[Tensor, "room 5 3"]  # of the walls, in that order
    hung: Int[Tensor, "room 2"]  # the walls (0 left, 1 right, 2 back) of window and picture
    # centre along the wall and height, both half extents, of window and picture
    frames: Float[Tensor, "room 2 4"]
    centres: Float[Tensor, "room object 3"]  # spheres first, then boxes
    sizes: Float[Tensor, "room object 3"]  # half extents; a sphere's are its radius
    yaw: Float[Tensor, "room object"]
    texture: Int[Tensor, "room object"]
    colours: Float[Tensor, "room object 2 3"]


class Views(NamedTuple):
    """What is seen, and what is to be predicted."""

    image: Float[Tensor, "view 3 height width"]
    label: Int[Tensor, "view height width"]  # -1 where it is not known
    depth: Float[Tensor, "view 1 height width"]  # along the optical axis; 0 where it is not known
    normal: Float[Tensor, "view 3 height width"]  # unit, towards the camera; 0 where not known


class Surfaces(NamedTuple):
    """What rays meet."""

    label: Int[Tensor, "room ray"]
    depth: Float[Tensor, "room ray"]
    normal: Float[Tensor, "room ray 3"]  # in the camera's frame
    colour: Float[Tensor, "room ray 3"]


def rooms(key: Int[Tensor, ""], count: int) -> Rooms:
    """Random rooms. `key`: of the draw. `count`: how many."""
    streams = iter(range(1000))

    def draw(low: float, high: float, *shape: int) -> Tensor:
        each = mf.random.uniform(mf.random.fold_in(key, next(streams)), (count, *shape))
        return low + (high - low) * each

    def choose(options: int, *shape: int) -> Tensor:
        return draw(0.0, float(options), *shape).long().clamp(max=options - 1)

    back = draw(3.5, 6.5)
    walls = torch.stack([draw(1.2, 2.6), draw(1.2, 2.6), back, draw(1.3, 1.5), draw(1.0, 1.2)], -1)
    sizes = draw(0.25, 0.6, count_objects := 2 * OBJECTS, 3)
    sizes[:, :OBJECTS] = sizes[:, :OBJECTS, :1]
    depth = 1.7 + draw(0.0, 1.0, count_objects) * (back[:, None] - 2.4)
    sideways = draw(-0.55, 0.55, count_objects) * depth
    reach = sizes.amax(-1) * 1.5
    x = sideways.clamp(-walls[:, :1] + reach, walls[:, 1:2] - reach)
    y = walls[:, 3:4] - sizes[..., 1]
    light = torch.stack([draw(-0.6, 0.6), draw(-1.0, -0.6), draw(-0.9, -0.3)], -1)
    hung = choose(3, 2)
    # both on one wall would overlap: the picture then goes to the next one
    hung[:, 1] = torch.where(hung[:, 1] == hung[:, 0], (hung[:, 1] + 1) % 3, hung[:, 1])
    along = torch.where(hung == 2, draw(-0.7, 0.7, 2), draw(0.5, 0.85, 2) * back[:, None])
    frames = torch.stack([along, draw(-0.5, 0.1, 2), draw(0.35, 0.75, 2), draw(0.3, 0.5, 2)], -1)
    return Rooms(
        walls=walls,
        turn=torch.stack([draw(-0.25, 0.25), draw(-0.05, 0.2)], -1),
        light=light / light.norm(dim=-1, keepdim=True),
        paint=draw(0.25, 0.95, 5, 3),
        hung=hung,
        frames=frames,
        centres=torch.stack([x, y, depth], -1),
        sizes=sizes,
        yaw=draw(0.0, math.pi / 2, count_objects),
        texture=choose(len(TEXTURES), count_objects),
        colours=torch.stack(
            [draw(0.5, 1.0, count_objects, 3), draw(0.0, 0.45, count_objects, 3)], -2
        ),
    )


def pixels(height: int = HEIGHT, width: int = WIDTH) -> Float[Tensor, "ray 2"]:
    """(u, v) of every pixel's centre, row by row."""
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64),
        torch.arange(width, dtype=torch.float64),
        indexing="ij",
    )
    middle = torch.stack([columns + 0.5 - width / 2, rows + 0.5 - height / 2], -1)
    return middle.reshape(-1, 2) / (FOCAL * width)


def rotation(turn: Float[Tensor, "room 2"]) -> Float[Tensor, "room 3 3"]:
    """From the camera's frame to the room's: pitch about x, then yaw about y."""
    (sin_yaw, sin_pitch), (cos_yaw, cos_pitch) = turn.sin().unbind(-1), turn.cos().unbind(-1)
    zero, one = torch.zeros_like(sin_yaw), torch.ones_like(sin_yaw)
    about_y = torch.stack([cos_yaw, zero, sin_yaw, zero, one, zero, -sin_yaw, zero, cos_yaw], -1)
    about_x = torch.stack(
        [one, zero, zero, zero, cos_pitch, sin_pitch, zero, -sin_pitch, cos_pitch], -1
    )
    return about_y.reshape(-1, 3, 3) @ about_x.reshape(-1, 3, 3)


def cast(room: Rooms, rays: Float[Tensor, "ray 2"]) -> Surfaces:
    """What each ray meets first. `room`: the rooms, all seen along the same rays. `rays`: (u, v) in
    the camera's frame.
    """
    turned = rotation(room.turn)
    own = torch.cat([rays, torch.ones_like(rays[:, :1])], -1).to(turned.dtype)
    ray = own @ turned.mT  # [room, ray, 3]
    # a wall's outer normal; a ray leaves the room where it first crosses one of them
    outward = ray.new_tensor([[-1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, -1, 0]])
    towards = ray @ outward.T
    crossing = torch.where(towards > 0, room.walls[:, None] / towards, math.inf)
    depth, side = crossing.min(-1)
    normal = -outward[side]
    label = torch.where(side == 3, FLOOR, torch.where(side == 4, CEILING, WALL))
    point = depth[..., None] * ray
    colour = room.paint.gather(1, side[..., None].expand(-1, -1, 3))
    label, colour, glow = _hang(room, side, point, label, colour)
    for which in range(2 * OBJECTS):
        kind, meet = (SPHERE, _sphere) if which < OBJECTS else (BOX, _box)
        turn = room.turn.new_zeros(len(room.yaw), 2)
        turn[:, 0] = room.yaw[:, which]
        placed = rotation(turn)
        start = (-room.centres[:, None, which]) @ placed  # the camera, and the ray, in its frame
        along = ray @ placed
        found, facing = meet(start, along, room.sizes[:, None, which])
        nearer = found < depth
        inside = (start + found.where(nearer, 0.0)[..., None] * along) / room.sizes[:, None, which]
        depth = torch.where(nearer, found, depth)
        normal = torch.where(nearer[..., None], facing @ placed.mT, normal)
        paint = _textured(inside, room.texture[:, which], room.colours[:, which])
        colour = torch.where(nearer[..., None], paint, colour)
        label = torch.where(nearer, kind + room.texture[:, which, None], label)
        glow = glow & ~nearer
    shade = 0.45 + 0.55 * (normal * room.light[:, None]).sum(-1).clamp_min(0)
    shade = torch.where(glow, 1.0, shade * (1 - 0.06 * depth).clamp_min(0.3))
    return Surfaces(label, depth, normal @ turned, colour * shade[..., None])


def _hang(
    room: Rooms, side: Tensor, point: Tensor, label: Tensor, colour: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Window and picture on the walls: labels, colours, and where it shines."""
    glow = torch.zeros_like(label, dtype=torch.bool)
    for i, kind in enumerate((WINDOW, PICTURE)):
        wall, frame = room.hung[:, None, i], room.frames[:, None, i]
        along = torch.where(wall == 2, point[..., 0], point[..., 2])
        across = (along - frame[..., 0]) / frame[..., 2]
        down = (point[..., 1] - frame[..., 1]) / frame[..., 3]
        inside = (side == wall) & (across.abs() < 1) & (down.abs() < 1)
        if kind == WINDOW:
            sky = torch.stack([0.75 + 0.2 * down, 0.85 + 0.1 * down, torch.ones_like(down)], -1)
            bar = (across.abs() < 0.08) | (down.abs() < 0.1)
            paint = torch.where(bar[..., None], 0.55, sky)
            glow = inside
        else:
            phase = 9 * frame[..., :3]
            waves = (3 * across[..., None] + phase).sin() * (3 * down[..., None] - phase).cos()
            border = torch.maximum(across.abs(), down.abs()) > 0.85
            paint = torch.where(border[..., None], 0.15, 0.5 + 0.5 * waves)
        label = torch.where(inside, kind, label)
        colour = torch.where(inside[..., None], paint, colour)
    return label, colour, glow


def _sphere(start: Tensor, along: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Depth of the first crossing (infinite for none) and the outward normal there."""
    square, middle = along.square().sum(-1), (start * along).sum(-1)
    rest = start.square().sum(-1) - size[..., 0].square()
    inside = middle.square() - square * rest
    depth = (-middle - inside.clamp_min(0).sqrt()) / square
    depth = torch.where((inside > 0) & (depth > 0), depth, math.inf)
    met = start + depth.where(depth < math.inf, 0.0)[..., None] * along
    return depth, met / size


def _box(start: Tensor, along: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """As `_sphere`, for a box along the axes of its own frame."""
    one, other = (-size - start) / along, (size - start) / along
    enter, axis = torch.minimum(one, other).max(-1)
    leave = torch.maximum(one, other).amin(-1)
    depth = torch.where((enter < leave) & (enter > 0), enter, math.inf)
    faces = torch.eye(3, dtype=along.dtype, device=along.device)[axis]
    return depth, -along.sign() * faces


def _textured(inside: Tensor, texture: Tensor, colours: Tensor) -> Tensor:
    """Colours `[room, ray, 3]` of points, in units of the object's half extents."""
    wave = (7.0 * inside).sin()
    cells = torch.remainder(inside * 2.2, 2) - 1
    second = torch.stack(
        [
            torch.zeros_like(inside[..., 0], dtype=torch.bool),
            wave[..., 1] > 0,
            wave.prod(-1) > 0,
            cells.square().sum(-1) < 0.55,
        ]
    )
    chosen = second.gather(0, texture[None, :, None].expand(1, -1, inside.shape[1]))[0]
    return torch.where(chosen[..., None], colours[:, None, 1], colours[:, None, 0])


def views(key: Int[Tensor, ""], count: int) -> Views:
    """Random rooms, `count` of the draw `key`, with some noise in the pixels; 32 at a time."""
    drawn, rays, parts = rooms(mf.random.fold_in(key, 0), count), pixels(), []
    for first in range(0, count, 32):
        seen = cast(Rooms(*(leaf[first : first + 32] for leaf in drawn)), rays)
        parts.append(
            Views(
                _image(seen.colour),
                seen.label.reshape(-1, HEIGHT, WIDTH),
                _image(seen.depth[..., None]),
                _image(seen.normal),
            )
        )
    joined = Views(*(torch.cat(leaves) for leaves in zip(*parts, strict=True)))
    noise = mf.random.normal(mf.random.fold_in(key, 1), tuple(joined.image.shape))
    return joined._replace(image=(joined.image + NOISE * noise).clamp(0, 1))


def _image(values: Float[Tensor, "view ray channel"]) -> Tensor:
    return values.mT.reshape(len(values), -1, HEIGHT, WIDTH).to(torch.float32)
