"""How often --predict calls a digit "unsure", and how often things that are no digits:
python tests/benchmarks/unsure.py MNIST_FOLDER FASHION_FOLDER PHOTO_FOLDER [COUNT]

It takes the first COUNT test images of MNIST and of Fashion-MNIST, and draws COUNT shapes, letters and doodles, twice;
a few are pieces of photos. `is_sure` was made with a look at the kinds "tuned"; the others were kept back.
Not a test (pytest does not collect it).
"""

import os
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from depixelation.commands.classify import Reader  # noqa: E402
from depixelation.commands.isolating import find_things  # noqa: E402
from depixelation.engine.models import load_models  # noqa: E402
from depixelation.engine.options import ModelOptions  # noqa: E402
from depixelation.images.digits import find_folder, read_part  # noqa: E402
from depixelation.images.photo_files import list_files, read_photo  # noqa: E402
from depixelation.tasks.classification import TASK  # noqa: E402

SIDE = 200  # pixels, of a drawn picture
FINE = 3  # times as large while it is drawn


def arc(x, y, width, height, start, end):
    """Points of an elliptic arc, angles in degrees from the right, clockwise."""
    angles = np.radians(np.linspace(start, end, 30))
    return [(x + width * cos, y + height * sin) for cos, sin in zip(np.cos(angles), np.sin(angles))]


def star(corners, inner):
    """A star with so many corners; inner: its radius between them."""
    angles = np.radians(-90 + 180 / corners * np.arange(2 * corners + 1))
    return [((1, inner)[i % 2] * np.cos(angle), (1, inner)[i % 2] * np.sin(angle)) for i, angle in enumerate(angles)]


def polygon(corners, start=-90):
    angles = np.radians(start + 360 / corners * np.arange(corners + 1))
    return list(zip(np.cos(angles), np.sin(angles)))


def heart():
    t = np.linspace(0, 2 * np.pi, 40)
    x, y = np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return list(zip(16 / 17 * x, -y / 17))


def wing(side):
    points = (0, 0), (0.5, -0.9), (0.95, -0.7), (0.8, -0.05), (0.9, 0.5), (0.5, 0.8), (0, 0.1), (0, 0)
    return [(side * x, y) for x, y in points]


