"""Training data: pairs of unrelated images from two folders; seed and sample index alone decide each pair."""

from cyclestyle.data.crop import Crop
from cyclestyle.data.dataset import Batch, Pair, UnpairedDataset
from cyclestyle.data.loader import batches
from cyclestyle.data.unpaired import UnpairedFolders, drawn_scenes

__all__ = ["Batch", "Crop", "Pair", "UnpairedDataset", "UnpairedFolders", "batches", "drawn_scenes"]
