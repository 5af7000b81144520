"""Procedural greyscale images that stand in for photos: dead leaves made of photo-like materials.

Outlines (planes, power-law leaves, objects, lattices, curves, lettering) occlude one another on a
canvas of integers; a table, one row per outline, then gives each pixel tone, shading and texture.

After Lee, Mumford & Huang 2001 (dead leaves, radii of density r^-3); Achddou et al. 2021, Synthetic
images as a regularity prior for image restoration neural networks (textures, depth of field);
Baradad et al. 2021, Learning to See by Looking at Noise. No photo is used here; the constants were
set by comparing statistics with those of real photos at 64x64.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_SUPER = 2  # canvas pixels per image pixel: edges are drawn hard and get soft by averaging
_UNIT = 192  # lengths below are in 1/192 of the canvas, so a scene is the same at any size
_TILE = 256  # side of a texture; a power of two, so that coordinates wrap with a bit mask
_VERTICES = 24  # per outline; a multiple of 8, so that boxes get their corners


def _power_law(rng, n, low, high, exponent):
    few = 1 - exponent
    return (low**few + rng.random(n) * (max(high, low + 0.1) ** few - low**few)) ** (1 / few)


def _rotate(points, angle):
    """The points turned about the origin; angle: one number, or one per outline."""
    x, y, cos, sin = *np.moveaxis(points, -1, 0), np.cos(angle), np.sin(angle)
    return np.stack((x * cos - y * sin, x * sin + y * cos), axis=-1)


@functools.cache
def _bank():
    """Textures, int8, end to end (mean 0, deviation 32); where rough and regular ones start."""
    rng = np.random.default_rng(2001)  # a seed of its own: images must not depend on call order
    freq, grid = np.fft.fftfreq(_TILE) * _TILE, np.arange(_TILE)

    def noise(slope, stretch=1.0):  # 1/f^slope in amplitude; stretched: grain, hair, water
        radius = np.maximum(np.hypot(freq[:, None] / stretch, freq * stretch), 1)
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((_TILE, _TILE))) / radius**slope).real
        return (field - field.mean()) / field.std()

    def cells(n):  # cobbles, scales, gravel: nearest points, with dark joints
        points, tones = rng.random((n, 2)) * _TILE, rng.standard_normal(n)
        dy, dx = (np.abs((grid[:, None] - p + 128) % _TILE - 128) for p in points.T)
        rows = []
        for row in dy:
            far = row**2 + dx**2
            near = np.sqrt(np.partition(far, 1, axis=1)[:, :2])
            rows.append(np.clip((near[:, 1] - near[:, 0]) / 3, 0, 1) * (1.5 + tones[far.argmin(1)]))
        return np.array(rows) + 0.4 * noise(1.0)

    def litter(low, high):  # foliage, rubble, crowds: small dead leaves
        tile, place = Image.new("L", (_TILE, _TILE), 128), rng.uniform(-20, 276, (4000, 1, 2))
        pen, tones = ImageDraw.Draw(tile), np.clip(rng.normal(128, 50, 4000), 0, 255).astype(int)
        for points, tone in zip(_outlines(rng, 4000, low, high, 0.3) + place, tones.tolist()):
            pen.polygon(points.ravel().tolist(), fill=tone)
        return np.asarray(tile) / 45.0 + 0.5 * noise(1.2)

    def slats(period):  # stripes of random widths and tones: boards, shelves, folds, books
        steps = np.floor(np.cumsum(rng.exponential(1 / period, _TILE))).astype(int)
        return rng.standard_normal(steps[-1] + 1)[steps]

    smooth = [noise(slope) for slope in (1.5, 1.75, 2.0, 2.25, 2.5)]
    rough = [noise(slope) for slope in (0.5, 0.75, 1.0, 1.25)]
    rough += [noise(*pair) for pair in ((1.0, 3.0), (1.3, 5.0), (1.6, 3.0), (1.2, 0.5))]
    rough += [-np.abs(noise(1.3)), np.tanh(4 * noise(1.6)), np.exp(0.8 * noise(0.9))]
    rough += [cells(n) for n in (60, 250, 900)] + [litter(*r) for r in ((2, 20), (3, 40), (4, 12))]
    regular = []
    for period in (8, 16, 32):
        wave, row = np.sin(grid * (2 * np.pi / period)), grid[:, None] // (period // 2)
        brick, across = np.divmod(grid + row % 2 * (period // 2), period)
        joint = (across < 2) | (grid[:, None] % (period // 2) < 2)
        tones, x, y = rng.standard_normal((_TILE, _TILE)), slats(period), slats(period)[:, None]
        for field in (
            wave,
            np.sign(wave - 0.4),
            np.sign(wave * wave[:, None]),  # gratings, checks
            tones[row, brick] - 2.5 * joint,  # bricks
            x,
            x + 0.2 * y,
            np.where(x > 0.3, x, y),
            np.maximum(x, y) * (x + y < 2),
        ):
            regular.append(field + 0.35 * noise(1.2))
    tiles = np.array(smooth + rough + regular)
    tiles -= tiles.mean(axis=(1, 2), keepdims=True)
    tiles *= 32 / tiles.std(axis=(1, 2), keepdims=True)
    tiles = np.rint(np.clip(tiles, -127, 127)).astype(np.int8).ravel()
    return tiles, len(smooth), len(smooth + rough)


def _outlines(rng, n, low, high, boxy, exponent=3.0):
    """n closed outlines around the origin, (n, vertices, 2): stretched, wobbly super-ellipses."""
    angle = np.arange(_VERTICES) * (2 * np.pi / _VERTICES)
    box = rng.random((n, 1)) < boxy
    power = np.where(box, 24.0, rng.choice([1.0, 1.5, 2.0, 2.0, 2.0, 2.5], (n, 1)))
    shape = (np.abs(np.cos(angle)) ** power + np.abs(np.sin(angle)) ** power) ** (-1 / power)
    wobble = rng.standard_normal((2, n, 4)) * (rng.random((n, 1)) ** 3 * 0.3 * ~box)
    waves = np.arange(2, 6)[:, None] * angle
    shape *= np.exp(wobble[0] @ np.cos(waves) + wobble[1] @ np.sin(waves))
    shape *= _power_law(rng, n, low, high, exponent)[:, None]
    stretch = np.exp(rng.normal(0, 0.4, (n, 1)) * (1 + box))
    points = np.stack((shape * np.cos(angle) * stretch, shape * np.sin(angle) / stretch), axis=2)
    upright = box & (rng.random((n, 1)) < 0.7)
    return _rotate(points, rng.uniform(-np.pi, np.pi, (n, 1)) * np.where(upright, 0.02, 1))


def _planes(rng, n):
    """Half planes with a straight or rough rim: walls, table tops, horizons, hills, tree lines."""
    along = np.linspace(-280, 280, 2 * _VERTICES)
    steps = rng.standard_normal((n, along.size)) * rng.choice([0.15, 1.0], (n, 1))
    waves = np.cos(along * rng.uniform(0.01, 0.05, (n, 1)) + rng.uniform(0, 6, (n, 1)))
    rim = rng.exponential(8, (n, 1)) * (rng.random((n, 1)) < 0.5) * (waves + steps)
    rim = np.stack((np.broadcast_to(along, rim.shape), rim), axis=2)
    rest = np.broadcast_to([[280.0, 400.0], [-280.0, 400.0]], (n, 2, 2))
    turn = rng.choice([0, 0, 0, 0, 0, 1, -1, 2], (n, 1)) * (np.pi / 2) + rng.laplace(0, 0.1, (n, 1))
    return _rotate(np.concatenate((rim, rest), axis=1), turn) + rng.uniform(20, 172, (n, 1, 2))


def _object(rng):
    """A body with parts, often symmetric: faces, animals, cars, fruit, plates, flowers."""
    body = _outlines(rng, 1, 18, 75, 0.35)
    reach, n = np.abs(body).max(), int(np.exp(rng.uniform(0.7, 3.6)))
    parts = _outlines(rng, n, 0.03 * reach, 0.5 * reach, 0.3, rng.uniform(1.2, 2.8))
    parts += rng.normal(0, 0.42, (n, 1, 2)) * reach
    if rng.random() < 0.6:
        parts = np.stack((parts, parts * [-1, 1]), axis=1).reshape(-1, _VERTICES, 2)
    rings = body * np.linspace(1, rng.uniform(0.2, 0.9), rng.integers(1, 5))[:, None, None]
    limbs = rng.integers(0, max(len(parts) // 3, 1))  # these stick out from behind the body
    points = np.concatenate((parts[:limbs], rings, parts[limbs:]))
    return _rotate(points, rng.laplace(0, 0.3)) + np.clip(rng.normal(96, 35, 2), 20, 172)


def _lattice(rng, glyphs):
    """One shape (windows, bars, seats) or random strokes (lettering) on a grid in perspective."""
    pitch = np.exp(rng.uniform(1.8, 3.8, 2))
    grid = np.stack(np.meshgrid(*map(np.arange, rng.integers(1, 14, 2))), axis=2).reshape(-1, 1, 2)
    grid = (grid - grid.mean(axis=0)) * pitch + rng.normal(0, rng.choice([0, 0, 1, 4]), grid.shape)
    if glyphs:
        shape = rng.integers(-1, 2, (len(grid), 4, 2)) * (0.36 * pitch)
    else:
        shape = _outlines(rng, 1, 1, 1, 0.7) * pitch * rng.uniform(0.25, 0.6)
    points = _rotate(grid + shape, rng.laplace(0, 0.1) + rng.choice([0, 0, np.pi / 2]))
    depth = 1 + points @ (rng.normal(0, 0.003, 2) * (rng.random() < 0.6))
    return points / np.maximum(depth, 0.3)[:, :, None] + rng.uniform(20, 172, 2)


def _curves(rng, n):
    """Lines that share a direction more or less: grass, branches, wires, bars, cracks."""
    heading = rng.choice([0, 0.5, 0.5, rng.random()]) * np.pi + rng.normal(0, 0.04)
    bend = rng.choice([0, 0.05, 0.3]) * rng.standard_normal((n, 1)) + rng.normal(0, 0.04)
    wiggle = rng.choice([0, 0, 0.1, 0.4]) * rng.standard_normal((n, 11)).cumsum(axis=1)
    turn = rng.choice([0, 0, 0.05, 0.3, 1.5]) * rng.standard_normal((n, 1))
    turn = turn + bend * np.arange(11) + wiggle
    length = rng.choice([3, 8, 20, 40]) * np.exp(rng.normal(0, 0.3, (n, 1)))
    path = np.stack((np.cos(turn) * length, np.sin(turn) * length), axis=2).cumsum(axis=1)
    path -= path[:, 5:6] * rng.choice([0, 1])
    spaced = np.stack((np.zeros(n), (np.arange(n) - n // 2) * rng.uniform(5, 30)), axis=1)[:, None]
    if rng.random() < 0.5:  # side by side
        return _rotate(path + spaced, heading) + rng.uniform(20, 172, 2)
    return _rotate(path, heading) + rng.uniform(0, _UNIT, (n, 1, 2))


def _materials(rng, n, tones, tiles, rough, mix):
    """(n, 12): tone; shading x, y, radial; texture cos, sin, u, v; two contrasts; two tiles."""
    turn = np.where(rng.random(n) < 0.85, rng.normal(0, 0.06, n), rng.uniform(-np.pi, np.pi, n))
    turn += rng.choice([0, np.pi / 2], n)
    step = np.exp(rng.uniform(-0.9, 0.4, n))  # texels per canvas unit; more would be noise
    shade = rng.laplace(0, 10, (n, 3)) + rng.normal(0, 8, 3)  # the second part: one light for all
    contrast = rough * rng.exponential([1.1, 0.8], (n, 2)) ** 1.2 * (rng.random((n, 2)) < 0.65)
    tone = rng.choice(tones) * (1 - mix) + mix * rng.choice(tones, n) + rng.normal(0, 8, n)
    return np.column_stack(
        (
            tone,
            shade,
            step * np.cos(turn),
            step * np.sin(turn),
            rng.uniform(0, _TILE, (n, 2)),
            contrast,
            rng.choice(tiles, (n, 2)),
        )
    )


def _scene(rng):
    """Back to front: [(outlines, line width or 0)]; their materials; how many are background."""
    bank, n_smooth, n_rough = _bank()
    tones = rng.normal(0, rng.uniform(40, 80), rng.integers(3, 8))
    starts = np.array([0, n_smooth, n_rough, bank.size // _TILE**2])
    sorts = rng.choice(3, 6, p=[0.25, 0.55, 0.2])  # a photo shows few materials, mostly rough ones
    tiles, rough = rng.integers(starts[sorts], starts[sorts + 1]), rng.gamma(1.5, 6)
    man_made = rng.choice([0.05, 0.3, 0.95])
    groups, materials = [], []

    def add(points, kinds=None, width=0.0, mix=1.0):
        table = _materials(rng, min(kinds or len(points), len(points)), tones, tiles, rough, mix)
        materials.append(table[rng.integers(0, len(table), len(points))] if kinds else table)
        groups.append((points, width))

    def heap(n, spread, middle, kinds=None):
        radii = np.exp(rng.uniform(0.6, 2.5)), rng.uniform(15, 100)
        points = _outlines(rng, n, *radii, man_made, rng.uniform(2, 3.2))
        place = middle + spread * rng.uniform(-1, 1, (n, 2, 2)).mean(axis=1)[:, None]
        add(points + place, kinds, mix=rng.uniform(0.1, 0.9))

    add(np.array([[[-9, -9], [201, -9], [201, 201], [-9, 201.0]]]))
    if rng.random() < 0.85:
        add(_planes(rng, int(rng.integers(1, 5))))
    if rng.random() < 0.5:
        heap(int(np.exp(rng.uniform(1, 5.5))), 150, 96)
    background = sum(len(points) for points, _ in groups)
    things = rng.choice(5, p=[0.2, 0.35, 0.25, 0.15, 0.05])
    for kind in rng.choice(5, things, p=[0.4, 0.18, 0.18, 0.06, 0.18]):
        kinds, n = int(rng.integers(1, 9)), int(np.exp(rng.uniform(0.8, 4.8)))
        if kind in (0, 1):
            points = _object(rng) if kind == 0 else _lattice(rng, False)
            if rng.random() < 0.4:  # rims and frames
                middle = points.mean(axis=1, keepdims=True)
                framed = (middle + (points - middle) * rng.uniform(1.05, 1.3), points)
                points = np.stack(framed, axis=1).reshape(-1, _VERTICES, 2)
            add(points, kinds + kind % 2, mix=rng.uniform(0.2, 0.9))
        elif kind == 2:
            add(_curves(rng, n // 2), kinds, np.exp(rng.uniform(0, 2.6)), 0.7)
        elif kind == 3:
            add(_lattice(rng, True), 1, rng.uniform(1, 3))
        else:
            heap(n, rng.uniform(20, 100, 2), rng.uniform(20, 172, 2), kinds)
    return groups, np.concatenate(materials).T.astype(np.float32), background


def synthetic_image(seed, index, size=96):
    """Image number index of that seed, (size, size) uint8, whatever was asked for before."""
    rng = np.random.default_rng((seed, index))
    (groups, table, background), (bank, n_smooth, _) = _scene(rng), _bank()
    side = _SUPER * size
    scale, canvas, frames, number = side / _UNIT, Image.new("I", (side, side)), [], 0
    pen = ImageDraw.Draw(canvas)
    for points, width in groups:
        extent = np.maximum(np.ptp(points, axis=1).max(axis=1), 2)
        frames.append(np.column_stack((points.mean(axis=1), 2 / extent)).astype(np.float32))
        for outline in (points * scale).reshape(len(points), -1).tolist():
            if width:
                pen.line(outline, fill=number, width=max(round(width * scale), 1))
            else:
                pen.polygon(outline, fill=number)
            number += 1
    ids = np.asarray(canvas).ravel().astype(np.intp)
    y, x = (np.mgrid[:side, :side].reshape(2, -1) / scale).astype(np.float32)
    light = (rng.integers(n_smooth) * _TILE + y.astype(np.intp)) * _TILE + x.astype(np.intp)
    light = 1 + bank.take(light) * np.float32(rng.exponential(0.004))
    cx, cy, inverse = (column.take(ids) for column in np.concatenate(frames).T)
    z, gx, gy, radial, cos, sin, u, v, coarse, fine = (column.take(ids) for column in table[:10])
    dx, dy = (x - cx) * inverse, (y - cy) * inverse
    z += gx * dx + gy * dy - radial * (dx * dx + dy * dy)
    if rng.random() < 0.5:  # surfaces recede: the textures shrink to one side
        depth = 1 + x * np.float32(rng.normal(0, 0.002)) + y * np.float32(rng.uniform(0, 0.01))
        depth = np.float32(1.5) / np.maximum(depth, 0.3)
        x, y = x * depth, y * depth
    u, v = cos * x + sin * y + u, cos * y - sin * x + v
    first_texel = table[10:].astype(np.intp) * _TILE**2
    for contrast, first, zoom in zip((coarse, fine), first_texel, (1, 2)):
        texel = ((v * zoom).astype(np.intp) % _TILE) * _TILE + (u * zoom).astype(np.intp) % _TILE
        z += contrast * np.float32(1 / 32) * bank.take(first.take(ids) + texel)
    z *= light
    if rng.random() < 0.5:  # what lies lower is darker near what lies on top of it
        height = Image.fromarray((ids * (255 / number)).astype(np.uint8).reshape(side, side))
        radius = rng.uniform(1, 8) * scale
        over = np.asarray(height.filter(ImageFilter.GaussianBlur(radius)), np.float32)
        over = np.roll(over, np.rint(rng.uniform(-1, 1, 2) * radius).astype(int), (0, 1))
        z -= np.float32(rng.uniform(0.1, 0.7)) * np.maximum(over - height, 0).ravel()
    # A photographer's exposure: mostly a full range, with soft ends; less contrast in busy scenes.
    spread = z.std() + 0.9 * np.abs(np.diff(z)).mean() + 1
    gain = np.clip(np.clip(rng.normal(73, 18), 12, 130) / spread, 0.3, 3.5)
    z = (z - z.mean()) * np.float32(gain) + np.float32(rng.normal(-6, 29))
    z = 127.5 + z / (1 + np.abs(z / 128) ** 4) ** np.float32(0.25)
    image = Image.fromarray(np.clip(z, 0, 255).astype(np.uint8).reshape(side, side))
    if rng.random() < 0.35 and background < number:  # depth of field
        far = (ids < background).reshape(side, side)
        blur = ImageFilter.GaussianBlur(rng.exponential(2) * scale)
        soft, weight = (
            np.asarray(Image.fromarray(np.uint8(far * part)).filter(blur), np.float32)
            for part in (np.asarray(image), 255)
        )
        soft = np.minimum(soft * 255 / np.maximum(weight, 5), 255)
        image = Image.fromarray(np.where(far, soft, image).astype(np.uint8))
    lens = ImageFilter.GaussianBlur(rng.uniform(0, 0.9) * scale)
    image = np.asarray(image.filter(lens).reduce(_SUPER), np.float32)
    image = image + rng.standard_normal((size, size), np.float32) * np.float32(rng.exponential(1.2))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def synthetic_colour_image(seed, index, size=128):
    """Image number index of that seed in colour, (size, size, 3) uint8: a synthetic_image whose levels become colours.

    The colour swings smoothly with the level, in each image in another way, so it changes where the image does.
    """
    rng = np.random.default_rng((seed, index, 3))
    levels = np.arange(256.0)[:, None]
    swings = rng.exponential(25) * np.sin(levels * rng.uniform(0.005, 0.05, 3) + rng.uniform(0, 2 * np.pi, 3))
    swings -= swings @ np.array([[0.3], [0.59], [0.11]])  # the brightness stays
    return np.clip(np.rint(levels + swings), 0, 255).astype(np.uint8)[synthetic_image(seed, index, size)]