T = np.linspace(0, 14, 90)
X = np.linspace(-1, 1, 50)
TUNED = {  # name: strokes, lists of points from -1 to 1
    "triangle": [polygon(3)],
    "square": [polygon(4, -45)],
    "star": [star(5, 0.4)],
    "heart": [heart()],
    "plus": [[(-1, 0), (1, 0)], [(0, -1), (0, 1)]],
    "arrow": [[(-1, 0), (1, 0)], [(0.4, -0.5), (1, 0), (0.4, 0.5)]],
    "spiral": [list(zip(T / 14 * np.cos(T), T / 14 * np.sin(T)))],
    "house": [[(-0.8, 1), (-0.8, -0.1), (0, -1), (0.8, -0.1), (0.8, 1), (-0.8, 1)]],
    "fish": [arc(-0.2, 0, 0.7, 0.45, 30, 330), [(0.4, 0.2), (1, 0.5), (1, -0.5), (0.4, -0.2)]],
    "flower": [arc(0.45 * np.cos(a), 0.45 * np.sin(a) - 0.3, 0.3, 0.3, 0, 360) for a in np.arange(5) * np.pi * 0.4],
    "cup": [[(-0.8, -0.6), (-0.6, 0.8), (0.4, 0.8), (0.6, -0.6), (-0.8, -0.6)], arc(0.6, 0, 0.35, 0.35, -80, 100)],
    "wave": [list(zip(X, 0.4 * np.sin(4 * X)))],
    "ladder": [[(x, -1), (x, 1)] for x in (-0.4, 0.4)] + [[(-0.4, y), (0.4, y)] for y in (-0.6, -0.2, 0.2, 0.6)],
    "boat": [[(-1, 0.4), (1, 0.4), (0.6, 0.9), (-0.6, 0.9), (-1, 0.4)], [(0, 0.4), (0, -1), (0.7, 0.2), (0, 0.2)]],
}
KEPT_BACK = {
    "pentagon": [polygon(5)],
    "hexagon": [polygon(6)],
    "star of six": [star(6, 0.5)],
    "diamond": [[(0, -1), (0.6, 0), (0, 1), (-0.6, 0), (0, -1)]],
    "crescent": [arc(0, 0, 0.9, 0.9, 50, 310) + arc(0.35, 0, 0.65, 0.72, 290, 70)],
    "cross": [[(-0.8, -0.9), (0.8, 0.9)], [(0.8, -0.9), (-0.8, 0.9)]],
    "lightning": [[(0.2, -1), (-0.6, 0.1), (0, 0.1), (-0.3, 1), (0.6, -0.2), (0.05, -0.2), (0.5, -1), (0.2, -1)]],
    "umbrella": [
        arc(0, 0, 0.9, 0.8, 180, 360),
        [(-0.9, 0), (0.9, 0)],
        [(0, 0), (0, 0.8)],
        arc(-0.2, 0.8, 0.2, 0.2, 0, 150),
    ],
    "butterfly": [wing(1), wing(-1), [(0.2, -1), (0, -0.6), (0, 0.7)], [(0, -0.6), (-0.2, -1)]],
    "tree": [arc(0, -0.4, 0.55, 0.55, 0, 360), [(-0.12, 0.15), (-0.12, 1), (0.12, 1), (0.12, 0.15)]],
    "smiley": [arc(0, 0, 0.95, 0.95, 0, 360), arc(0, 0.1, 0.5, 0.45, 20, 160)]
    + [arc(x, -0.3, 0.1, 0.1, 0, 360) for x in (-0.35, 0.35)],
    "key": [arc(-0.6, 0, 0.35, 0.35, 0, 360), [(-0.25, 0), (1, 0), (1, 0.3)], [(0.7, 0), (0.7, 0.3)]],
    "sun": [arc(0, 0, 0.45, 0.45, 0, 360)]
    + [[(0.6 * np.cos(a), 0.6 * np.sin(a)), (np.cos(a), np.sin(a))] for a in np.arange(8) * np.pi / 4],
    "person": [arc(0, -0.7, 0.28, 0.28, 0, 360), [(0, -0.42), (0, 0.3)], [(-0.6, -0.1), (0.6, -0.1)]]
    + [[(-0.5, 1), (0, 0.3), (0.5, 1)]],
}
GROUPS = {  # name: (shapes, those that are filled, letters unlike digits, a font, photos of the folder from which on)
    "tuned": (TUNED, ("heart", "star", "triangle", "fish", "house"), "ACEFHKMadefhkmΩ&$?", "DejaVuSans-Bold.ttf", 0),
    "kept back": (
        KEPT_BACK,
        ("crescent", "butterfly", "hexagon", "lightning", "tree"),
        "NPRTUVWXYnprtuvwxyΣ@%#",
        "DejaVuSerif.ttf",
        1,
    ),
}


def doodle(rng, waves):
    """A line without aim: a sum of waves, or corners joined smoothly."""
    if waves:
        t, sizes = np.linspace(0, 2 * np.pi, 120), 1 / np.arange(1, 6)
        xy = [sum(rng.normal(0, s) * np.sin(k * t + rng.uniform(0, 6.3)) for k, s in enumerate(sizes, 1)) for _ in "xy"]
        return [list(zip(*(xy / np.abs(xy).max())))]
    corners = rng.normal(0, 0.6, (int(rng.integers(4, 9)), 2))
    t = np.linspace(0, len(corners) - 1, 80)
    first = np.minimum(t.astype(int), len(corners) - 2)
    share = (t - first)[:, None]
    share = share * share * (3 - 2 * share)
    return [list(map(tuple, corners[first] * (1 - share) + corners[first + 1] * share))]


def font(name):
    import matplotlib  # for its fonts

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name)


