"""What `compress` is to do."""

from dataclasses import dataclass, field
from pathlib import Path

from lrcompress.checkpoint import LoadOptions
from lrcompress.dlrt import TrainingOptions
from lrcompress.errors import OptionError
from lrcompress.pipeline.planning import LayerOptions
from lrcompress.pipeline.search import MaxDrop
from lrcompress.plan import Calibration, CompressionPlan, RankPolicy


@dataclass(frozen=True)
class CompressOptions:
    """What `compress` is to do.

    Attributes:
        policy: chooses the ranks of a compression without fine-tuning; `MaxDrop` needs `data`.
        plan: a plan to execute instead, without fine-tuning.
        load: how to read the checkpoint; a plan brings its preprocessing, and what is given must agree with it.
        data: source of images for fine-tuning and for the clean accuracy in the report; None compresses without data.
        training: settings of the fine-tuning, whose policy chooses the ranks; None does not fine-tune.
        samples: largest number of test images for the report; None takes all.
        seed: of the choice of these images.
        layers: which layers are factorised, and how; without effect on a plan, which says so itself.
        calibration: the images whose activations are the metric of the truncation; None truncates the weights alone.
            A plan brings its own.
        timing: whether both models are timed, which needs both in memory at once.
        device: where to compute.
        overwrite: whether existing outputs may be replaced.
        resume: whether a fine-tuning that did not end goes on.
        read_files: what is read beside the checkpoint, a plan for example, and must not be replaced.
        command: what the user typed, for the report.
    """

    policy: RankPolicy | MaxDrop | None = None
    plan: CompressionPlan | None = None
    load: LoadOptions = field(default_factory=LoadOptions)
    data: str | None = None
    training: TrainingOptions | None = None
    samples: int | None = None
    seed: int = 0
    layers: LayerOptions = field(default_factory=LayerOptions)
    calibration: Calibration | None = None
    timing: bool = True
    device: str = "cpu"
    overwrite: bool = False
    resume: bool = False
    read_files: tuple[Path, ...] = ()
    command: str = "lrcompress.compress(…)"

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.policy, self.plan, self.training)) != 1:
            raise OptionError(
                "a compression takes one of a rank policy, a plan, and a fine-tuning, which has its own tolerance",
                hint="policy=Tolerance(0.1), plan=CompressionPlan.from_json(…), or training=TrainingOptions(…)",
            )
        if self.plan is not None and (self.calibration is not None or self.layers != LayerOptions()):
            raise OptionError(
                "a plan brings its own calibration, schemes, ranks and dense layers",
                hint="give them when the plan is made: lrcompress plan … --calibrate DIR --exclude PATTERN",
            )
        if isinstance(self.policy, MaxDrop):
            self.policy.check_data(self.data)
        if self.training is not None and self.data is None:
            raise OptionError("fine-tuning needs images", hint="--data DIR")
        if self.resume and self.training is None:
            raise OptionError("there is nothing to resume without fine-tuning", hint="--data DIR, and not --epochs 0")
