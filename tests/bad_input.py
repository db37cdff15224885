"""The table of wrong inputs: the options of a command, and what its one line on stderr must say.

`{place}` is the folder of the tiny model and the small benchmarks, `{traps}` that of the files that `make_traps` writes.
"""
import json

import torch
from conftest import tiny

import lora

CASES = [
    # options out of range or of the wrong type
    ("--n 1", "argument --n: must be a whole number of 2 or more, not '1'"),
    ("--n four", "argument --n: must be a whole number"),
    ("--n 2.5", "argument --n: must be a whole number"),
    ("--n 20000", "n = 20000 needs 20000 training and 10000 dev examples, more than the pool of"),
    ("--n 4 20000", "more than the pool of"),
    ("--n", "argument --n: expected at least one argument"),
    ("--lr 0", "argument --lr: must be a number above 0"),
    ("--lr -1e-3", "argument --lr"),
    ("--lr nan", "must be a number above 0"),
    ("--lr 1e31", "must be a number above 0 and at most 1e+30"),
    ("--lr fast", "must be a number above 0"),
    ("--sets 0", "must be a whole number of 1 or more"),
    ("--set -1", "argument --set"),
    ("--set 1 --sets 2", "not allowed with"),
    ("--test 0", "argument --test: must be a whole number of 1 or more"),
    ("--rank 0", "argument --rank: must be a whole number of 1 to 1024"),
    ("--rank 2000", "argument --rank: must be a whole number of 1 to 1024"),
    ("--alpha 0", "argument --alpha: must be a number above 0"),
    ("--beta x", "argument --beta: must be a number above 0"),
    ("--max-epochs 0", "argument --max-epochs"),
    ("--max-tokens 1", "whole number of 2 or more"),
    ("--bins 0", "argument --bins"),
    ("--together 0", "argument --together"),
    ("--seed -1", "argument --seed"),
    ("--shard 2/2", "must be I/K"),
    ("--shard 1", "must be I/K"),
    ("--nonsense", "unrecognized arguments: --nonsense"),
    ("--lr 1e30 --methods ia2", "training has diverged: use a smaller --lr"),
    # unknown names, with the nearest known one
    ("--dataset movis", "unknown dataset 'movis' (did you mean movies?)"),
    ("--eval sst", "unknown dataset 'sst' (did you mean sst2?)"),
    ("--dataset /no/such/folder", "unknown dataset '/no/such/folder'"),
    ("--methods iaa2", "'iaa2' is unknown (did you mean ia2?)"),
    ("--model smollm2-153m", "unknown model 'smollm2-153m' (did you mean smollm2-135m?)"),
    ("--model /no/such/model", "unknown model '/no/such/model'"),
    ("--labels word", "'word' is unknown (did you mean words?)"),
    ("--device gpu", "'gpu' is unknown"),
    ("--device cpus", "did you mean cpu?"),
    ("--targets x", "'x' is unknown"),
    ("--targets gat", "did you mean gate?"),
    ("--leave-out pair", "argument --leave-out: 'pair' is unknown"),
    ("--leave-out each --n 2 --balanced", "use an --n that is a multiple of 2, 4 or more"),
    ("--leave-out each --n 5 --balanced", "use an --n that is a multiple of 2, 4 or more"),
    ("--leave-out each --no-balanced", "give --balanced and a task with labels"),
    ("--leave-out each --balanced --dataset gsm8k", "give --balanced and a task with labels"),
    ("--sft-on golden", "did you mean gold?"),
    # tasks that do not go together
    ("--eval agnews", "cannot be tested on agnews"),
    ("--dataset gsm8k --eval sciq", "cannot be tested on sciq"),
    # files and folders
    ("--data-dir /no/such/folder", "/no/such/folder/sst2 has no train.jsonl"),
    ("--data-dir {traps}/latin", "train.jsonl, line 2: this is not UTF-8"),
    ("--data-dir {traps}/torn", "train.jsonl, line 2: this is not a JSON object"),
    ("--data-dir {traps}/fieldless", "train.jsonl, line 1: "),
    ("--dataset {traps}/empty", "has no train.jsonl"),
    ("--dataset {traps}/alike --n 2", "start with the same token"),
    ("--dataset {traps}/long --n 4", "more than the model's context of 512"),
    ("--out /proc/nowhere", "cannot write to /proc/nowhere"),
    ("--out {traps}/a_file", "cannot write to"),
    ("--out {traps}/torn_results", "results.jsonl, line 1: this is not a result"),
    ("--report /no/such/results.jsonl", "there is no results file /no/such/results.jsonl"),
    ("--report {traps}/torn_results/results.jsonl", "line 1: this is not a result"),
    # models and adapters
    ("--model {traps}/gpt2", "use a model of the Llama or Qwen kind"),
    ("--model {traps}/empty", "cannot load the model"),
    ("--model {traps}/pickled", "cannot load the model"),
    ("--model {traps}/endless --dataset gsm8k --max-tokens 4", "has no end-of-sequence token"),
    ("--adapter /no/such/adapter", "/no/such/adapter is not an adapter folder: adapter_config.json is missing"),
    ("--adapter {traps}/empty", "is not an adapter folder"),
    ("--adapter {traps}/broken_adapter --eval sst2", "cannot be read"),
    ("--adapter {traps}/other_adapter --eval sst2", "does not fit"),
    ("--adapter {traps}/other_adapter", "does not say what it was trained on; give a task with --eval"),
] + ([] if torch.cuda.is_available() else [("--device cuda", "no CUDA device was found")])


def write(path, *rows):
    """train.jsonl and test.jsonl of a folder, the last third for the test: rows as JSON, or bytes as they are."""
    path.mkdir(parents=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows]
    for part, some in (("train", lines[:-len(lines) // 3]), ("test", lines[-len(lines) // 3:])):
        (path / f"{part}.jsonl").write_bytes(b"".join(some))


def make_traps(path, tokenizer):
    """Write what the table refers to under `path`."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    good = {"sentence": "a fine film", "label": 1}
    write(path / "latin" / "sst2", good, "{\"sentence\": \"café\", \"label\": 0}\n".encode("latin-1"), good)
    write(path / "torn" / "sst2", good, b'{"sentence": "a fine\n', good)
    write(path / "fieldless" / "sst2", {"text": "a fine film", "label": 1}, good)
    write(path / "alike", *({"query": f"{k}", "response": ("New York", "New Delhi")[k % 2]} for k in range(9)))
    write(path / "long", *({"query": f"{k} " + "very long text " * 150, "response": ("yes", "no")[k % 2]} for k in range(12)))
    (path / "empty").mkdir()
    (path / "a_file").write_text("x")
    (path / "torn_results").mkdir()
    (path / "torn_results" / "results.jsonl").write_text("nonsense\n")
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=49152)).save_pretrained(path / "gpt2")
    model = tiny("qwen3", vocabulary=49152)
    for name in ("pickled", "endless"):
        model.save_pretrained(path / name)
    (path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), path / "pickled" / "pytorch_model.bin")
    for name in ("gpt2", "pickled", "endless"):
        tokenizer.save_pretrained(path / name)
    endless = AutoTokenizer.from_pretrained(path / "endless")
    endless.eos_token = None
    endless.save_pretrained(path / "endless")
    other = tiny("qwen3", hidden_size=64, head_dim=16)
    lora.add(other)
    for name in ("other_adapter", "broken_adapter"):
        (path / name).mkdir()
        lora.save(other, path / name, base_model=str(path.parent / "tiny"))
    (path / "broken_adapter" / "adapter_model.safetensors").write_bytes(b"broken")
