"""An evaluation that was stopped goes on with what it has finished, alone or shared by processes."""

import gzip
import json
import os
import signal
import subprocess
import sys

import pytest
from command import run
from two_processes import finish, start_two
from workshop import listing, report_of

from lrcompress.errors import EvaluationError, OutputError
from lrcompress.pipeline import EvaluateOptions, Observer, evaluate
from lrcompress.robustness import AttackSettings

OUT = "out.safetensors"
# Batches of two make blocks of eight: four of them for the 30 images.
SETTINGS = AttackSettings(("fgsm", "pgd"), eps=(0.01, 0.1), steps=3, batch_size=2)
COMMAND = ["attack", OUT, "--arch", "net.py:build", "--data", "data", "--pgd", "--eps", "0.01,0.1", "--steps", "3"]


def attack(shop, *, on_attack=lambda *_: None, on_stage=lambda _: None, settings=SETTINGS, **values):
    options = EvaluateOptions(**{"settings": settings, "data": "data", "arch": "net.py:build", **values})
    return evaluate(shop / OUT, options, observer=Observer(on_attack=on_attack, on_stage=on_stage))


def journals(shop):
    """Returns the files of evaluations that have not ended."""
    return sorted(shop.glob("out.unfinished-evaluation.*.0.json"))


def blocks_in(path):
    return json.loads(path.read_text())["blocks"]


def figures(evaluation):
    values = evaluation if isinstance(evaluation, dict) else json.loads(json.dumps(evaluation.to_json()))
    for model in [values, *values["models"].values()]:
        model.pop("seconds")
    return {key: value for key, value in values.items() if key != "command"}


class Stopped(KeyboardInterrupt):
    pass


def stop_after(images):
    """Stops when so many images of all attacks on both models are done."""

    def on_attack(what, done, total):
        if done > images:
            raise Stopped

    return on_attack


def test_what_was_finished_is_not_done_again(shop):
    expected = figures(attack(shop)[0])
    before = listing(shop)
    with pytest.raises(EvaluationError, match=r"interrupted; \d+ of 30 images are finished"):
        attack(shop, on_attack=stop_after(70))  # 32 per block
    (journal,) = journals(shop)
    assert set(listing(shop)) - set(before) == {journal.name}
    assert len(blocks_in(journal)) == 2
    said, seen = [], []
    evaluation, _ = attack(shop, on_stage=said.append, on_attack=lambda what, done, total: seen.append(total))
    assert figures(evaluation) == expected
    assert any("going on: 16 of 30 images were finished" in line for line in said)
    assert set(seen) == {(30 - 16) * 2 * 2}
    assert set(listing(shop)) == set(before)


def test_blocks_of_another_evaluation_neither_count_nor_are_lost(shop):
    with pytest.raises(EvaluationError, match=r"interrupted; \d+ of 30 images are finished"):
        attack(shop, on_attack=stop_after(70))
    before = {path: path.read_bytes() for path in journals(shop)}
    said = []
    other = AttackSettings(("fgsm", "pgd"), eps=(0.01, 0.1), steps=4, batch_size=2)
    expected = figures(attack(shop, settings=other, on_stage=said.append)[0])
    assert not any("going on" in line for line in said)
    assert expected["settings"]["steps"] == 4
    assert {path: path.read_bytes() for path in journals(shop)} == before


