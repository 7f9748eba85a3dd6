"""Synthetic landscapes, drawn without a download: as photos (domain a) and as impressionist paintings (domain b).

A scene is identified by a number. Its photo and its painting share one layout, in units of the image's side, so that a
scene looks the same at every size. On one machine, the image bytes of a scene are the same every time. The two training
folders hold different scenes. The two test folders hold the same scenes: each test painting is the ground truth for a
test photo, and training sees neither.
"""

from cyclestyle.data.scenes.drawing import draw, painting, photograph
from cyclestyle.data.scenes.raster import Bytes

__all__ = ["Bytes", "draw", "painting", "photograph"]
