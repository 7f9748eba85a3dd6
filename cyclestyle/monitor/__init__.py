"""Who watches a run: TensorBoard, a file of numbers, the console, a profile of some steps, a look at the processor."""

from cyclestyle.monitor.careful import Careful
from cyclestyle.monitor.console import Console
from cyclestyle.monitor.files import MetricsFile
from cyclestyle.monitor.profile import Profile
from cyclestyle.monitor.tensorboard import TensorBoard
from cyclestyle.monitor.waiting import Waiting

__all__ = ["Careful", "Console", "MetricsFile", "Profile", "TensorBoard", "Waiting"]
