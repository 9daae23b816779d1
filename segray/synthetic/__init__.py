"""Made-up aerial photographs with exact masks: fields, water, roads, buildings and trees.

For demonstrations and tests that must learn something without any download. Colour alone does not tell the classes
apart, on purpose: grey roofs look like roads, green crops like trees, dark soil like water. One pixel stands for
about 0.5 m. Everything is drawn from the ground upwards; whatever lies on top owns the pixel.
"""

from __future__ import annotations

import numpy as np

from segray.synthetic.canvas import CLASSES, Canvas, blur, noise
from segray.synthetic.ground import draw_fields, draw_water
from segray.synthetic.houses import cast_house, draw_house, place_houses
from segray.synthetic.roads import draw_roads
from segray.synthetic.trees import cast_tree, draw_tree, place_trees

__all__ = ["CLASSES", "scene"]

SHADOW = np.float32([0.56, 0.52, 0.44])  # how much red, green, blue a shadow takes away: lit by the sky, it is bluish


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A made-up aerial photograph: image (H, W, 3) uint8 and its mask (H, W) uint8 of ids in CLASSES.

    The same seed and size give the same scene. ValueError on a size below 1 x 1 pixels.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a scene has at least 1 x 1 pixels, not {height} x {width}")
    canvas = Canvas.blank(seed, height, width)
    edges = draw_fields(canvas)
    draw_water(canvas)
    houses = place_houses(canvas, draw_roads(canvas))
    trees = place_trees(canvas, edges, houses)
    for house in houses:
        cast_house(canvas, house)
    for tree in trees:
        cast_tree(canvas, tree)
    canvas.image[...] *= 1 - canvas.shade[..., None] * SHADOW
    for house in houses:
        draw_house(canvas, house)
    leaves = noise(canvas.rng, canvas.mask.shape, 2.2)
    for tree in trees:
        draw_tree(canvas, tree, leaves)
    return _expose(canvas), canvas.mask


def _expose(canvas: Canvas) -> np.ndarray:
    """The camera: uneven light, the day's colour cast, haze, a slightly soft lens, sensor noise; (H, W, 3) uint8."""
    rng, shape = canvas.rng, canvas.mask.shape
    image = canvas.image * (1 + 0.05 * noise(rng, shape, 260))[..., None]
    image *= np.float32(rng.uniform(0.92, 1.1) * rng.uniform(0.96, 1.04, 3))
    image = blur(image) + np.float32(rng.uniform(0, 14))
    for bands in (1, 3):  # noise of brightness and of colour
        image += rng.standard_normal((*shape, bands), dtype=np.float32) * np.float32(2.2)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
