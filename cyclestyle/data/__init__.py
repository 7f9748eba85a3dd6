"""Training data: two unpaired folders as a pure function of the draw number."""

from cyclestyle.data.draws import Batch, Draws, Pair, batches
from cyclestyle.data.folders import Unpaired, drawn_scenes
from cyclestyle.data.transforms import Crop

__all__ = ["Batch", "Crop", "Draws", "Pair", "Unpaired", "batches", "drawn_scenes"]
