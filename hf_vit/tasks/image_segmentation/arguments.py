"""The arguments of image segmentation: those of detection. Nothing here takes long to import: the help is made of
it."""

from __future__ import annotations

from dataclasses import dataclass

from hf_vit.tasks.object_detection.arguments import ObjectDetectionArguments


@dataclass(kw_only=True)
class ImageSegmentationArguments(ObjectDetectionArguments):
    pass
