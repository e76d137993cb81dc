import gzip

import pytest
import torch
from checkpoint_files import write_safetensors
from idx_files import idx_bytes
from networks import relative_difference
from safetensors.torch import load_file
from workshop import INPUT, listing, load_options, make_network, report_of, sha256, training

from lrcompress.artifact import load_artifact, read_manifest
from lrcompress.checkpoint import LoadOptions, load_checkpoint
from lrcompress.data.idx import IdxImages, find_idx_files
from lrcompress.errors import CheckpointError, DataError, OptionError, OutputError, SearchError
from lrcompress.pipeline import CompressOptions, LayerOptions, MaxDrop, Observer, compress, compression, plan_loaded
from lrcompress.plan import Budget, Calibration, CompressionPlan, Energy, Smallest, Tolerance, UniformRank

ARCH = "net.py:build"
pytestmark = pytest.mark.usefixtures("_short_timing")


def test_without_data_each_layer_keeps_its_tolerance_or_says_why_it_is_dense(shop):
    report = report_of(shop / "out.safetensors")
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert (layers["3"]["scheme"], layers["3"]["ranks"]) == ("matrix", [4])
    assert layers["3"]["relative_error"] <= 0.1
    assert {name for name, layer in layers.items() if layer["scheme"] == "dense"} == {"1", "5", "7"}
    assert "does not remove parameters" in layers["5"]["reason"]
    assert "first layer" in layers["1"]["reason"]
    assert "classifier" in layers["7"]["reason"]
    dense = make_network()
    weight = load_artifact(shop / "out.safetensors", arch=ARCH).model[3]
    product = weight.expand.weight @ weight.reduce.weight
    assert relative_difference(product, dense[3].weight) <= 0.1


def test_the_report_counts_the_whole_model_and_the_file(shop):
    report = report_of(shop / "out.safetensors")
    parameters = 30 * 32 + 32 + 2 * (32 * 32 + 32) + 32 * 3 + 3
    fewer = parameters - 32 * 32 + 4 * (32 + 32)
    assert report["size"]["baseline"]["parameters"] == parameters
    assert report["size"]["compressed"]["parameters"] == fewer
    assert report["size"]["removed"]["parameters"] == pytest.approx(1 - fewer / parameters)
    assert report["size"]["baseline"]["bytes"] == (shop / "w.pt").stat().st_size
    assert report["size"]["compressed"]["bytes"] == (shop / "out.safetensors").stat().st_size
    assert report["size"]["baseline"]["macs"] == 30 * 32 + 2 * 32 * 32 + 32 * 3
    assert report["artifact"]["sha256"] == sha256(shop / "out.safetensors")
    assert report["source"]["sha256"] == sha256(shop / "w.pt")
    assert report["evaluations"] == []


def test_with_data_the_network_is_fine_tuned_and_its_accuracy_measured(shop):
    report = report_of(shop / "tuned.safetensors")
    tuning = report["recipe"]["fine_tuning"]
    assert (tuning["data"], tuning["epochs"], tuning["held_out_images"]) == ("data", 2, 6)
    assert [entry["epoch"] for entry in report["training_log"]] == [0, 1, 2]
    assert all(entry["ranks"].keys() == {"3", "5"} for entry in report["training_log"])
    assert report["recipe"]["guaranteed_tol"] is None
    (evaluation,) = report["evaluations"]
    assert (evaluation["images"], evaluation["settings"]["attacks"]) == (30, [])
    layers = {layer["name"]: layer for layer in report["layers"]}
    assert layers["5"]["scheme"] == "matrix"  # with training the flat layer is cut too
    assert layers["5"]["ranks"][0] <= 15
    assert layers["5"]["start_kappa"] == pytest.approx(1, abs=1e-4)
    assert load_artifact(shop / "tuned.safetensors", arch=ARCH).manifest.class_names == ("0", "1", "2")


