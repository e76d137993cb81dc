"""Every error a user can cause: one line that says what is wrong and what was allowed, and a hint.

The command line prints them as ``error: …`` and ``hint: …`` and ends with exit code 1.
"""


class LRCompressError(Exception):
    """The base of all errors that `lrcompress` explains.

    Args:
        message: one line naming the file, layer or option, what was allowed and what was found.
        hint: one line saying what to do next; empty if there is nothing sensible to say.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CheckpointError(LRCompressError, ValueError):
    """A checkpoint that cannot be read, is not a state dict, or holds unusable values."""


class ArchitectureError(LRCompressError, ValueError):
    """An architecture that is unknown, ambiguous, or does not fit the tensors of the checkpoint."""


class HubError(LRCompressError, OSError):
    """Weights that could not be fetched from a model hub."""


class OptionError(LRCompressError, ValueError):
    """An option outside of its allowed values."""


class SearchError(OptionError):
    """A search that found nothing that keeps what was asked for."""


class DataError(LRCompressError, ValueError):
    """Images or labels that are missing, unreadable, or do not fit the model."""


class ArtifactError(LRCompressError, ValueError):
    """A file that is not a (whole, unchanged) `lrcompress` artifact."""


class ReportError(LRCompressError, ValueError):
    """A file that is not a (whole) report, or one that this version cannot read."""


class OutputError(LRCompressError, OSError):
    """An output that exists already or cannot be written."""


class TrainingError(LRCompressError, RuntimeError):
    """Fine-tuning that cannot go on, because the loss is not finite, say."""


class EvaluationError(LRCompressError, RuntimeError):
    """An evaluation whose result would be void."""
