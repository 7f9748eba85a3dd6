"""Who watches a run: TensorBoard, a file of numbers, the console."""

from cyclestyle.monitor.console import Console
from cyclestyle.monitor.files import MetricsFile
from cyclestyle.monitor.tensorboard import TensorBoard

__all__ = ["Console", "MetricsFile", "TensorBoard"]
