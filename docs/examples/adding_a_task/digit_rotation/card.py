"""What the card of such a model says beyond the shared facts."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from hf_vit.cards.facts import CardFacts, Curve, Snippet
from hf_vit.cards.figures import learning_curves
from hf_vit.cards.records import Records

_SNIPPET = """\
import torch
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained({repo_id}, trust_remote_code=True)
upright = -torch.ones(1, 1, 8, 8)
upright[..., 1:7, 3:5] = 1  # the digit one
cosine, sine = model(pixel_values=upright).logits[0]
print(f"turned by {{torch.atan2(sine, cosine).rad2deg():.0f}} degrees")
"""


@dataclass(frozen=True)
class RotationFacts(CardFacts):
    pipeline_tag: ClassVar[str] = "image-classification"  # the Hub has no name for this task; so its model is loaded
    unit: ClassVar[str] = "images"
    curves: ClassVar[list[Curve]] = [Curve("Mean error", "degrees", "mean_error")]
    figures: ClassVar[dict] = {"curves.png": learning_curves}

    samples: list[dict]

    @classmethod
    def read(cls, records: Records) -> dict[str, Any]:
        return {**super().read(records), "samples": records.run.result.samples}

    @property
    def examples(self) -> list[Snippet]:
        return [Snippet("With the Auto classes", _SNIPPET.format(repo_id=json.dumps(self.repo_id)))]
