"""The stages as calls: `compress` from checkpoint to report, `evaluate` from artifact to report."""

from lrcompress.pipeline.baseline import find_baseline
from lrcompress.pipeline.compression import compress
from lrcompress.pipeline.evaluation import EvaluateOptions, evaluate
from lrcompress.pipeline.fine_tuning import starting_policy
from lrcompress.pipeline.journal import describe_journal
from lrcompress.pipeline.observer import Observer
from lrcompress.pipeline.operator_norms import add_operator_norms, checkpoint_operator_norms
from lrcompress.pipeline.options import CompressOptions
from lrcompress.pipeline.planning import LayerOptions, plan_loaded
from lrcompress.pipeline.processes import joined_processes
from lrcompress.pipeline.search import MaxDrop
from lrcompress.pipeline.unfinished import describe_unfinished, is_unfinished

__all__ = [
    "CompressOptions",
    "EvaluateOptions",
    "LayerOptions",
    "MaxDrop",
    "Observer",
    "add_operator_norms",
    "checkpoint_operator_norms",
    "compress",
    "describe_journal",
    "describe_unfinished",
    "evaluate",
    "find_baseline",
    "is_unfinished",
    "joined_processes",
    "plan_loaded",
    "starting_policy",
]
