"""What can be measured on any model: parameters, bytes, MACs, accuracy, latency."""

from lrcompress.measure.accuracy import measure_accuracy, predict_correct
from lrcompress.measure.latency import LatencyRatio, measure_latency
from lrcompress.measure.mode import eval_mode
from lrcompress.measure.size import count_macs, count_parameters, run_without_values, tensor_bytes

__all__ = [
    "LatencyRatio",
    "count_macs",
    "count_parameters",
    "eval_mode",
    "measure_accuracy",
    "measure_latency",
    "predict_correct",
    "run_without_values",
    "tensor_bytes",
]
