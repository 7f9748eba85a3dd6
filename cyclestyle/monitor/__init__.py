"""Loggers of a training run: console, TensorBoard, metrics file, profiler, and a check for busy CPU cores."""

from cyclestyle.monitor.console import Console
from cyclestyle.monitor.fault_tolerant import FaultTolerantLogger
from cyclestyle.monitor.metrics_file import MetricsFile
from cyclestyle.monitor.profiler import Profile
from cyclestyle.monitor.tensorboard import TensorBoard
from cyclestyle.monitor.waiting import Waiting

__all__ = ["Console", "FaultTolerantLogger", "MetricsFile", "Profile", "TensorBoard", "Waiting"]
