"""From checkpoint to plan."""

from dataclasses import replace

from lrcompress.checkpoint import LoadedModel
from lrcompress.plan import CompressionPlan, RankPolicy, make_plan


def plan_loaded(
    loaded: LoadedModel,
    policy: RankPolicy,
    *,
    include_first: bool = False,
    include_classifier: bool = False,
    allow_zero_layers: bool = False,
) -> CompressionPlan:
    """Returns what a policy would do with a checkpoint's network, which stays as it is; see `make_plan`.

    The plan knows its checkpoint, and is executed on no other one.
    """
    plan = make_plan(
        loaded.model,
        policy,
        input_size=loaded.preprocessing.input_size,
        include_first=include_first,
        include_classifier=include_classifier,
        allow_zero_layers=allow_zero_layers,
    )
    return replace(plan, source_sha256=loaded.source.sha256)
