import json

import pytest
from command import assert_refused, run
from idx_files import write_idx_pair
from workshop import listing

FAST = ("--arch", "net.py:build", "--data", "data", "--steps", "3")


def attack(*args, file="out.safetensors"):
    return run("attack", file, *FAST, *args)


def test_the_reports_path_is_all_that_goes_to_stdout(shop):
    result = attack("--pgd")
    assert (result.exit_code, result.stdout) == (0, "out.report.json\n")
    for words in ("uncompressed", "compressed", "worst case", "8/255", "95 % interval", "INCONCLUSIVE: 30 images"):
        assert words in result.stderr


def test_json_on_stdout_is_the_evaluation_with_both_models_and_the_checks_of_pgd(shop, monkeypatch):
    monkeypatch.setattr("sys.argv", ["anything", "attack", "my file.safetensors", "--pgd"])
    values = json.loads(attack("--pgd", "--eps", "8/255,4/255", "--json").stdout)
    assert list(values["models"]) == ["baseline", "compressed"]
    assert values["settings"]["attacks"] == ["noise", "fgsm", "pgd"]
    assert values["settings"]["eps"] == pytest.approx([4 / 255, 8 / 255])
    assert set(values["models"]["compressed"]["attacks"]) == {"noise", "fgsm", "pgd", "worst"}
    report = json.loads((shop / "out.report.json").read_text())
    command = report["evaluations"][-1].pop("command")
    assert command == "lrcompress attack 'my file.safetensors' --pgd"
    assert report["evaluations"][-1] == values


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["noise", "fgsm", "pgd"]),
        (("--fgsm",), ["fgsm"]),
        (("--noise", "--fgsm"), ["noise", "fgsm"]),
        (("--attack", "fgsm", "--attack", "noise"), ["noise", "fgsm"]),
        (("--attack", "pgd"), ["noise", "fgsm", "pgd"]),
    ],
)
def test_attacks_are_chosen_by_flag_or_name(shop, options, expected):
    values = json.loads(attack(*options, "--eps", "1/255", "--samples", "4", "--json").stdout)
    assert values["settings"]["attacks"] == expected
    assert values["images"] == 4


def test_the_paper_s_suite_is_told_apart_from_attacks_in_pixels(shop):
    result = attack("--suite", "paper", "--fgsm", "--eps", "8/255,0.3")
    told = " ".join(result.stderr.replace("│", " ").split())
    assert told.index("fgsm") < told.index("worst case 8/255") < told.index("paper-l2fgsm") < told.index("paper-mixup")
    assert "0.3 (pixels ≤" in told
    assert "not comparable with ε in pixels; these attacks are no part of the worst case" in told
    report = json.loads((shop / "out.report.json").read_text())
    (evaluation,) = [one for one in report["evaluations"] if "paper" in one["settings"]]
    assert evaluation["settings"]["attacks"] == [
        "fgsm", "paper-l2fgsm", "paper-l1fgsm", "paper-jitter", "paper-mixup",
    ]  # fmt: skip
    for scales in evaluation["settings"]["paper"]["pixels_per_unit"].values():
        assert scales["baseline"] == scales["compressed"] > 0
    rows = evaluation["models"]["compressed"]["attacks"]
    assert [row["bits"] for row in rows["worst"]] == [row["bits"] for row in rows["fgsm"]]
    assert "Worst case of fgsm, " in " ".join(report["verdict"])


def test_settings_reach_the_attack(shop):
    options = (
        "--pgd",
        "--norm",
        "l2",
        "--eps",
        "0.5",
        "--steps",
        "7",
        "--restarts",
        "2",
        "--seed",
        "5",
        "--samples",
        "9",
    )
    values = json.loads(attack(*options, "--json").stdout)
    assert (values["norm"], values["seed"], values["images"]) == ("l2", 5, 9)
    assert (values["settings"]["steps"], values["settings"]["restarts"]) == (7, 2)


