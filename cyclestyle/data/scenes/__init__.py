"""Synthetic landscapes, drawn by the program itself: photos (domain a) and impressionist paintings (domain b).

A scene is identified by a number. Its photo and its painting share one layout. Lengths in the layout are fractions of
the image's side, so that a scene looks the same at every size. On one machine, repeated drawing gives the same bytes.
The two training folders hold different scenes. The two test folders hold the same scenes: each test painting is the
ground truth for a test photo. Test images are not used for training.
"""

from cyclestyle.data.scenes.drawing import draw, painting, photograph
from cyclestyle.data.scenes.raster import Bytes

__all__ = ["Bytes", "draw", "painting", "photograph"]
