"""How the images of a distilled set were chosen, in words that need no knowledge of selectors."""

from __future__ import annotations

from typing import Any

from histodistill.training.distillation.select import SelectConfig


#: The selector that goes by communities; for all others they are a picture of the pool and no more.
BY_COMMUNITIES = "infomap"
#: Name of a selector → what people call it, and what it chooses.
SELECTOR_TEXTS = {
    "infomap": ("Infomap", "the most central images of each community of near neighbours, as in the paper"),
    "random": ("random choice", "images at random"),
    "kmeans": ("k-means", "the images nearest to the centres of as many clusters"),
    "herding": ("herding", "one image after the other, so that their mean stays nearest to the mean of the class"),
    "kernel_herding": (
        "kernel herding",
        "one image after the other, so that the chosen ones are spread as all generated images of the class are: many "
        "where these are many, few where they are few",
    ),
    "k_center": ("k-center", "one image after the other, each time the one farthest from those already chosen"),
    "facility_location": ("facility location", "the images that bring every other one near to a chosen one"),
    "kernel_ridge": (
        "kernel ridge regression",
        "the images from which it predicts the classes of all generated images best, looking at all classes together",
    ),
}
# Why the default is the default, and what that does not say.
_WHY_DEFAULT = (
    "It is the default, since on validation tiles of two data sets it was the only way to choose that was surely "
    "better than random choice; on their test tiles none was"
)


def selector_text(settings: dict[str, Any]) -> dict[str, Any] | None:
    """How the images were chosen, and why so.

    Args:
        settings: Of the record of the selection, empty where there is none.

    Returns:
        `name`; `sentences`; and `by_communities`, whether the choice went by communities. None where the record does
        not say, or names a selector that is not known here.
    """
    selector = settings.get("selector")
    if selector not in SELECTOR_TEXTS:
        return None
    name, what = SELECTOR_TEXTS[selector]
    if selector == BY_COMMUNITIES and settings.get("ranking") == "random":
        what = "random images of each community of near neighbours"
    sentences = [f"Of each class, {name} chose {what}."]
    if selector == SelectConfig.selector:
        sentences.append(f"{_WHY_DEFAULT}. The page on selection of the documentation has the figures.")
    return {"name": name, "sentences": sentences, "by_communities": selector == BY_COMMUNITIES}
