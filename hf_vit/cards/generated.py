"""Facts on the metrics of generated texts, greedily and by beam search, which the record names `beamN_...`."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from hf_vit import record
from hf_vit.cards.facts import Metric


def labelled(metric: Metric, schema: type[record.Metrics]) -> Metric:
    """A metric of a beam search as the same metric of greedy decoding is written, with the number of beams.

    Args:
        schema: declares the metrics of greedy decoding.
    """
    beam, _, name = metric.name.partition("_")
    declared = schema.model_fields.get(name)
    if not beam.startswith("beam") or declared is None:
        return metric
    extra: Any = declared.json_schema_extra
    return dataclasses.replace(
        metric, label=f"{declared.title}, {beam.removeprefix('beam')} beams", kind=extra["kind"]
    )


def beams_of(metrics: Iterable[Metric]) -> int:
    """Beams that the saved model was measured with beside greedy decoding, else 1."""
    found = (re.match(r"beam(\d+)_", metric.name) for metric in metrics)
    return next((int(match[1]) for match in found if match), 1)
