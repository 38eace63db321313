"""Measure what the card of a translation model shows of its attention.

Executed in a process of its own, see `hf_vit.cards.measure`: the package is imported only once the folder's code has
been loaded, for it would take its place.
"""

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


def measure(repo_id: str, attended: list[str]) -> dict:
    """The attention of the decoder's last layer to the source, mean over its heads: a row for each token written."""
    tokenizer = AutoTokenizer.from_pretrained(repo_id, trust_remote_code=True)
    options = {"trust_remote_code": True, "attn_implementation": "eager"}
    model = AutoModelForSeq2SeqLM.from_pretrained(repo_id, **options).eval()
    from hf_vit.models.pipeline_translation import target_tokenizer_of

    target_tokenizer = target_tokenizer_of(tokenizer)
    rows = []
    for text in attended:
        inputs = tokenizer(text, return_tensors="pt")
        limits = {"num_beams": 1, "do_sample": False}
        outputs = model.generate(
            inputs.input_ids,
            attention_mask=inputs.attention_mask,
            output_attentions=True,
            return_dict_in_generate=True,
            **limits,
        )
        maps = torch.stack([layers[-1][0, :, -1].mean(0) for layers in outputs.cross_attentions])  # (target, source)
        source, target = (
            [str(each.decode([token])).strip() or "␣" for token in ids.tolist()]
            for each, ids in ((tokenizer, inputs.input_ids[0]), (target_tokenizer, outputs.sequences[0, 1:]))
        )
        values = [[float(f"{value:.3g}") for value in line] for line in maps.tolist()]
        rows.append({"source": source, "target": target, "map": values})
    return {"cross_attention": rows}
