"""Evaluations with known figures, and pages taken apart."""

from html.parser import HTMLParser

from lrcompress.robustness import AttackOutcome, Evaluation, Finding, ModelOutcome


def flags(count: int, images: int = 20) -> tuple[bool, ...]:
    """Returns `count` images answered rightly and the others wrongly."""
    return tuple([True] * count + [False] * (images - count))


def evaluation(
    *,
    baseline: bool = True,
    attacked: bool = True,
    data: str = "the data",
    clean: tuple[int, int] = (18, 16),
    robust: tuple[tuple[int, ...], tuple[int, ...]] = ((10, 4), (12, 3)),
    eps: tuple[float, ...] = (4 / 255, 8 / 255),
    findings: tuple[Finding, ...] = (),
    seed: int = 0,
    steps: int = 20,
) -> Evaluation:
    """Returns an evaluation of twenty images; pairs are (baseline, compressed)."""
    models = []
    for role, right, rows in zip(("baseline", "compressed"), clean, robust, strict=True):
        bits = tuple(flags(count) for count in rows)
        attacks = (AttackOutcome("pgd", eps, bits), AttackOutcome("worst", eps, bits)) if attacked else ()
        models.append(ModelOutcome(role, f"sha of {role}", flags(right), attacks, 1.0))
    settings = {
        "attacks": ["pgd"] if attacked else [], "eps": list(eps), "steps": steps, "restarts": 2, "rel_stepsize": 0.125,
        "engine": "foolbox",
    }  # fmt: skip
    return Evaluation(data, 20, "linf", settings, seed, tuple(models if baseline else models[1:]), findings)


VOID_TAGS = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """An HTML page taken apart; `parse` refuses tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):  # type: ignore[no-untyped-def]
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # type: ignore[no-untyped-def]
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> does not close what is open"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    @classmethod
    def parse(cls, html: str) -> "Page":
        """Returns the page."""
        page = cls()
        page.feed(html)
        page.close()
        assert page.open == []
        return page
