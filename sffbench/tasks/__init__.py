"""Tasks: batches in, loss and metrics out. One file each; forecasting is the first."""

from sffbench.tasks.forecast import Forecast, Scores

__all__ = ["Forecast", "Scores"]
