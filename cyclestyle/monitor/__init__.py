"""Who watches a run: TensorBoard, a file of numbers, the console, a profile of a few steps."""

from cyclestyle.monitor.careful import Careful
from cyclestyle.monitor.console import Console
from cyclestyle.monitor.files import MetricsFile
from cyclestyle.monitor.profile import Profile
from cyclestyle.monitor.tensorboard import TensorBoard

__all__ = ["Careful", "Console", "MetricsFile", "Profile", "TensorBoard"]
