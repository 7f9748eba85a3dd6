"""Training data: unpaired images from two folders, as a pure function of seed and sample index."""

from cyclestyle.data.crop import Crop
from cyclestyle.data.dataset import Batch, Pair, UnpairedDataset
from cyclestyle.data.loader import batches
from cyclestyle.data.unpaired import UnpairedFolders, drawn_scenes

__all__ = ["Batch", "Crop", "Pair", "UnpairedDataset", "UnpairedFolders", "batches", "drawn_scenes"]
