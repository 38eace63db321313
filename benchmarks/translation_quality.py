"""The cost of rounding the weights of a translator: BLEU in fp32, bf16 and int8, greedily and with beams.

    python benchmarks/translation_quality.py --model_name_or_path FOLDER --dataset_name FOLDER_OR_ID \\
        [--test_split_name test_2016_flickr] [--output benchmarks/results/translation_quality.json]

The model of recipe `multi30k_de_en` on that recipe's test split; the exit status is 1 if the BLEU of int8, which is
the mode to advertise, is further than 0.2 from that of fp32. bf16 is shown beside it.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import transformers
from report import write_report
from sacrebleu.metrics import BLEU
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_vit.models.pipeline_translation import TranslationPipeline
from hf_vit.tasks.translation.data import load_parallel_texts
from hf_vit.train import parse

RECIPE = "multi30k_de_en"
MODES = ("fp32", "bf16", "int8")
TOLERANCE = 0.2
BATCH_SIZE = 50


def load(name: str | Path, mode: str = "fp32") -> TranslationPipeline:
    """A saved model of this package in one of `MODES`."""
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=dtype).eval()
    if mode == "int8":
        model.quantize_dynamic()
    return TranslationPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(name))


@torch.inference_mode()
def translations(translator: TranslationPipeline, sources: list[str], num_beams: int, label: str) -> list[str]:
    """The texts' translations; the longest are translated first, beside others of their length."""
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    found = {}
    for start in tqdm(range(0, len(order), BATCH_SIZE), desc=label, unit="batch"):
        part = order[start : start + BATCH_SIZE]
        options = {"batch_size": BATCH_SIZE, "num_beams": num_beams, "max_new_tokens": 64}
        outputs = translator([sources[i] for i in part], **options)
        found.update(zip(part, (output["translation_text"] for output in outputs)))
    return [found[i] for i in range(len(sources))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--num_beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments, data = parser.parse_known_args()
    parsed = parse(["--recipe", RECIPE, *data])
    test = load_parallel_texts(parsed.data, parsed.run.seed).splits["test"]
    sources, references = list(test["source"]), list(test["target"])
    rows = []
    for num_beams in arguments.num_beams:
        for mode in MODES:
            translator = load(arguments.model_name_or_path, mode)
            start = time.perf_counter()
            texts = translations(translator, sources, num_beams, f"{mode}, {num_beams} beams")
            seconds = time.perf_counter() - start
            bleu = BLEU().corpus_score(texts, [references]).score
            rows.append({"mode": mode, "num_beams": num_beams, "bleu": round(bleu, 2), "seconds": round(seconds, 1)})
            rows[-1]["difference"] = round(rows[-1]["bleu"] - rows[-1 - MODES.index(mode)]["bleu"], 2)
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if arguments.output:
        write_report(arguments.output, rows, (torch, transformers))
    sys.exit(int(any(abs(row["difference"]) > TOLERANCE for row in rows if row["mode"] == "int8")))


if __name__ == "__main__":
    main()
