import math

import pytest

from lrcompress.robustness import AttackOutcome, ModelOutcome
from lrcompress.robustness.checks import find_doubts


def outcome(role="compressed", images=400, clean=None, eps=(0.1, 0.2), silent=None, **robust):
    """A model's outcome from shares of robust images at two radii, the worst case of all attacks added."""
    clean = tuple([True] * images) if clean is None else clean
    rows = {name: tuple(tuple(bits) for bits in rows) for name, rows in robust.items()}
    if rows:
        worst = [tuple(all(bits) for bits in zip(*level, strict=True)) for level in zip(*rows.values(), strict=True)]
        rows["worst"] = tuple(worst)
    attacks = tuple(AttackOutcome(name, eps, bits) for name, bits in rows.items())
    return ModelOutcome(role, "0", clean, attacks, 1.0, silent=silent or {})


def bits(good, images=400):
    return [True] * good + [False] * (images - good)


def findings(*models):
    return [(finding.severity, finding.message) for finding in find_doubts(models, classes=10, norm="linf")]


def test_a_sound_evaluation_raises_no_doubt():
    assert (
        findings(outcome(noise=[bits(390), bits(380)], fgsm=[bits(300), bits(200)], pgd=[bits(250), bits(100)])) == []
    )


def test_few_images_are_inconclusive():
    (found,) = findings(outcome(images=299))
    assert found[0] == "inconclusive"
    assert "299 images" in found[1]
    assert findings(outcome(images=300)) == []


def test_fewer_images_than_classes_are_inconclusive():
    assert find_doubts([outcome(images=300)], classes=300, norm="linf") == ()
    (found,) = find_doubts([outcome(images=300)], classes=1000, norm="linf")
    assert (found.severity, found.check) == ("inconclusive", "few-images")
    assert "300 images of 1,000 classes" in found.message


def test_a_weaker_attack_that_breaks_more_makes_the_figures_unreliable():
    pgd = [bits(250), bits(100)]
    weaker = [bits(240), bits(100)]
    (found,) = findings(outcome(fgsm=weaker, pgd=pgd, noise=[bits(400), bits(400)]))
    assert found[0] == "unreliable"
    assert found[1].startswith("fgsm breaks 10 images of the compressed model that PGD does not")
    (found,) = findings(outcome(noise=[bits(250), bits(90)], pgd=pgd))
    assert found[1].startswith("noise breaks 10 images")


def test_it_is_the_same_image_that_counts_not_the_number():
    # FGSM breaks fewer images, but six that PGD does not.
    fgsm = [[False] * 6 + [True] * 394] * 2
    pgd = [[True] * 6 + [False] * 9 + [True] * 385] * 2
    (found,) = findings(outcome(fgsm=fgsm, pgd=pgd))
    assert "fgsm breaks 6 images" in found[1]


@pytest.mark.parametrize(("images", "allowed"), [(20, 1), (136, 2), (400, 5), (10_000, 62)])
def test_more_than_one_image_in_two_hundred_is_a_doubt_if_chance_does_not_explain_it(images, allowed):
    # The smallest count whose probability at a rate of 1/200 is below 5 %, by summing the binomial distribution.
    tail = 1 - math.fsum(math.comb(images, k) * 0.005**k * 0.995 ** (images - k) for k in range(allowed + 1))
    one_less = tail + math.comb(images, allowed) * 0.005**allowed * 0.995 ** (images - allowed)
    assert tail <= 0.05 < one_less or allowed == 1
    pgd = [bits(images, images)]

    def doubts(broken):
        model = outcome(images=images, eps=(0.1,), fgsm=[bits(images - broken, images)], pgd=pgd)
        return [one.check for one in find_doubts([model], classes=10, norm="linf") if one.severity == "unreliable"]

    assert doubts(allowed) == []
    assert doubts(allowed + 1) == ["weaker-beats-stronger"]


