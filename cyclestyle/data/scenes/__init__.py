"""The embedded data set: landscapes as a camera sees them (a) and as an impressionist paints them (b), drawn offline.

A scene is a number. Both domains draw it from the same layout, in units of the picture's side, so that a scene looks
the same at every size and, on one machine, is the same bytes every time. Training folders hold different scenes; test
folders hold the same ones, which gives unpaired training a hidden truth to be measured against.
"""

from cyclestyle.data.scenes.drawing import draw, painting, photograph
from cyclestyle.data.scenes.raster import Bytes

__all__ = ["Bytes", "draw", "painting", "photograph"]