def draw(strokes, rng, filled=False, letter="", face=""):
    """A picture, (SIDE, SIDE) uint8, of strokes or of a letter: any size, place, thickness and slight turn."""
    paper, ink = (230, 40) if rng.random() < 0.75 else (25, 210)
    paper, ink = paper + int(rng.integers(-25, 26)), ink + int(rng.integers(-40, 41))
    image = Image.new("L", (FINE * SIDE, FINE * SIDE), paper)
    pen, size, angle = ImageDraw.Draw(image), rng.uniform(0.5, 0.85) * FINE * SIDE / 2, np.radians(rng.normal(0, 8))
    middle, width = FINE * SIDE / 2 * (1 + rng.uniform(-0.1, 0.1, 2)), int(FINE * SIDE * rng.uniform(0.03, 0.09))
    if letter:
        pen.text(tuple(middle), letter, ink, ImageFont.truetype(font(face), int(1.6 * size)), anchor="mm")
        image = image.rotate(np.degrees(angle), Image.Resampling.BICUBIC, fillcolor=paper)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scales = size * rng.uniform(0.75, 1, 2)
    for stroke in strokes:
        points = [tuple(point) for point in middle + (np.array(stroke) * scales) @ turn]
        if filled:
            pen.polygon(points, fill=ink)
        pen.line(points, ink, width, joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=ink)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def pieces(photos, rng):
    """A random square of a random photo, as (SIDE, SIDE) uint8."""
    photo = photos[int(rng.integers(len(photos)))]
    side = int(rng.integers(60, min(photo.size)))
    x, y = (int(rng.integers(0, length - side + 1)) for length in photo.size)
    return np.asarray(photo.crop((x, y, x + side, y + side)).resize((SIDE, SIDE)))


def pictures(group, count, photos):
    """Yield `count` pairs of a kind and a picture, (SIDE, SIDE) uint8, that shows no digit."""
    shapes, filled, letters, face, first = GROUPS[group]
    kinds = [*shapes, *(f"filled {name}" for name in filled), *["letter"] * 6, *["doodle"] * 4, *["photo"] * 4]
    for i in range(count):
        kind, rng = kinds[i % len(kinds)], np.random.default_rng((first, i))
        if kind == "photo":
            yield kind, pieces(photos[first::2], rng)
        elif kind == "letter":
            yield kind, draw([], rng, letter=letters[int(rng.integers(len(letters)))], face=face)
        elif kind == "doodle":
            yield kind, draw(doodle(rng, first), rng)
        else:
            yield kind, draw(shapes[kind.removeprefix("filled ")], rng, kind.startswith("filled"))


def is_unsure(reader, picture):
    """Whether --predict tells nothing in a picture, (H, W) uint8, for sure."""
    things = find_things(picture.astype(np.float64), "digits", lambda things: reader.judge(things)[2])
    return not things or not reader.judge(things)[2].any()


def main():
    digits, clothes, folder, *count = sys.argv[1:]
    count = int(count[0]) if count else 300
    task = TASK(TASK.Config())
    (model,), _, _ = load_models(task, ModelOptions(), [])
    reader = Reader(model)
    files = sorted(path for path, _ in list_files([folder]))
    photos = [Image.fromarray(read_photo(path)[0].mean(2).astype(np.uint8)) for path in files]
    for name, path in (("MNIST", digits), ("Fashion-MNIST", clothes)):
        images = read_part(find_folder(path), "test")[0][:count]
        print(f"{name}: {np.mean([is_unsure(reader, image) for image in images]):.1%} of {len(images)} unsure")
    for group in GROUPS:
        result = [(kind, is_unsure(reader, picture)) for kind, picture in pictures(group, count, photos)]
        print(f"no digits, kinds {group}: {np.mean([unsure for _, unsure in result]):.1%} of {count} unsure")
        for kind in dict.fromkeys(kind for kind, _ in result):
            own = [unsure for each, unsure in result if each == kind]
            print(f"  {kind}: {np.mean(own):.0%} of {len(own)}")


if __name__ == "__main__":
    main()
