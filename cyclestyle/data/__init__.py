"""Training data: two unpaired folders as a pure function of the draw number."""

from cyclestyle.data.crop import Crop
from cyclestyle.data.dataset import Batch, Pair, UnpairedDataset, batches
from cyclestyle.data.unpaired import UnpairedFolders, drawn_scenes

__all__ = ["Batch", "Crop", "Pair", "UnpairedDataset", "UnpairedFolders", "batches", "drawn_scenes"]
