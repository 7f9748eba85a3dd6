"""Training data: pairs of unrelated images from two folders; the n-th pair of a run depends on n and the seed alone."""

from cyclestyle.data.crop import Crop
from cyclestyle.data.dataset import Batch, Pair, UnpairedDataset
from cyclestyle.data.loader import batches
from cyclestyle.data.unpaired import UnpairedFolders, drawn_scenes

__all__ = ["Batch", "Crop", "Pair", "UnpairedDataset", "UnpairedFolders", "batches", "drawn_scenes"]