@pytest.mark.parametrize(
    ("options", "words", "key"),
    [
        (("--corruptions",), ("on corrupted images", "severity"), "corruptions"),
        (
            ("--certify", "--smoothing-samples", "20", "--sigma", "0.1"),
            ("Randomised smoothing", "σ = 0.1"),
            "certified",
        ),
        (("--attack", "fmn", "--norm", "l2", "--eps", "0.5"), ("smallest perturbation", "fmn"), "models"),
        (("--suite", "quick", "--eps", "4/255"), ("made against", "shown to"), "transfer"),
    ],
)
def test_what_is_asked_for_beside_attacks_stands_on_the_terminal_and_in_the_report(shop, options, words, key):
    result = attack(*options, "--samples", "6", "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values[key]
    assert ("pgd" in values["settings"]["attacks"]) == ("quick" in options)
    for one in words:
        assert one in result.stderr


def test_after_a_time_limit_what_is_finished_is_told(shop):
    values = json.loads(attack("--pgd", "--eps", "4/255", "--batch-size", "2", "--time-limit", "1e-9", "--json").stdout)
    assert (values["complete"], values["images"], values["images_asked"]) == (False, 8, 30)


def test_what_is_missing_without_a_baseline_is_said(shop):
    (shop / "w.pt").unlink()
    result = attack("--fgsm", "--json")
    assert list(json.loads(result.stdout)["models"]) == ["compressed"]
    assert "no baseline" in result.stderr
    assert "--baseline" in result.stderr


def test_the_baseline_may_be_named(shop):
    (shop / "w.pt").rename(shop / "moved.pt")
    values = json.loads(attack("--fgsm", "--baseline", "moved.pt", "--json").stdout)
    assert list(values["models"]) == ["baseline", "compressed"]


BAD = {
    "eps in bytes": (["--pgd", "--eps", "8"], ["--eps is in units of images in [0, 1], got 8", "--eps 8/255"]),
    "eps that is no number": (["--pgd", "--eps", "some"], ["--eps must be numbers"]),
    "unknown attack": (["--attack", "zzzz"], ["no attack named `zzzz`", "noise, fgsm, pgd"]),
    "attack without that option": (
        ["--attack", "L2FMNAttack:stepz=3", "--norm", "l2"],
        ["L2FMNAttack has no option `stepz`", "did you mean steps?"],
    ),
    "attack for other norms": (["--attack", "square", "--norm", "l1"], ["square does not work in l1", "--norm linf"]),
    "noise without smoothing": (["--pgd", "--sigma", "0.5"], ["--sigma is for --certify", "--certify --sigma 0.5"]),
    "samples without smoothing": (["--smoothing-samples", "10"], ["--smoothing-samples is for --certify"]),
    "no noise": (["--certify", "--sigma", "0"], ["--sigma must be more than 0"]),
    "no time": (["--pgd", "--time-limit", "0"], ["--time-limit must be more than 0 seconds", "--time-limit 600"]),
    "no queries": (["--attack", "square", "--queries", "0"], ["--queries must be at least 1"]),
    "paper's attack in other norms": (
        ["--attack", "paper-jitter", "--norm", "l2"],
        ["paper-jitter does not work in l2", "hint: --norm linf"],
    ),
    "suite in other norms": (
        ["--suite", "paper", "--norm", "l1"],
        ["no attack of --suite paper works in l1", "hint: --norm linf"],
    ),
    "unknown norm": (["--pgd", "--norm", "l7"], ["--norm must be one of linf, l2, l1, got l7"]),
    "no steps": (["--pgd", "--steps", "0"], ["--steps must be at least 1"]),
    "no restarts": (["--pgd", "--restarts", "0"], ["--restarts must be at least 1"]),
    "no data": (["--data", "nowhere"], ["no data at `nowhere`"]),
    "no baseline there": (["--baseline", "nowhere.pt"], ["no checkpoint at `nowhere.pt`"]),
    "another baseline": (["--baseline", "net.py"], ["net.py"]),
    "other classes": (["--data", "other"], ["has 4 classes, the network 3"]),
    "labels out of range": (["--data", "samples/mnist"], ["label", "3 classes"]),
    "no device": (["--device", "cuda:99"], ["no device"]),
}


@pytest.mark.parametrize(("options", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_option_is_refused_and_nothing_is_written(shop, options, words):
    write_idx_pair(shop / "other", "t10k", count=8, classes=4)
    before = listing(shop)
    assert_refused(attack(*options), *words)
    assert listing(shop) == before


@pytest.mark.parametrize("content", [None, b"", b"random bytes", "half"])
def test_a_file_that_is_no_artifact_is_refused(shop, content):
    path = shop / "bad.safetensors"
    if content is not None:
        whole = (shop / "out.safetensors").read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    before = listing(shop)
    assert_refused(attack("--pgd", file="bad.safetensors"), "`bad.safetensors`")
    assert listing(shop) == before


def test_ones_own_factory_is_asked_for(shop):
    result = run("attack", "out.safetensors", "--pgd", "--data", "data")
    assert_refused(result, "code that is not run unasked", "hint: --arch net.py:build")


@pytest.mark.parametrize("options", [["--samples", "0"], ["--eps"], ["--no-such-option"]], ids=" ".join)
def test_wrong_usage_ends_with_2(shop, options):
    assert attack(*options).exit_code == 2


def test_in_l1_the_attack_is_apgd_and_takes_more_steps_unless_pgd_is_asked_for(shop):
    def settings(*options):
        result = run("attack", "out.safetensors", "--arch", "net.py:build", "--data", "data", "--norm", "l1",
                     "--eps", "0.1", "--samples", "4", "--json", *options)  # fmt: skip
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["settings"]

    assert (settings()["attacks"], settings()["steps"]) == (["noise", "fgsm", "apgd-ce"], 100)
    assert settings("--suite", "quick", "--steps", "3")["attacks"] == ["noise", "fgsm", "apgd-ce"]
    asked = settings("--pgd", "--steps", "3")
    assert (asked["attacks"], asked["steps"]) == (["noise", "fgsm", "pgd"], 3)