@pytest.mark.parametrize("tuned", [False, True])
def test_the_same_input_and_seed_give_the_same_bytes(shop, tuned):
    options = CompressOptions(
        policy=None if tuned else Tolerance(0.1),
        load=LoadOptions(arch=ARCH, preprocessing=load_options(shop).preprocessing),
        data="data" if tuned else None,
        training=training() if tuned else None,
    )
    compress("w.pt", "again.safetensors", options)
    assert sha256(shop / "again.safetensors") == sha256(shop / ("tuned.safetensors" if tuned else "out.safetensors"))


def test_data_without_training_measure_accuracy_only(shop):
    options = CompressOptions(policy=Tolerance(0.1), load=load_options(shop), data="data", samples=10)
    report = compress("w.pt", "measured.safetensors", options)
    assert report["evaluations"][0]["images"] == 10
    assert "fine_tuning" not in report["recipe"]
    assert report["recipe"]["guaranteed_tol"] == 0.1


@pytest.mark.parametrize("values", [{}, {"policy": Tolerance(0.1), "training": training()}], ids=["none", "both"])
def test_a_compression_has_a_policy_or_a_plan_or_a_training(values):
    with pytest.raises(OptionError, match="takes one of a rank policy, a plan, and a fine-tuning"):
        CompressOptions(**values)


def test_the_smallest_model_has_rank_one_wherever_that_removes_parameters(shop):
    policy = Smallest()
    report = compress("w.pt", "small.safetensors", CompressOptions(policy=policy, load=load_options(shop)))
    assert [layer.get("ranks") for layer in report["layers"]] == [None, [1], [1], None]
    assert report["recipe"]["plan"] == {"name": "smallest"}


