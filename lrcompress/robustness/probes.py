"""Probes: does a model answer in a way that figures mean something, and does the attack do what it could."""

import torch
from torch import Tensor, nn

from lrcompress.data import ImageSet, iterate_batches
from lrcompress.errors import EvaluationError
from lrcompress.perturb import format_radius
from lrcompress.robustness.apgd import Apgd
from lrcompress.robustness.attacks import AttackSettings
from lrcompress.robustness.blocks import KnownBlock
from lrcompress.robustness.evaluation import Finding
from lrcompress.robustness.iterated import IteratedAttack, Passes, run_stream
from lrcompress.robustness.pgd import Pgd
from lrcompress.robustness.seeds import image_seeds

PROBED = 128  # images
# A ball of this radius in ℓ∞ holds images that are grey all over, and those tell nothing.
BLIND_RADIUS = 0.5
PROBE_TOLERATED = 0.02  # of them, a share that other random starts explain
# Relative difference of logits that the order of summation explains.
ROUNDING = 1e-3


def check_model(model: nn.Module, role: str, images: ImageSet) -> int:
    """Returns the number of classes of a model whose figures mean something.

    Raises:
        EvaluationError: if its logits are not finite, not repeatable or probabilities, or depend on the other images of
            the batch or on whether gradients are computed.
    """
    device = next(model.parameters()).device
    pixels, _ = next(iterate_batches(images, batch_size=8))
    pixels = pixels.to(device)
    with torch.inference_mode():
        logits, again = model(pixels), model(pixels)
        alone = torch.cat([model(one) for one in pixels[:4].split(1)])
    with torch.enable_grad():
        attacked = model(pixels.clone().requires_grad_(True)).detach()
    if not torch.isfinite(logits).all():
        raise EvaluationError(f"the {role} model's logits are not finite", hint="check weights and preprocessing")
    if not torch.equal(logits, again):
        raise EvaluationError(
            f"the {role} model answers the same images differently",
            hint="attacks on random models need other methods; remove the randomness",
        )
    if not float((alone - logits[:4]).abs().max()) <= ROUNDING * float(logits.abs().max()):
        raise EvaluationError(
            f"the {role} model's answer to an image depends on the others in its batch",
            hint="batch norms without running statistics? give the network ones that have them",
        )
    if not float((attacked - logits).abs().max()) <= ROUNDING * float(logits.abs().max()):
        raise EvaluationError(
            f"the {role} model answers differently while gradients are computed",
            hint="its forward pass asks for the mode of autograd; attacks would mislead another network",
        )
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-4).all()):
        raise EvaluationError(
            f"the {role} model returns probabilities, whose gradients vanish", hint="remove the softmax at its end"
        )
    return logits.shape[1]


def check_radius_of_zero(known: KnownBlock, role: str, standing: Tensor) -> None:
    """Checks that an attack at ε = 0 finds what is found without an attack.

    Raises:
        EvaluationError: if it breaks images that rounding does not explain.
    """
    ordered = known.logits.topk(2, dim=1).values
    clear = ordered[:, 0] - ordered[:, 1] > ROUNDING * known.logits.abs().max()
    broken = int((known.clean & ~standing & clear).sum())
    if broken:
        raise EvaluationError(
            f"at ε = 0 the {role} model loses {broken} images that it knows",
            hint="its answers depend on more than the image; its figures would be void",
        )


def probe_attack(
    model: nn.Module,
    role: str,
    known: KnownBlock,
    standing: Tensor,
    settings: AttackSettings,
    passes: Passes,
) -> list[Finding]:
    """Returns doubts about the attacks' strength.

    Would more steps of PGD, in ℓ1 of APGD, break more, a larger radius less, and does an image withstand that nothing
    is left of?

    Args:
        model: the model; in eval mode with frozen parameters.
        role: its role.
        known: images.
        standing: for each radius and image, whether it withstood everything (e × n).
        settings: of the attacks.
        passes: counted here.
    """
    some = known.clean.nonzero().flatten()[:PROBED]
    if len(some) == 0:
        return []
    findings, counts = [], standing[:, some].sum(1)
    allowed = max(1, round(PROBE_TOLERATED * len(some)))

    def broken(attack: IteratedAttack, chosen: Tensor, name: str) -> int:
        outcome = run_stream(
            model,
            attack,
            known.block.pixels[chosen],
            known.block.labels[chosen],
            known.logits[chosen],
            image_seeds(chosen + known.block.first, settings.seed, name),
            batch_size=settings.batch_size,
        )
        passes.forward += outcome.passes.forward
        passes.backward += outcome.passes.backward
        return int(outcome.broken.sum())

    # In ℓ1 PGD is weak, and what it leaves says little.
    probe, title = (Apgd, "APGD") if settings.norm == "l1" else (Pgd, "PGD")
    # Where there is most to gain and to lose.
    radius = int((counts - len(some) / 2).abs().argmin())
    eps, left = settings.eps[radius], some[standing[radius, some]]
    at, at_largest = (f"at ε = {format_radius(value, settings.norm)}" for value in (eps, max(settings.eps)))
    if eps > 0 and len(left) > 0:
        more = broken(probe(eps, settings.norm, 2 * settings.steps), left, "doubled")
        if more > allowed:
            weak = settings.norm == "l1" and not any(name.startswith("apgd") for name in settings.attacks)
            advice = "add --attack apgd-ce" if weak else "give more --steps, --restarts or attacks"
            message = (
                f"{2 * settings.steps} steps of {title} break {more} more of {len(some)} images of the {role} model "
                f"{at}: {advice}"
            )
            findings.append(Finding("unreliable", message, "doubled-steps", role))
    lost = some[~standing[:-1, some].all(0)] if len(settings.eps) > 1 else some[:0]
    if len(lost) > 0:
        stands = len(lost) - broken(probe(max(settings.eps), settings.norm, settings.steps), lost, "largest")
        if stands > allowed:
            message = (
                f"{at_largest} {title} leaves {stands} of {len(lost)} images of the {role} model that "
                "smaller radii break: its gradients mislead"
            )
            findings.append(Finding("unreliable", message, "not-monotone", role))
    blind = len(some) - broken(Pgd(BLIND_RADIUS, "linf", settings.steps), some, "blind")
    if 2 * blind > len(some):
        message = (
            f"the {role} model withstands PGD at ε = {BLIND_RADIUS} in ℓ∞, where nothing is left of an image, "
            f"on {blind} of {len(some)} images: its gradients mislead"
        )
        findings.append(Finding("unreliable", message, "large-radius", role))
    return findings