def test_square_beating_the_gradients_makes_the_figures_unreliable():
    apgd = [bits(250), bits(100)]
    (found,) = findings(outcome(square=[bits(200), bits(100)], **{"apgd-ce": apgd, "pgd": apgd}))
    assert found[1].startswith("square breaks 50 images of the compressed model that APGD-CE and PGD do not")
    assert "gradients" in found[1]


def test_images_made_against_the_other_model_that_do_more_harm_are_told():
    pgd = [bits(250), bits(100)]
    models = outcome("baseline", pgd=pgd), outcome(pgd=pgd)

    def found(pair, rows):
        doubts = find_doubts(models, classes=10, norm="linf", transferred={pair: rows})
        return [(doubt.check, doubt.model, doubt.message) for doubt in doubts]

    harmless = [bits(390), bits(300)]
    harm = [bits(250), [True] * 60 + [False] * 340]
    assert found("baseline→compressed", harmless) == []
    assert found("compressed→compressed", harm) == []
    ((check, model, message),) = found("baseline→compressed", harm)
    assert (check, model) == ("transfer-beats-white-box", "compressed")
    assert "made against the baseline model breaks 40 images of the compressed model" in message
    assert found("compressed→baseline", harm)[0][1] == "baseline"


def test_gradients_that_are_zero_make_the_figures_unreliable():
    pgd = [bits(250), bits(100)]
    assert findings(outcome(pgd=pgd, silent={"pgd": 5})) == []
    (found,) = findings(outcome(pgd=pgd, silent={"pgd": 6}))
    assert found[0] == "unreliable"
    assert "gradient of the compressed model is zero at 6 images that withstand PGD" in found[1]


def test_attacks_of_foolbox_are_checked_by_weaker_ones_too_but_the_papers_are_not():
    (found,) = findings(outcome(noise=[bits(395), bits(300)], fmn=[bits(398), bits(390)]))
    assert found[0] == "unreliable"
    assert found[1].startswith("noise breaks 93 images of the compressed model that FMN does not")
    assert findings(outcome(noise=[bits(395), bits(300)], **{"paper-jitter": [bits(398), bits(390)]})) == []


def test_guesses_are_told():
    (found,) = findings(outcome(clean=tuple(bits(48))))  # of 400, of 10 classes
    assert found[0] == "inconclusive"
    assert "48 of 400 images rightly without an attack, no more than by guessing" in found[1]
    assert findings(outcome(clean=tuple(bits(60)))) == []


def test_all_models_at_the_floor_say_nothing():
    floor, some = [bits(0), bits(0)], [bits(1), bits(0)]
    (found,) = findings(outcome("baseline", pgd=floor), outcome(pgd=floor))
    assert found[0] == "inconclusive"
    assert "0 % already at ε = 0.1" in found[1]
    assert findings(outcome("baseline", pgd=floor), outcome(pgd=some)) == []
    assert findings(outcome(pgd=some)) == []


def test_a_network_that_is_never_right_is_told_instead_of_the_floor():
    floor, never = [bits(0), bits(0)], tuple(bits(0))
    found = findings(outcome("baseline", clean=never, pgd=floor), outcome(clean=never, pgd=floor))
    assert [severity for severity, _ in found] == ["inconclusive"] * 2
    assert all("0 of 400 images rightly" in message for _, message in found)


def test_a_radius_of_zero_does_not_hide_the_floor():
    radii = {"eps": (0.0, 8 / 255)}
    floor, some = [bits(390), bits(0)], [bits(390), bits(1)]
    (found,) = findings(outcome("baseline", pgd=floor, **radii), outcome(pgd=floor, **radii))
    assert found[0] == "inconclusive"
    assert "0 % already at ε = 8/255" in found[1]
    assert findings(outcome("baseline", pgd=floor, **radii), outcome(pgd=some, **radii)) == []


def test_at_a_radius_of_zero_alone_there_is_no_floor():
    nothing = [bits(0)]
    assert findings(outcome("baseline", pgd=nothing, eps=(0.0,)), outcome(pgd=nothing, eps=(0.0,))) == []
