"""The program that `measure` runs: reads a request from standard input and answers with JSON on standard output."""

import contextlib
import io
import json
import sys

from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoImageProcessor, AutoModelForImageClassification


def output_of(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "__main__"})
    return printed.getvalue()


def cost_of_image_classification(repo_id: str) -> dict:
    processor = AutoImageProcessor.from_pretrained(repo_id)
    # The counter sees every product of the eager attention, whatever kernel a device would use.
    options = {"trust_remote_code": True, "attn_implementation": "eager"}
    model = AutoModelForImageClassification.from_pretrained(repo_id, **options).eval()
    model.requires_grad_(False)  # the counter fails on parameters that hooks cannot be put on
    pixel_values = processor(Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]  # (1, C, H, W)
    with FlopCounterMode(display=False) as counter:
        model(pixel_values)
    cost = {"input_shape": list(pixel_values.shape[1:]), "flops": counter.get_total_flops()}
    if hasattr(model.config, "num_prefix_tokens"):
        rows, columns = model.config.grid_size
        cost.update(num_patches=rows * columns, num_prefix_tokens=model.config.num_prefix_tokens)
    return cost


COSTS = {"image_classification": cost_of_image_classification}

request = json.load(sys.stdin)
outputs = {code: output_of(code) for code in request["snippets"]}
with contextlib.redirect_stdout(sys.stderr):
    cost = COSTS[request["task"]](request["repo_id"])
print(json.dumps({"outputs": outputs, **cost}))
