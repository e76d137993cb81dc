"""Blocks of an evaluation that has not ended, beside the artifact: the same command goes on with them."""

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lrcompress.artifact import installed_versions, write_atomically
from lrcompress.dlrt import world
from lrcompress.robustness import AttackSettings, BlockOutcome, EvaluatedModel

VERSION = 3
SUFFIX = ".unfinished-evaluation"


@dataclass
class Journal:
    """Keeps the blocks that are done, of each process in a file of its own.

    Attributes:
        artifact: what is evaluated.
        subject: all that the result depends on; its hash is part of the files' names, so that evaluations of another
            kind are not disturbed.
        blocks: that are done.
    """

    artifact: Path
    subject: Mapping[str, Any]
    blocks: list[BlockOutcome] = field(default_factory=list)

    @classmethod
    def open(cls, artifact: Path, subject: Mapping[str, Any]) -> "Journal":
        """Returns the journal of an evaluation with the blocks that all processes have left there."""
        journal = cls(artifact, subject)
        found: dict[int, BlockOutcome] = {}
        for path in journal._files():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["version"] == VERSION and content["sha256"] == journal._sha256(content["blocks"]):
                    found |= {one["number"]: BlockOutcome.from_json(one) for one in content["blocks"]}
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue  # a file that is no journal costs its work, nothing else
        journal.blocks = list(found.values())
        if world()[1] > 1:
            dist.barrier()  # nobody writes before all have read
        return journal

    def add(self, outcome: BlockOutcome) -> None:
        """Writes a block that is done.

        Raises:
            OutputError: if the file system refuses.
        """
        blocks = [one.to_json() for one in (*self.blocks, outcome)]
        values = {"version": VERSION, "subject": dict(self.subject), "blocks": blocks, "sha256": self._sha256(blocks)}
        write_atomically(self._path(world()[0]), json.dumps(values).encode())
        self.blocks.append(outcome)

    def close(self) -> None:
        """Removes what all processes have written."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _path(self, process: int) -> Path:
        return self.artifact.with_name(f"{self._stem()}.{process}.json")

    def _files(self) -> list[Path]:
        return sorted(self.artifact.parent.glob(f"{glob.escape(self._stem())}.*.json"))

    def _stem(self) -> str:
        return f"{self.artifact.stem}{SUFFIX}.{self._sha256([])[:8]}"

    def _sha256(self, blocks: list[dict[str, Any]]) -> str:
        """Returns the hash of the subject and of some blocks."""
        return hashlib.sha256(json.dumps([self.subject, blocks], sort_keys=True).encode()).hexdigest()


def describe_journal(path: Path) -> dict[str, Any] | None:
    """Returns how far an unfinished evaluation is as JSON types, None if the file is none of this program's."""
    if SUFFIX not in path.name or path.suffix != ".json":
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        subject, blocks = content["subject"], content["blocks"]
        if content["version"] != VERSION or content["sha256"] != Journal(path, subject)._sha256(blocks):
            return None
        return {
            "kind": "unfinished evaluation",
            "images_done": sum(len(block["labels"]) for block in blocks),
            "images": subject["images"],
            "data": subject["data"],
            "norm": subject["norm"],
            "settings": subject["settings"],
            "models": subject["models"],
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def describe_subject(
    models: list[EvaluatedModel], settings: AttackSettings, *, data: str, images: int
) -> dict[str, Any]:
    """Returns all that an evaluation depends on, as JSON types."""
    return {
        "models": {one.role: one.sha256 for one in models},
        "settings": json.loads(json.dumps(settings.describe())),
        "seed": settings.seed,
        "norm": settings.norm,
        "data": data,
        "images": images,
        "versions": dict(installed_versions()),
    }


def gather_blocks(own: list[BlockOutcome]) -> list[BlockOutcome]:
    """Returns the blocks of all processes."""
    count = world()[1]
    if count == 1:
        return own
    all_of_them: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    dist.all_gather_object(all_of_them, [one.to_json() for one in own])
    return [BlockOutcome.from_json(one) for blocks in all_of_them for one in blocks]
