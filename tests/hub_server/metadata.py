"""Faults that the Hub finds in the metadata block of a README.md."""

import re

import yaml

# The identifiers of https://huggingface.co/docs/hub/repositories-licenses
_LICENSES = (
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m "
    "afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 "
    "cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl "
    "gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr "
    "mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr "
    "deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "grok2-community gemma unknown other"
)
_PIPELINE_TAGS = (
    "image-classification image-feature-extraction image-to-text object-detection image-segmentation "
    "text-generation translation text2text-generation feature-extraction"
)
LICENSES, PIPELINE_TAGS = set(_LICENSES.split()), set(_PIPELINE_TAGS.split())
_BLOCK = re.compile(r"^---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)
_REPO_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)?|multilingual|code")


def check_metadata(content: str) -> tuple[list[str], list[str], dict]:
    """Errors, warnings and the metadata of a model's README.md."""
    block = _BLOCK.match(content)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"], {}
    try:
        metadata = yaml.safe_load(block.group(1)) or {}
    except yaml.YAMLError as error:
        return [f"YAML parse error: {error}"], [], {}
    if not isinstance(metadata, dict):
        return ["metadata must be a YAML mapping"], [], {}
    errors, warnings = [], []
    for license in _listed(metadata, "license"):
        if license not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}], found {license!r}')
    for name in ("datasets", "base_model"):
        errors += [
            f'"{name}" must hold repository ids, found {value!r}'
            for value in _listed(metadata, name)
            if not (isinstance(value, str) and _REPO_ID.fullmatch(value))
        ]
    for name, pattern in (("tags", re.compile(r".+")), ("metrics", re.compile(r".+")), ("language", _LANGUAGE)):
        errors += [
            f'"{name}" holds {value!r}'
            for value in _listed(metadata, name)
            if not (isinstance(value, str) and pattern.fullmatch(value))
        ]
    tag = metadata.get("pipeline_tag")
    if tag is not None and tag not in PIPELINE_TAGS:
        warnings.append(f'The pipeline tag "{tag}" is not in the official list: {", ".join(sorted(PIPELINE_TAGS))}')
    return errors + _check_model_index(metadata.get("model-index", [])), warnings, metadata


def _listed(metadata: dict, name: str) -> list:
    value = metadata.get(name)
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_model_index(index) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        place = f'"model-index[{i}]'
        if not isinstance(model, dict) or not model.get("name") or not isinstance(model.get("results"), list):
            errors.append(f'{place}" must have a name and results')
            continue
        for j, result in enumerate(model["results"]):
            for path in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not isinstance((result.get(path[0]) or {}).get(path[1]), str):
                    errors.append(f'{place}.results[{j}].{".".join(path)}" must be a string')
            metrics = result.get("metrics")
            if not metrics or not all("type" in metric and "value" in metric for metric in metrics):
                errors.append(f'{place}.results[{j}].metrics" must have a type and a value each')
    return errors
