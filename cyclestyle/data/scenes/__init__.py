"""Synthetic data set of landscapes, drawn offline: as photos (domain a) and as impressionist paintings (domain b).

A scene is identified by a number. Both domains render it from the same layout in units of the image's side, so that a
scene looks the same at every size. On one machine, its bytes are the same every time. The two training folders hold
different scenes. The two test folders hold the same scenes, which gives a ground truth that training does not see.
"""

from cyclestyle.data.scenes.drawing import draw, painting, photograph
from cyclestyle.data.scenes.raster import Bytes

__all__ = ["Bytes", "draw", "painting", "photograph"]