CNN = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), Attention(),
                         nn.Linear(12, 3))

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v)).mean(1)
"""


@pytest.fixture
def cnn(shop):
    """How to load cnn.pt, a network with layers that every scheme fits."""
    (shop / "cnn.py").write_text(CNN)
    namespace: dict = {"__name__": "cnn"}
    exec(CNN, namespace)
    torch.manual_seed(0)
    torch.save(namespace["build"]().state_dict(), shop / "cnn.pt")
    return LoadOptions(arch="cnn.py:build", preprocessing=INPUT)


SCHEMES_OF = {
    "auto": None,
    "matrix": {"2": "matrix", "4.qkv": "matrix", "4.proj": "matrix"},
    "spatial": {"2": "spatial", "4.qkv": "matrix", "4.proj": "matrix"},
    "tucker2": {"2": "tucker2", "4.qkv": "matrix", "4.proj": "matrix"},
    "split": {"2": "matrix", "4.qkv": "split", "4.proj": "matrix"},
}


@pytest.mark.parametrize("scheme", SCHEMES_OF)
def test_a_scheme_is_taken_where_it_fits_and_the_guarantee_holds(shop, cnn, scheme):
    options = CompressOptions(policy=Tolerance(0.7), load=cnn, layers=LayerOptions(scheme=scheme))
    report = compress("cnn.pt", "cnn.safetensors", options)
    made = {layer["name"]: layer["scheme"] for layer in report["layers"] if layer["scheme"] != "dense"}
    assert made.keys() == {"2", "4.qkv", "4.proj"}
    assert SCHEMES_OF[scheme] in (None, made)
    assert report["recipe"]["guaranteed_tol"] == 0.7
    assert report["recipe"]["plan"].get("scheme") == (None if scheme == "auto" else scheme)
    loaded = load_artifact(shop / "cnn.safetensors", arch="cnn.py:build").model
    dense = torch.load(shop / "cnn.pt")
    for name in made:
        assert relative_difference(loaded.get_submodule(name).weight, dense[f"{name}.weight"]) <= 0.7
    parameters = sum(value.numel() for value in loaded.state_dict().values())
    assert report["size"]["compressed"]["parameters"] == parameters < report["size"]["baseline"]["parameters"]


def test_single_layers_have_schemes_and_ranks_of_their_own(shop, cnn):
    layers = LayerOptions(
        scheme="matrix", layer_schemes={"4.*": "split", "2": "tucker2"}, layer_ranks={"4.qkv": 2}, exclude=("4.proj",)
    )
    options = CompressOptions(policy=Tolerance(0.7), load=cnn, layers=layers)
    report = compress("cnn.pt", "cnn.safetensors", options)
    made = {layer["name"]: (layer["scheme"], layer.get("ranks")) for layer in report["layers"]}
    assert made["2"][0] == "tucker2"
    assert made["4.qkv"] == ("split", [2, 2, 2])
    assert made["4.proj"] == ("dense", None)
    recipe = report["recipe"]
    assert recipe["plan"]["layer_schemes"] == {"4.*": "split", "2": "tucker2"}
    assert recipe["guaranteed_tol"] is None  # a rank was given


@pytest.mark.parametrize("scheme", ["matrix", "spatial", "tucker2"])
def test_rounded_ranks_are_multiples(shop, cnn, scheme):
    options = CompressOptions(policy=Tolerance(0.7), load=cnn, layers=LayerOptions(scheme=scheme, round_ranks=3))
    report = compress("cnn.pt", "cnn.safetensors", options)
    made = [layer for layer in report["layers"] if layer["scheme"] != "dense"]
    assert len(made) >= 2
    # Full ranks are allowed: of 8 inputs, for example.
    assert all(rank % 3 == 0 or rank == 8 for layer in made for rank in layer["ranks"])
    assert report["recipe"]["plan"]["round_ranks"] == 3


@pytest.mark.parametrize("scheme", ["auto", "spatial", "tucker2", "split"])
def test_a_calibrated_compression_has_any_scheme_and_promises_nothing_of_the_weights(shop, cnn, scheme):
    options = {"policy": UniformRank(3), "load": cnn, "layers": LayerOptions(scheme=scheme)}
    plain = compress("cnn.pt", "plain.safetensors", CompressOptions(**options))
    calibrated = compress("cnn.pt", "c.safetensors", CompressOptions(**options, calibration=Calibration("data", 20)))
    assert [layer["scheme"] for layer in calibrated["layers"]] == [layer["scheme"] for layer in plain["layers"]]
    assert calibrated["recipe"]["guaranteed_tol"] is None
    assert calibrated["recipe"]["calibration"] == {"data": "data", "images": 20, "seed": 0}
    changed = [
        before["name"]
        for before, after in zip(plain["layers"], calibrated["layers"], strict=True)
        if before.get("relative_error") != after.get("relative_error")
    ]
    assert changed == ["2", "4.qkv", "4.proj"]


def pairs_of(sigma):
    return [[i + 1, pytest.approx(float(value), rel=1e-4, abs=1e-6)] for i, value in enumerate(sigma)]


@pytest.mark.parametrize("name", ["out", "tuned"])
def test_spectra_of_both_models_are_in_the_report_and_not_in_the_file(shop, name):
    report, state = report_of(shop / f"{name}.safetensors"), torch.load(shop / "w.pt")
    shipped = load_artifact(shop / f"{name}.safetensors", arch=ARCH).model
    layers = {layer["name"]: layer for layer in report["layers"] if layer["scheme"] != "dense"}
    assert "3" in layers
    for one, layer in layers.items():
        applied, rank = shipped.get_submodule(one).weight.detach().double(), layer["ranks"][0]
        assert layer["dense_spectrum"] == pairs_of(torch.linalg.svdvals(state[f"{one}.weight"].double()))
        assert layer["spectrum"] == pairs_of(torch.linalg.svdvals(applied)[:rank])
    assert "spectrum" not in read_manifest(shop / f"{name}.safetensors").dumps()


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_plan_that_is_executed_gives_spectra_too(shop, cnn, calibrated):
    calibration = Calibration("data", 20) if calibrated else None
    plan, _ = plan_loaded(load_checkpoint("cnn.pt", cnn), UniformRank(3), calibration=calibration)
    report = compress("cnn.pt", "planned.safetensors", CompressOptions(plan=plan, load=cnn))
    layers = [layer for layer in report["layers"] if layer["scheme"] != "dense"]
    assert len(layers) == 3
    for layer in layers:
        weight = torch.load("cnn.pt")[f"{layer['name']}.weight"]
        energy = sum(sigma**2 for _, sigma in layer["dense_spectrum"])
        assert energy == pytest.approx(float(weight.square().sum()), rel=1e-4)  # none has more than 32


def test_without_timing_there_is_no_latency_and_both_models_are_never_timed(shop, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("timed")

    monkeypatch.setattr(compression, "measure_latency", never)
    load = LoadOptions(arch=ARCH, preprocessing=INPUT)
    options = CompressOptions(policy=Tolerance(0.1), load=load, timing=False)
    report = compress("w.pt", "untimed.safetensors", options)
    assert report["latency"] is None
    assert report_of(shop / "out.safetensors")["latency"]["rounds"] >= 5
    assert sha256(shop / "untimed.safetensors") == sha256(shop / "out.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("values", [{"policy": Smallest()}, {"training": training()}], ids=["cut", "fine-tuned"])
def test_a_checkpoint_in_use_is_not_changed(shop, values, dtype):
    """Its tensors are those of the file, mapped into memory, and some are shared with the compressed model."""
    state = {name: value.to(dtype) for name, value in make_network().state_dict().items()}
    file = write_safetensors(state, shop / "w.safetensors")
    before = file.read_bytes()
    compress(str(file), "new.safetensors", CompressOptions(load=load_options(shop), data="data", **values))
    assert file.read_bytes() == before
    assert {value.dtype for value in load_file(shop / "new.safetensors").values()} == {dtype}


def test_the_baseline_stays_as_the_checkpoint_has_it_where_its_types_are_mixed(shop, monkeypatch):
    """Weights in half precision, biases in single: the file is float16, and rounds the biases, its source does not."""
    state = {name: value.half() if value.ndim > 1 else value for name, value in make_network().state_dict().items()}
    torch.save(state, shop / "mixed.pt")
    kept = []

    def keeping(*args, **kwargs):
        kept.append(load_checkpoint(*args, **kwargs))
        return kept[-1]

    monkeypatch.setattr(compression, "load_checkpoint", keeping)
    compress("mixed.pt", "mixed.safetensors", CompressOptions(policy=Tolerance(0.1), load=load_options(shop)))
    (loaded,) = kept
    assert loaded.dtype == "float16"
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[name].float()), name


def test_a_budget_is_kept_by_the_model_that_is_written(shop):
    policy = Budget(fraction=0.8)
    report = compress("w.pt", "small.safetensors", CompressOptions(policy=policy, load=load_options(shop)))
    size = report["size"]
    left = 0.8 * size["baseline"]["parameters"] - size["compressed"]["parameters"]
    assert 0 <= left < 32 + 32  # no room for one rank more
    assert report["recipe"] == {"plan": {"name": "budget", "fraction": 0.8}, "guaranteed_tol": None}
    assert any("1 layer is factorised; its relative error is" in sentence for sentence in report["verdict"])


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES_OF)
def test_every_scheme_is_fine_tuned_saved_and_loaded(shop, cnn, scheme, calibrated):
    calibration = Calibration("data", 30) if calibrated else None
    options = CompressOptions(
        load=cnn, data="data", training=training(), layers=LayerOptions(scheme=scheme), calibration=calibration
    )
    report = compress("cnn.pt", "cnn.safetensors", options)
    made = {layer["name"]: layer["scheme"] for layer in report["layers"] if layer["scheme"] != "dense"}
    assert made.keys() == {"2", "4.qkv", "4.proj"}
    assert SCHEMES_OF[scheme] in (None, made)
    loaded = load_artifact(shop / "cnn.safetensors", arch="cnn.py:build").model
    parameters = sum(value.numel() for value in loaded.state_dict().values())
    assert parameters == report["size"]["compressed"]["parameters"] < report["size"]["baseline"]["parameters"]
    log = report["training_log"]
    chosen = next(entry for entry in log if entry["epoch"] == report["recipe"]["fine_tuning"]["chosen_epoch"])
    assert chosen["parameters"] == parameters
    assert chosen["ranks"].keys() == chosen["cores"].keys()
    for layer in report["layers"]:
        names = [name for name in chosen["ranks"] if name.partition(".parts.")[0] == layer["name"]]
        ranks = [rank for name in sorted(names) for rank in chosen["ranks"][name]]
        assert ranks == (layer.get("ranks") or [])


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        (Budget(fraction=0.7), "budget"),
        (Budget(parameters=900), "budget"),
        (Budget(macs=20_000), "budget"),
        (Energy(0.5), "training start"),
        (UniformRank(2), "uniform rank"),
    ],
    ids=str,
)
def test_fine_tuning_ends_with_what_the_policy_asks_for(shop, cnn, policy, name):
    options = CompressOptions(load=cnn, data="data", training=training(policy=policy))
    report = compress("cnn.pt", "cnn.safetensors", options)
    dense, small = report["size"]["baseline"], report["size"]["compressed"]
    assert report["recipe"]["plan"]["name"] == name
    assert report["recipe"]["fine_tuning"]["policy"] == policy.describe()
    if isinstance(policy, UniformRank):
        assert {rank for layer in report["layers"] for rank in layer.get("ranks", [])} == {2}
    elif isinstance(policy, Energy):
        assert small["parameters"] < 0.8 * dense["parameters"]
    elif policy.macs:
        assert 0.9 * policy.macs < small["macs"] <= policy.macs
    else:
        limit = policy.parameters or int(policy.fraction * dense["parameters"])
        assert 0.9 * limit < small["parameters"] <= limit


@pytest.mark.parametrize("scheme", ["matrix", "tucker2", "split"])
def test_given_ranks_stay_while_fine_tuning_adapts_the_others(shop, cnn, scheme):
    layers = LayerOptions(scheme=scheme, layer_ranks={"4.qkv": 5, "2": 5})
    settings = training(policy=Tolerance(0.9), epochs=3)
    report = compress(
        "cnn.pt", "cnn.safetensors", CompressOptions(load=cnn, data="data", training=settings, layers=layers)
    )
    ranks = {layer["name"]: layer.get("ranks") for layer in report["layers"]}
    assert set(ranks["2"]) == set(ranks["4.qkv"]) == {5}
    assert ranks["4.proj"][0] < 5


def test_rounded_ranks_stay_multiples_while_fine_tuning(shop, cnn):
    settings = training(policy=Tolerance(0.5), epochs=3, lr=2e-2, round_ranks=3)
    layers = LayerOptions(scheme="matrix", round_ranks=3)
    report = compress(
        "cnn.pt", "cnn.safetensors", CompressOptions(load=cnn, data="data", training=settings, layers=layers)
    )
    ranks = [rank for layer in report["layers"] for rank in layer.get("ranks", [])]
    assert len(ranks) == 3
    assert all(rank % 3 == 0 for rank in ranks)


def test_a_largest_drop_is_fine_tuned_and_told(shop):
    settings = training(policy=Budget(fraction=0.999), max_drop=50.0, epochs=3)
    options = CompressOptions(load=load_options(shop), data="data", training=settings)
    report = compress("w.pt", "new.safetensors", options)
    assert report["recipe"]["plan"]["name"] == "max drop"
    assert report["recipe"]["fine_tuning"]["target_reached"] is True
    assert report["recipe"]["fine_tuning"]["max_drop"] == 50.0
    assert report["size"]["removed"]["parameters"] > 0.3
    left = 100 * (1 - report["size"]["removed"]["parameters"])
    (said,) = (sentence for sentence in report["verdict"] if "largest drop" in sentence)
    assert "was kept on 6 images held out of training: " in said
    assert said.endswith(f" points, with {left:.1f} % of the parameters.")


@pytest.mark.parametrize(("asked", "words"), [(1e6, "and is reached"), (1.001, "and is NOT REACHED")])
@pytest.mark.parametrize("scheme", ["matrix", "tucker2"])
def test_the_condition_number_of_the_shipped_cores_is_told_where_one_is_asked_for(shop, cnn, scheme, asked, words):
    settings = training(policy=UniformRank(3), max_kappa=asked)
    layers = LayerOptions(scheme=scheme)
    report = compress(
        "cnn.pt", "cnn.safetensors", CompressOptions(load=cnn, data="data", training=settings, layers=layers)
    )
    (said,) = (sentence for sentence in report["verdict"] if "largest κ" in sentence)
    assert words in said
    largest = report["recipe"]["fine_tuning"]["largest_kappa"]
    shipped = {layer["name"]: layer["kappa"] for layer in report["layers"] if "kappa" in layer}
    assert largest["kappa"] == pytest.approx(max(shipped.values()), rel=1e-3)
    assert largest["layer"] == max(shipped, key=shipped.get)
    assert f"is {largest['kappa']:.4g} (`{largest['layer']}`)" in said


def test_what_the_own_adversary_of_a_training_leaves_is_told(shop):
    settings = training(adversarial="fgsm-rs", adversarial_eps=0.05)
    report = compress(
        "w.pt", "new.safetensors", CompressOptions(load=load_options(shop), data="data", training=settings)
    )
    tuning, log = report["recipe"]["fine_tuning"], report["training_log"]
    assert tuning["held_out_robust_accuracy_before"] == log[0]["held_out_robust_accuracy"]
    assert tuning["held_out_robust_accuracy"] == log[tuning["chosen_epoch"]]["held_out_robust_accuracy"]
    assert sum("of 6 held-out images were right before training" in sentence for sentence in report["verdict"]) == 1


def test_a_largest_drop_that_nothing_keeps_without_training_is_trained_for(shop):
    # The labels are the network's own answers, and its only layer that may be cut has a flat spectrum.
    pixels = IdxImages(*find_idx_files(shop / "data", "train"), channels=1, size=(6, 5))
    with torch.no_grad():
        answers = make_network()((torch.stack([pixels[index][0] for index in range(60)]) - 0.5) / 0.25).argmax(1)
    (shop / "data" / "train-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(idx_bytes(answers.numpy().astype("uint8")))
    )
    options = {"load": load_options(shop), "data": "data", "layers": LayerOptions(exclude=("3",))}
    with pytest.raises(SearchError, match="no smaller model was found") as refused:
        compress("w.pt", "new.safetensors", CompressOptions(policy=MaxDrop(0.5), **options))
    assert "fine-tune" in refused.value.hint
    said, settings = [], training(policy=Budget(fraction=0.999), max_drop=0.5)
    report = compress(
        "w.pt",
        "new.safetensors",
        CompressOptions(training=settings, **options),
        observer=Observer(on_stage=said.append),
    )
    assert any("no smaller model was found" in text and "starts from a tolerance" in text for text in said)
    assert report["recipe"]["plan"]["name"] == "training start"
    assert report["recipe"]["fine_tuning"]["max_drop"] == 0.5


@pytest.mark.parametrize(
    "values",
    [{"calibration": Calibration("data")}, {"layers": LayerOptions(scheme="matrix")}],
    ids=["calibration", "layers"],
)
def test_a_plan_says_itself_what_is_done_with_the_layers(values):
    plan = CompressionPlan({"name": "by hand"}, ())
    with pytest.raises(OptionError, match="a plan brings its own calibration, schemes, ranks and dense layers"):
        CompressOptions(plan=plan, **values)


BAD = {
    "a budget that cannot be met": ({"policy": Budget(parameters=2)}, {}, OptionError),
    "training without data": ({"training": training()}, {}, OptionError),
    "no such data": ({"data": "nowhere"}, {}, DataError),
    "twenty images to train on": ({"data": "samples/mnist", "training": training()}, {}, OptionError),
    "no checkpoint": ({}, {"source": "nowhere.pt"}, CheckpointError),
    "not safetensors": ({}, {"output": "out.pt"}, OptionError),
    "existing": ({}, {"output": "out.safetensors"}, OutputError),
    "no folder": ({}, {"output": "nowhere/new.safetensors"}, OutputError),
}


@pytest.mark.parametrize(("values", "places", "error"), BAD.values(), ids=BAD.keys())
def test_what_goes_wrong_leaves_nothing_behind(shop, values, places, error):
    before = listing(shop)
    policy = None if "training" in values else Tolerance(0.1)
    with pytest.raises(error) as refused:  # noqa: PT012  # some are refused when the options are made
        options = CompressOptions(**{"policy": policy, "load": load_options(shop), **values})
        compress(places.get("source", "w.pt"), places.get("output", "new.safetensors"), options)
    assert refused.value.hint
    assert listing(shop) == before


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_fine_tuning_leaves_nothing_behind(shop, existing):
    before = listing(shop)

    def interrupt(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    options = CompressOptions(
        load=load_options(shop), data="data", training=training(), overwrite=existing
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        compress(
            "w.pt",
            "out.safetensors" if existing else "new.safetensors",
            options,
            observer=Observer(on_training=interrupt),
        )
    assert listing(shop) == before


def test_there_is_nothing_to_resume_without_fine_tuning():
    with pytest.raises(OptionError, match="nothing to resume") as refused:
        CompressOptions(policy=Tolerance(0.1), resume=True)
    assert refused.value.hint


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
@pytest.mark.parametrize("source", ["weights.safetensors", "folder"])
def test_the_checkpoint_itself_is_never_overwritten(shop, source, link):
    (shop / "folder").mkdir()
    (shop / "folder" / "config.json").write_text("{}")
    file = shop / "folder" / "model.safetensors" if source == "folder" else shop / source
    write_safetensors(make_network().state_dict(), file)
    output = file
    if link:
        output = shop / "link.safetensors"
        output.symlink_to(file) if link == "symbolic" else output.hardlink_to(file)
    before = listing(shop)
    options = CompressOptions(policy=Tolerance(0.1), load=load_options(shop), overwrite=True)
    with pytest.raises(OutputError, match="read by the same command") as refused:
        compress(source, output, options)
    assert "-o" in refused.value.hint
    assert listing(shop) == before


def test_the_state_of_an_optimiser_does_not_count_as_a_reduction_of_the_weights(shop):
    state = make_network().state_dict()
    weights = sum(4 * value.numel() for value in state.values())
    torch.save({"state_dict": state, "optimizer": [torch.zeros(2 * weights // 4)]}, shop / "training.pt")
    report = compress("training.pt", "new.safetensors", CompressOptions(policy=Tolerance(0.1), load=load_options(shop)))
    assert report["source"]["weight_bytes"] == weights
    original, left = ((shop / name).stat().st_size for name in ("training.pt", "new.safetensors"))
    (sentence,) = (sentence for sentence in report["verdict"] if "no weights of this network" in sentence)
    assert sentence.startswith(f"{original - weights:,} bytes")
    assert sentence.endswith(f"the file is {100 * (1 - left / weights):.1f} % smaller.")


def test_without_fine_tuning_a_state_that_lies_there_is_nothing_to_go_on_from(shop, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    (shop / "small.unfinished.pt").write_bytes(b"of another run")
    monkeypatch.setattr(compression, "measure_latency", interrupt)
    options = CompressOptions(policy=Tolerance(0.1), load=load_options(shop), overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        compress("w.pt", "small.safetensors", options)