DAMAGES = {
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "no table": lambda text: "[]",
    "no blocks": lambda text: '{"version": 3, "sha256": ""}',
    "blocks of nothing": lambda text: '{"version": 3, "sha256": "", "blocks": [{}]}',
    "a figure changed": lambda text: text[::-1].replace("eurt", "eslaf", 1)[::-1],
    "of before": lambda text: text.replace('"version": 3', '"version": 2'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_journal_costs_its_work_and_nothing_else(shop, damage):
    expected = figures(attack(shop)[0])
    with pytest.raises(EvaluationError, match=r"interrupted; \d+ of 30 images are finished"):
        attack(shop, on_attack=stop_after(70))
    (journal,) = journals(shop)
    text = journal.read_text()
    assert damage(text) != text
    journal.write_text(damage(text))
    said = []
    assert figures(attack(shop, on_stage=said.append)[0]) == expected
    assert not any("going on" in line for line in said)
    assert not journals(shop)


def test_blocks_of_images_that_have_changed_since_are_not_used(shop):
    with pytest.raises(EvaluationError, match=r"interrupted; \d+ of 30 images are finished"):
        attack(shop, on_attack=stop_after(70))
    file = shop / "data" / "t10k-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[16] ^= 255  # the first pixel
    file.write_bytes(gzip.compress(content))
    said = []
    changed = figures(attack(shop, on_stage=said.append)[0])
    assert any("going on: 8 of 30 images" in line for line in said)
    assert changed == figures(attack(shop)[0])


def test_when_time_is_up_the_next_call_goes_on(shop):
    first, report = attack(shop, time_limit=1e-9)
    values = report["evaluations"][-1]
    assert (values["complete"], values["images"], values["images_asked"]) == (False, 8, 30)
    assert "in an order drawn with seed 0" in first.data
    assert journals(shop)
    counts = [attack(shop, time_limit=1e-9)[0].images for _ in range(3)]
    assert counts == [16, 24, 30]
    assert not journals(shop)
    (only,) = report_of(shop / OUT)["evaluations"]
    assert only["complete"] is True


def test_a_disk_that_is_full_is_told(shop, monkeypatch):
    def refuse(path, content):
        raise OutputError(f"cannot write `{path}`", hint="make room")

    monkeypatch.setattr("lrcompress.pipeline.journal.write_atomically", refuse)
    before = listing(shop)
    with pytest.raises(OutputError, match="cannot write"):
        attack(shop)
    assert listing(shop) == before


KILLED = """
import os, signal, sys
from lrcompress.pipeline import journal
add, count = journal.Journal.add, 0

def killed(self, outcome):
    global count
    add(self, outcome)
    count += 1
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)

journal.Journal.add = killed
from lrcompress.cli.app import main
main()
"""


def test_a_command_that_was_killed_goes_on_with_the_same_result(shop):
    command = [*COMMAND, "--batch-size", "2"]
    done = subprocess.run([sys.executable, "-c", KILLED, *command], cwd=shop, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    (journal,) = journals(shop)
    assert len(blocks_in(journal)) == 2
    settings = AttackSettings(("noise", "fgsm", "pgd"), eps=(0.01, 0.1), steps=3, batch_size=2)
    said = []
    resumed = figures(attack(shop, settings=settings, on_stage=said.append)[0])
    assert any("going on: 16 of 30" in line for line in said)
    assert resumed == figures(attack(shop, settings=settings)[0])


def test_two_processes_share_the_images_and_one_writes_what_one_alone_would(shop):
    settings = AttackSettings(("noise", "fgsm", "pgd"), eps=(0.01, 0.1), steps=3, batch_size=2)
    expected = figures(attack(shop, settings=settings)[0])
    ended = finish(start_two(["-m", "lrcompress", *COMMAND, "--batch-size", "2"], shop))
    assert [code for code, *_ in ended] == [0, 0], ended
    assert [stdout for _, stdout, _ in ended] == ["out.report.json\n", ""]
    assert figures(report_of(shop / OUT)["evaluations"][-1]) == expected
    assert not list(shop.glob("*.unfinished*"))


def test_a_journal_tells_how_far_it_is(shop):
    with pytest.raises(EvaluationError, match="interrupted"):
        attack(shop, on_attack=stop_after(70))
    (journal,) = journals(shop)
    result = run("inspect", journal, "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert (values["kind"], values["images_done"], values["images"]) == ("unfinished evaluation", 16, 30)
    assert values["settings"]["attacks"] == ["fgsm", "pgd"]
    told = run("inspect", journal).stdout.splitlines()
    assert told[:2] == ["kind: unfinished evaluation", "images: 16 of 30 finished, by one process"]


def test_who_interrupts_before_anything_is_kept_is_told_so(shop):
    with pytest.raises(EvaluationError, match="0 of 30 images") as stopped:
        attack(shop, on_attack=stop_after(5))
    assert "images are kept 8 at a time" in stopped.value.hint
    assert not journals(shop)
