"""The colours of what the pack draws round pictures and lines: light on dark.

Everything brings its own dark paper, so it reads the same on a dark page and on a light one.
"""

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

PAPER: Color = (28, 28, 32)
INK: Color = (235, 235, 235)
GRID: Color = (66, 66, 74)
LINES: tuple[Color, ...] = ((96, 176, 255), (255, 160, 80), (110, 220, 130), (220, 150, 255), (250, 215, 90))
"""Of the lines of a chart, in order; each at least 7 : 1 against the paper."""
