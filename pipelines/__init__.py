"""What generates: one self-contained file per published pipeline class."""

from histodistill.pipelines.histology_pipeline import HistologyPipeline, HistologyPipelineOutput, add_what_was_seen


__all__ = ["HistologyPipeline", "HistologyPipelineOutput", "add_what_was_seen"]
