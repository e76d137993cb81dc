"""What can be measured on any model: parameters, bytes, MACs, accuracy, latency."""

from lrcompress.measure.accuracy import measure_accuracy, predict_correct
from lrcompress.measure.latency import LatencyRatio, measure_latency
from lrcompress.measure.mode import eval_mode
from lrcompress.measure.operator_norms import OperatorNorm, linear_part, measure_operator_norms, operator_norm
from lrcompress.measure.size import count_macs, count_parameters, run_without_values, tensor_bytes

__all__ = [
    "LatencyRatio",
    "OperatorNorm",
    "count_macs",
    "count_parameters",
    "eval_mode",
    "linear_part",
    "measure_accuracy",
    "measure_latency",
    "measure_operator_norms",
    "operator_norm",
    "predict_correct",
    "run_without_values",
    "tensor_bytes",
]
