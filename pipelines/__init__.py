"""What generates: one self-contained file per published pipeline class."""

from histodistill.pipelines.histology_pipeline import HistologyPipeline, HistologyPipelineOutput


__all__ = ["HistologyPipeline", "HistologyPipelineOutput"]
