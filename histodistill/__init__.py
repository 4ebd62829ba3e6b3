"""Turns labelled histopathology tiles that may not be shared into a tiny synthetic set that teaches nearly as much.

The names in `__all__` are public; `docs/api.md` says what each is. They are imported on first use, so that
`import histodistill` is quick and needs no library.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from histodistill.pipelines.histology_pipeline import HistologyPipeline
    from histodistill.selection.distill_selector import DistillSelector
    from histodistill.selection.image_audit import audit_images
    from histodistill.selection.registry import SELECTORS
    from histodistill.training.data.image_dataset import read_image_dataset
    from histodistill.training.data.sources import load_tiles
    from histodistill.training.data.tiles import Tiles
    from histodistill.training.distillation.merge import MergeConfig
    from histodistill.training.distillation.merge import run as merge
    from histodistill.training.distillation.select import SelectConfig
    from histodistill.training.distillation.select import run as select
    from histodistill.training.end_to_end.distill import DistillConfig
    from histodistill.training.end_to_end.distill import run as distill
    from histodistill.training.end_to_end.inspect_tiles import InspectTilesConfig
    from histodistill.training.end_to_end.inspect_tiles import run as inspect_tiles
    from histodistill.training.evaluation.audit import AuditConfig
    from histodistill.training.evaluation.audit import run as audit
    from histodistill.training.evaluation.compare import CompareConfig
    from histodistill.training.evaluation.compare import run as compare
    from histodistill.training.evaluation.evaluate_pool import EvaluatePoolConfig
    from histodistill.training.evaluation.evaluate_pool import run as evaluate_pool
    from histodistill.training.generate import GenerateConfig
    from histodistill.training.generate import run as generate
    from histodistill.training.models.classifiers import Classifier
    from histodistill.training.models.embedders import load_embedder
    from histodistill.training.publishing.export import ExportConfig
    from histodistill.training.publishing.export import run as export
    from histodistill.training.publishing.publish import PublishConfig
    from histodistill.training.publishing.publish import run as publish
    from histodistill.training.publishing.verify import VerifyConfig
    from histodistill.training.publishing.verify import run as verify
    from histodistill.training.reporting.review import ReviewConfig
    from histodistill.training.reporting.review import run as review
    from histodistill.training.running.errors import InputError
    from histodistill.training.train_autoencoder import TrainAutoencoderConfig
    from histodistill.training.train_autoencoder import run as train_autoencoder
    from histodistill.training.train_classifier import TrainClassifierConfig
    from histodistill.training.train_classifier import run as train_classifier
    from histodistill.training.train_diffusion import TrainDiffusionConfig
    from histodistill.training.train_diffusion import run as train_diffusion

#: The version of the installed package, which comes from the tags of the repository. In an editable installation it is
#: that of the day of the installation.
__version__: str

__all__ = [
    "SELECTORS",
    "AuditConfig",
    "Classifier",
    "CompareConfig",
    "DistillConfig",
    "DistillSelector",
    "EvaluatePoolConfig",
    "ExportConfig",
    "GenerateConfig",
    "HistologyPipeline",
    "InputError",
    "InspectTilesConfig",
    "MergeConfig",
    "PublishConfig",
    "ReviewConfig",
    "SelectConfig",
    "Tiles",
    "TrainAutoencoderConfig",
    "TrainClassifierConfig",
    "TrainDiffusionConfig",
    "VerifyConfig",
    "__version__",
    "audit",
    "audit_images",
    "compare",
    "distill",
    "evaluate_pool",
    "export",
    "generate",
    "inspect_tiles",
    "load_embedder",
    "load_tiles",
    "merge",
    "publish",
    "read_image_dataset",
    "review",
    "select",
    "train_autoencoder",
    "train_classifier",
    "train_diffusion",
    "verify",
]

# Name → module below this package, and the name there. The imports above say the same to type checkers.
_HOMES = {
    "SELECTORS": ("selection.registry", "SELECTORS"),
    "AuditConfig": ("training.evaluation.audit", "AuditConfig"),
    "Classifier": ("training.models.classifiers", "Classifier"),
    "CompareConfig": ("training.evaluation.compare", "CompareConfig"),
    "DistillConfig": ("training.end_to_end.distill", "DistillConfig"),
    "DistillSelector": ("selection.distill_selector", "DistillSelector"),
    "EvaluatePoolConfig": ("training.evaluation.evaluate_pool", "EvaluatePoolConfig"),
    "ExportConfig": ("training.publishing.export", "ExportConfig"),
    "GenerateConfig": ("training.generate", "GenerateConfig"),
    "HistologyPipeline": ("pipelines.histology_pipeline", "HistologyPipeline"),
    "InputError": ("training.running.errors", "InputError"),
    "InspectTilesConfig": ("training.end_to_end.inspect_tiles", "InspectTilesConfig"),
    "MergeConfig": ("training.distillation.merge", "MergeConfig"),
    "PublishConfig": ("training.publishing.publish", "PublishConfig"),
    "ReviewConfig": ("training.reporting.review", "ReviewConfig"),
    "SelectConfig": ("training.distillation.select", "SelectConfig"),
    "Tiles": ("training.data.tiles", "Tiles"),
    "TrainAutoencoderConfig": ("training.train_autoencoder", "TrainAutoencoderConfig"),
    "TrainClassifierConfig": ("training.train_classifier", "TrainClassifierConfig"),
    "TrainDiffusionConfig": ("training.train_diffusion", "TrainDiffusionConfig"),
    "VerifyConfig": ("training.publishing.verify", "VerifyConfig"),
    "audit": ("training.evaluation.audit", "run"),
    "audit_images": ("selection.image_audit", "audit_images"),
    "compare": ("training.evaluation.compare", "run"),
    "distill": ("training.end_to_end.distill", "run"),
    "evaluate_pool": ("training.evaluation.evaluate_pool", "run"),
    "export": ("training.publishing.export", "run"),
    "generate": ("training.generate", "run"),
    "inspect_tiles": ("training.end_to_end.inspect_tiles", "run"),
    "load_embedder": ("training.models.embedders", "load_embedder"),
    "load_tiles": ("training.data.sources", "load_tiles"),
    "merge": ("training.distillation.merge", "run"),
    "publish": ("training.publishing.publish", "run"),
    "read_image_dataset": ("training.data.image_dataset", "read_image_dataset"),
    "review": ("training.reporting.review", "run"),
    "select": ("training.distillation.select", "run"),
    "train_autoencoder": ("training.train_autoencoder", "run"),
    "train_classifier": ("training.train_classifier", "run"),
    "train_diffusion": ("training.train_diffusion", "run"),
    "verify": ("training.publishing.verify", "run"),
}

# In a clone this folder shadows the installed package, which has the other parts: look for them there, too.
__path__ = extend_path(__path__, __name__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _installed_version()
    elif name in _HOMES:
        module, attribute = _HOMES[name]
        value = getattr(import_module(f"{__name__}.{module}"), attribute)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _installed_version() -> str:
    # Imported here, since it takes longer than all else above.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(__name__)
    except PackageNotFoundError:
        return "0+unknown"  # a folder of sources that nobody has installed
