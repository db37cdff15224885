"""What tests of the hub let a `fresh.Machine` do: functions of JSON to JSON, in a new process."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

import data
from engine import bundled, models
from sources import tasks
from support.cli import UserError

PROMPT = "Text:a warm and clever film\nLabel:"


def find_models(names: list[str]) -> dict:
    """What models' names lead to, or the errors that there are instead."""
    result = {}
    for name in names:
        try:
            result[name] = {"fingerprint": models.find(name, "cpu").fingerprint}
        except UserError as error:
            result[name] = {"error": str(error)}
    return result


def load_model(name: str) -> dict:
    """A model and its tokenizer, in what they do to a prompt, or the error."""
    try:
        choice = models.find(name, "cpu")
        model = models.load_model(choice)
    except UserError as error:
        return {"error": str(error)}
    with torch.no_grad():
        tokens = data.prompt_tokens(choice.tokenizer, [], PROMPT)
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    return {
        "fingerprint": choice.fingerprint,
        "dtype": str(model.dtype),
        "tied": model.config.tie_word_embeddings,
        "tokens": choice.tokenizer.convert_ids_to_tokens(tokens),
        "logits": hashlib.sha256(logits.float().numpy().tobytes()).hexdigest(),
        "embedding": digest_of(model.get_input_embeddings().weight),
    }


def digest_of(weight: torch.Tensor) -> str:
    """The sha256 of a bfloat16 tensor's bytes."""
    return hashlib.sha256(weight.detach().view(torch.int16).numpy().tobytes()).hexdigest()


def read_tasks(names: list[str]) -> dict:
    """The items of each task and where they are from, or the error that there is instead."""
    result = {}
    for name in names:
        try:
            rows = tasks.read_task(tasks.find_task(name))
        except UserError as error:
            result[name] = {"error": str(error)}
            continue
        items = {part: [asdict(item) for item in getattr(rows, part)] for part in ("train", "test")}
        result[name] = {"source": rows.source, **items}
    return result


def read_or_stand_in(names: list[str]) -> dict:
    """Where tasks' rows are from, once stand-ins have been considered, or the error."""
    result = {}
    for name in names:
        try:
            result[name] = data.read_or_stand_in(name, None).source
        except UserError as error:
            result[name] = str(error)
    return result


def find_model_and_rows(model: str, task: str) -> list:
    """Both at once, for a hub that lets each wait."""
    with ThreadPoolExecutor() as threads:
        found = threads.submit(find_models, [model])
        read = threads.submit(read_or_stand_in, [task])
        return [found.result()[model], read.result()[task]]


def fetch_bundle(repository: str, file: str, sha256: str, folder: str) -> dict:
    """A bundled model's file through the hub."""
    bundle = bundled.Bundle(file, sha256)
    try:
        path = bundled.fetch_file("small", repository, bundle, Path(folder))
    except UserError as error:
        return {"error": str(error)}
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
