"""How long it takes to restore a photo, told before it has taken long."""

import time
from math import ceil

from depixelation.mosaics.restoring import CONTEXT, parts_of, working_side

SLOW = 10  # seconds from which on the time left is told
MEASURED = 0.5  # seconds of work that tell how fast the rest will be; shorter ones tell of warming up
FARTHER = 2  # times as long as was told is told again


def pixels_to_restore(areas, channels):
    """How many pixels a network computes, about, to restore these Areas once."""
    total = 0
    for area in areas:
        working = working_side((area.block_width + area.block_height) / 2)
        for part in parts_of(area):
            sides = part.width / part.block_width, part.height / part.block_height  # in blocks
            width, height = (ceil(side * working) + 2 * CONTEXT for side in sides)
            total += channels * width * height
    return total


class Pace:
    """Watches predictors at work on a photo, and calls say("about N s") when the rest of it will be slow."""

    def __init__(self, work, say, clock=time.perf_counter):
        """work: {kind of predictor: how many pixels are left for it}. clock: returns seconds."""
        self.left, self.say, self.clock = dict(work), say, clock
        self.done = {kind: (0, 0.0) for kind in work}  # pixels, and the seconds they took
        self.promised = None  # seconds on the clock at which the rest was to be done

    def watch(self, kind, predictor):
        """The predictor, as a function that counts what it does as work of this kind."""

        def predict(inputs):
            started = self.clock()
            outputs = predictor(inputs)
            self._count(kind, inputs[:, 0].numel(), self.clock() - started)
            return outputs

        return predict

    def _count(self, kind, pixels, seconds):
        counted, spent = self.done[kind]
        self.done[kind] = counted + pixels, spent + seconds
        self.left[kind] = max(0, self.left[kind] - pixels)
        if spent + seconds < MEASURED:
            return
        rest, now = self._seconds_left(), self.clock()
        if rest > SLOW and (self.promised is None or rest > FARTHER * (self.promised - now)):
            self.promised = now + rest
            self.say(f"about {rest:.0f} s")

    def _seconds_left(self):
        """A kind that has not begun is taken to be as fast as the slowest one that has."""
        rates = {kind: seconds / pixels for kind, (pixels, seconds) in self.done.items() if pixels}
        return sum(pixels * rates.get(kind, max(rates.values())) for kind, pixels in self.left.items())
