"""Speed of translation beside transformers' Marian and CTranslate2, with the same weights and the same texts.

    python benchmarks/translation_speed.py [--rows greedy-1 beam4-1] [--output benchmarks/results/translation.json]

A model of 6 + 6 layers, width 512 and 32,000 tokens translates sources of 30 tokens into 30 tokens; its weights are
random, its end of text suppressed. Ours has its weights packed, as a translation pipeline packs them. Each row is
measured in turns (ours, ours in bf16, in int8, transformers, ...), so that a machine that slows down slows all alike;
CTranslate2 with one thread and with all, of which the faster counts, for it is not always the latter. The medians are
reported, and ratios of a peer's time to ours: above 1, ours is the faster one. `reduced` is the faster of bf16 and
int8. `limit` is the share of the memory's bandwidth, measured first, at which our fp32 row reads the decoder's
weights: at batch 1 nothing can be faster than 1. The exit status is 1 if a row is under its bar.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import ctranslate2
import torch
import transformers
from ctranslate2.converters.transformers import MarianMTLoader
from report import write_report

from hf_vit.conversion.models import from_peer

PAUSE = 0.3  # seconds before each measurement: threads of OpenMP keep their cores for 0.2 s after their work
NUM_TOKENS = 30
VOCAB_SIZE = 32_000
ROWS = {f"{name}-{size}": (beams, size) for name, beams in (("greedy", 1), ("beam4", 4)) for size in (1, 16)}
ROWS["greedy-64"] = (1, 64)
ROWS["training step"] = (0, 16)


def make_marian() -> transformers.MarianMTModel:
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=VOCAB_SIZE,
        d_model=512,
        **{f"{stack}_layers": 6 for stack in ("encoder", "decoder")},
        **{f"{stack}_attention_heads": 8 for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": 2048 for stack in ("encoder", "decoder")},
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=VOCAB_SIZE - 1,
        decoder_start_token_id=VOCAB_SIZE - 1,
        eos_token_id=0,
        forced_eos_token_id=None,
    )
    model = transformers.MarianMTModel(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name and "shared" not in name:
            torch.nn.init.normal_(parameter, std=0.06)  # so that texts vary with the source
    model.model.shared.weight.data[-1] = 0  # as in all published ones, where the padding begins the texts
    # Neither the end nor the padding is ever the likeliest token.
    model.final_logits_bias[0, [0, VOCAB_SIZE - 1]] = -1e4
    return model


def ctranslate2_translators(model: transformers.MarianMTModel) -> dict:
    spec = MarianMTLoader().get_model_spec(model)  # without the padding token, which is the last
    tokens = ["</s>", *(f"t{i}" for i in range(1, model.config.vocab_size - 1))]
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.eos_token = spec.config.decoder_start_token = "</s>"
    spec.config.unk_token = "t1"
    spec.validate()
    spec.optimize()
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        return {
            f"CTranslate2 {name}, {num_threads} threads": ctranslate2.Translator(
                folder, device="cpu", compute_type=kind, inter_threads=1, intra_threads=num_threads
            )
            for name, kind in (("fp32", "float32"), ("int8", "int8"))
            for num_threads in sorted({1, torch.get_num_threads()})
        }


def generate(model, source: torch.Tensor, num_beams: int) -> list[list[int]]:
    mask = torch.ones_like(source)
    return model.generate(source, attention_mask=mask, num_beams=num_beams, max_new_tokens=NUM_TOKENS)[:, 1:].tolist()


def translate(translator, source: torch.Tensor, num_beams: int) -> list[list[int]]:
    results = translator.translate_batch(
        [[f"t{i}" for i in row] for row in source.tolist()],
        beam_size=num_beams,
        max_decoding_length=NUM_TOKENS,
        min_decoding_length=NUM_TOKENS,
        max_batch_size=0,
    )
    return [[int(token[1:]) for token in result.hypotheses[0] if token.startswith("t")] for result in results]


def training_step(model, source: torch.Tensor) -> float:
    """Forward and backward; the loss."""
    loss = model(input_ids=source, labels=source).loss
    loss.backward()
    model.zero_grad()
    return loss.item()


def same_training(pair: dict, source: torch.Tensor) -> bool:
    """Whether the models have the same loss and the same gradient of the embeddings, but for that of the padding,
    which is also what texts begin with: transformers keeps it as it is."""
    losses, gradients = [], []
    for model in pair.values():
        loss = model.eval()(input_ids=source, labels=source).loss  # without dropout
        loss.backward()
        losses.append(loss.detach())
        gradients.append(model.get_input_embeddings().weight.grad[: VOCAB_SIZE - 1])
        model.zero_grad()
        model.train()
    return torch.allclose(*losses, rtol=1e-4) and torch.allclose(*gradients, rtol=1e-2, atol=1e-4)


def bandwidth(seconds: float = 1.0) -> float:
    """Bytes a second at which a sum reads memory that no cache holds."""
    numbers, times, start = torch.ones(64 << 20), [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        times.append(timed(torch.sum, numbers)[0])
    return numbers.numel() * 4 / min(times)


def timed(function, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def interleaved_medians(functions: dict, seconds: float) -> dict[str, float]:
    """Median time of each function in seconds, over rounds that take about `seconds` in all (at least three)."""
    first = sum(timed(function)[0] for function in functions.values())
    times = {name: [] for name in functions}
    for _ in range(max(3, int(seconds / first))):
        for name, function in functions.items():
            time.sleep(PAUSE)
            times[name].append(timed(function)[0])
    return {name: statistics.median(values) for name, values in times.items()}


def best_of_threads(medians: dict[str, float]) -> dict[str, float]:
    """The medians, those of a name with several numbers of threads as the least of them."""
    best = {}
    for name, median in medians.items():
        name = name.partition(",")[0]
        best[name] = min(median, best.get(name, median))
    return best


def make_models() -> dict:
    peer = make_marian()
    ours = from_peer(peer)
    models = {
        "ours": copy.deepcopy(ours).pack_weights(),
        "ours bf16": copy.deepcopy(ours).bfloat16().pack_weights(),
        "ours int8": copy.deepcopy(ours).quantize_dynamic(),
    }
    return {**models, "transformers": peer, **ctranslate2_translators(peer)}


def measure(name: str, models: dict, bytes_a_second: float, seconds: float) -> dict:
    num_beams, batch_size = ROWS[name]
    source = torch.randint(1, VOCAB_SIZE - 1, (batch_size, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    if name == "training step":
        return measure_training(name, models, source, seconds)
    functions = {
        key: partial(translate if key.startswith("CTranslate2") else generate, model, source, num_beams)
        for key, model in models.items()
    }
    texts = {key: function() for key, function in functions.items()}
    medians = best_of_threads(interleaved_medians(functions, seconds))
    decoder, theirs = models["ours"].model.decoder, texts["CTranslate2 fp32, 1 threads"]
    num_weights = sum(p.numel() for p in decoder.parameters())  # the output's weights are the embeddings'
    fp32, reduced = medians["ours"], min(medians["ours int8"], medians["ours bf16"])
    return {
        "row": name,
        **{f"{key} ms": round(value * 1e3, 2) for key, value in medians.items()},
        "same_texts": texts["ours"] == texts["transformers"],
        "texts_of_CTranslate2": sum(map(list.__eq__, texts["ours"], theirs)) / batch_size,
        "lengths": sorted({len(text) for rows in texts.values() for text in rows}),
        "fp32_to_transformers": round(medians["transformers"] / fp32, 3),
        "fp32_to_ctranslate2": round(medians["CTranslate2 fp32"] / fp32, 3),
        "reduced_to_transformers": round(medians["transformers"] / reduced, 3),
        "reduced_to_ctranslate2": round(medians["CTranslate2 int8"] / reduced, 3),
        "limit": round(num_weights * 4 * NUM_TOKENS / bytes_a_second / fp32, 3),
    }


def measure_training(name: str, models: dict, source: torch.Tensor, seconds: float) -> dict:
    pair = {key: copy.deepcopy(models[key]).train() for key in ("ours", "transformers")}
    functions = {key: partial(training_step, model, source) for key, model in pair.items()}
    medians = interleaved_medians(functions, seconds)
    return {
        "row": name,
        **{f"{key} ms": round(value * 1e3, 2) for key, value in medians.items()},
        "same_gradients": same_training(pair, source),
        "fp32_to_transformers": round(medians["transformers"] / medians["ours"], 3),
    }


def bars(name: str) -> dict[str, float]:
    """The least ratios that are asked for."""
    if name == "training step":
        return {"fp32_to_transformers": 1.15}
    num_beams, batch_size = ROWS[name]
    return {
        "fp32_to_transformers": 1.9 if num_beams > 1 else 1.3,
        "fp32_to_ctranslate2": 1.0,
        "reduced_to_transformers": 4.5 if batch_size == 1 else 3.5,
        "reduced_to_ctranslate2": 0.9,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each row (default: 20)")
    parser.add_argument("--num_threads", type=int, help="threads of each library (default: torch's)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads or torch.get_num_threads())
    bytes_a_second, models, rows = bandwidth(), make_models(), []
    print(f"memory is read at {bytes_a_second / 1e9:.1f} GB/s")
    for name in arguments.rows:
        rows.append(measure(name, models, bytes_a_second, arguments.seconds))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if arguments.output:
        write_report(arguments.output, rows, (torch, transformers, ctranslate2), bytes_a_second=round(bytes_a_second))
    under = sum(
        not row.get("same_texts", row.get("same_gradients"))
        or any(row[name] < bar for name, bar in bars(row["row"]).items())
        for row in rows
    )
    print(f"{len(rows) - under} of {len(rows)} rows reach the bars")
    sys.exit(int(under > 0))


if __name__ == "__main__":
    main()
