"""The names that options can have, cheap to read: nothing here imports numpy or any other library."""

from __future__ import annotations


#: The name of every selector, in the order of `histodistill.selection.SELECTORS`; also the choices of an option.
SELECTOR_NAMES = (
    "infomap",
    "random",
    "kmeans",
    "herding",
    "kernel_herding",
    "k_center",
    "facility_location",
    "kernel_ridge",
)
#: Ways to turn and mirror a square, the one that leaves it as it is included.
SYMMETRIES = 8
#: The most fixed views of an image of which a distilled set has soft labels, the image as it is included.
MAX_LABEL_VIEWS = 16
#: Which images of a community a `DistillSelector` can choose.
RANKINGS = ("modular_centrality", "random")
#: The rules by which `community_quotas` shares places among communities.
QUOTA_RULES = ("proportional", "uniform", "sqrt")
#: The weights that `knn_graph` can give to links.
WEIGHTINGS = ("local_gaussian", "inverse_distance", "cosine")

#: What a group of tiles can be, as cards and reports call it; nothing else may be said there.
GROUP_KINDS = ("patient", "case", "specimen", "block", "slide", "site", "group")
#: What is known of tiles beside their label may be told by these names alone; other names may be somebody's own.
ATTRIBUTE_NAMES = (
    "age",
    "batch",
    "centre",
    "center",
    "ethnicity",
    "grade",
    "hospital",
    "organ",
    "race",
    "scanner",
    "sex",
    "site",
    "stage",
    "stain",
    "year",
)
