"""Speed and memory, each step against the plain way of doing it and against the machine's own limit.

    python bench.py                 a table, about 10 minutes on 2 cores
    python bench.py --json          the same for machines

The plain way is written out below: one example at a time, straight through transformers' own model (on the same weights),
with its full vocabulary projection and without a cache. Both ways are timed in turn in the same run; seconds are medians.
The share of the machine's limit is useful FLOPs (2 x weights x tokens that had to be processed, the backward pass through
frozen weights counted once) per second, over the measured rate of a large matrix product of the model's own shapes.
"""
import json
import platform
import statistics
import sys
import threading
import time

import psutil
import torch
from transformers import AutoModelForCausalLM

import data
import ia2
import lora
import model as base
import options
import packing
import results

# Grade-school word problems with worked answers, about as long as GSM8K's (190 tokens each) and written as those are.
WORD_PROBLEM = (
    "On Monday morning the {a} children of the village school each bring {b} ripe apples from home, because the whole school is "
    "getting ready for the harvest fair. The teacher asks them to share all of their apples out into {c} large baskets, so that "
    "every basket holds the same number. In the afternoon a farmer who lives next door comes by and kindly adds {d} more apples "
    "to every single basket. How many apples are there in one basket when the fair begins?")
WORKED = (
    " The {a} children bring {b} apples each, so together they bring {a} * {b} = <<{a}*{b}={ab}>>{ab} apples to the school.\n"
    "They are shared out into {c} baskets, so one basket gets {ab} / {c} = <<{ab}/{c}={q}>>{q} apples.\n"
    "With the {d} apples of the farmer there are {q} + {d} = <<{q}+{d}={r}>>{r} apples in it.\n#### {r}")


# ---- the plain way --------------------------------------------------------------------------------------------------


def plain_model(model):
    """The model as transformers makes it, none of our routines in it, on the weights of `model`: no second copy of them."""
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.get_decoder().rotary_emb = model.get_decoder().rotary_emb  # its frequencies are no part of the state
    return plain.eval().requires_grad_(False)


def plain_pass(model, tokens, outputs):
    """(attention outputs (L, G, d), logits (G, V)) of one example: hooks on every layer, logits at every position."""
    kept, handles = [], []
    for layer in model.get_decoder().layers:
        handles.append(layer.self_attn.register_forward_hook(lambda module, inputs, output: kept.append(output[0])))
    logits = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return torch.stack([output[0, -outputs:] for output in kept]), logits[0, -outputs:]


@torch.no_grad()
def plain_targets(model, prompts, max_tokens):
    """A full forward pass per response token; returns [(response, activations)]."""
    found = []
    for prompt in prompts:
        tokens, activations = list(prompt), []
        for _ in range(max_tokens):
            outputs, logits = plain_pass(model, tokens, 1)
            tokens.append(logits[0].argmax().item())
            activations.append(outputs)
        found.append((tokens[len(prompt):], torch.cat(activations, dim=1)))
    return found


def plain_train(model, name, train, dev, lr, epochs):
    """One stage, an example at a time; returns the last dev loss."""
    def loss_of(target):
        response = target.icl if name == "ia2" else target.gold
        activations, logits = plain_pass(model, [*target.query, *response[:-1]], len(response))
        return ia2.ia2_loss(activations, target.activations) if name == "ia2" \
            else ia2.sft_loss(logits, torch.tensor(response, device=logits.device))

    optimiser = torch.optim.Adam(lora.parameters(model), lr=lr)
    for epoch in range(1, epochs + 1):
        for target in train:
            (loss_of(target) / len(train)).backward()
        optimiser.step()
        optimiser.zero_grad()
        if epoch % 2 == 0:
            with torch.no_grad():
                dev_loss = sum(loss_of(target).item() for target in dev) / len(dev)
    return dev_loss


@torch.no_grad()
def plain_evaluate(model, prompts, label_tokens):
    return [model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False).logits[0, -1].float()
            .softmax(-1)[label_tokens].argmax().item() for prompt in prompts]


# ---- measuring --------------------------------------------------------------------------------------------------------


class Peak:
    """The most memory in use inside the block, in MB: of the GPU where there is one, else of the process."""

    def __init__(self, device):
        self.device, self.most, self.done = device, 0, threading.Event()

    def watch(self):
        process = psutil.Process()
        while not self.done.wait(0.01):
            self.most = max(self.most, process.memory_info().rss / 1e6)

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self.thread = threading.Thread(target=self.watch)
            self.thread.start()
        return self

    def __exit__(self, *_):
        if self.device.type == "cuda":
            self.most = torch.cuda.max_memory_allocated() / 1e6
        else:
            self.done.set()
            self.thread.join()


def timed(job, device):
    """Seconds that a job takes, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate(model):
    """FLOP/s of torch's own product of large matrices of the model's shapes: 1024 tokens (8192 on a GPU) times one of the MLP."""
    gpu, weight = model.device.type == "cuda", model.get_decoder().layers[0].mlp.up_proj.weight
    tokens = torch.randn(8192 if gpu else 1024, weight.shape[1], device=model.device).to(model.dtype)
    count = 100 if gpu else 20

    def job():
        for _ in range(count):
            torch.nn.functional.linear(tokens, weight)

    job()
    return count * 2 * tokens.shape[0] * weight.numel() / timed(job, model.device)


def compare(name, model, ours, plain, flops, tokens, repeats, note=""):
    """One line of the table: both ways in turn, `repeats` times; a line without a plain way has no ratio.

    Memory is read in one more run, which warms up and is not timed: on two cores the thread that watches it would be
    in the way.
    """
    ours_seconds, plain_seconds, rates = [], [], []
    with Peak(model.device) as memory:
        ours()
    for _ in range(repeats):
        rates.append(matrix_rate(model))
        ours_seconds.append(timed(ours, model.device))
        rates.append(matrix_rate(model))
        if plain:
            plain_seconds.append(timed(plain, model.device))
    seconds, rate = statistics.median(ours_seconds), statistics.median(rates)
    line = {"step": name, "seconds": seconds, "plain_seconds": statistics.median(plain_seconds) if plain else None,
            "ratio": statistics.median(plain_seconds) / seconds if plain else None, "tokens_per_second": tokens / seconds,
            "peak_mb": memory.most, "gflops": flops / seconds / 1e9, "limit_gflops": rate / 1e9,
            "share": flops / seconds / rate if flops else None, "note": note}
    print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return line


# ---- the steps --------------------------------------------------------------------------------------------------------


def word_problems(count):
    """Grade-school word problems of our own, with worked answers: free text where no hub is needed."""
    examples = []
    for k in range(count):
        a, c, d = 4 + 2 * k, 2 + k % 3, 3 + k
        b = 3 * c
        numbers = dict(a=a, b=b, c=c, d=d, ab=a * b, q=a * b // c, r=a * b // c + d)
        examples.append(data.Example(f"Question:{WORD_PROBLEM.format(**numbers)}\nAnswer:", WORKED.format(**numbers)))
    return examples


def measure(name, device, repeats, epochs, queries):
    """All lines of the table, as dicts."""
    start = time.perf_counter()
    model, tokenizer = base.load_model(name, device), base.load_tokenizer(name)
    load_seconds = time.perf_counter() - start
    entry = base.entry(name)
    task = data.load("movies", plain=entry.plain, style=entry.labels)
    labels = base.label_tokens(tokenizer, task.label_texts)
    stock = plain_model(model)  # before adapters are put on
    lora.add(stock)
    sets = [data.few_shot_set(task.pool, 4, number, balanced=True) for number in range(5)]
    lora.add(model, runs=15)
    weights = sum(weight.numel() for module in model.get_decoder().layers.modules()
                  if isinstance(module, torch.nn.Linear) for weight in module.parameters())
    adapter = sum(weight.numel() for weight in lora.parameters(model))
    head = model.get_output_embeddings().weight.numel()
    demos = [data.leave_one_out(sets[0], place) for place in range(4)] + [sets[0].train] * 2
    examples = sets[0].train + sets[0].dev
    prompts = [ia2.prompt_tokens(model, tokenizer, before, example.query) for example, before in zip(examples, demos)]
    lines = [{"step": "model load", "seconds": load_seconds, "peak_mb": psutil.Process().memory_info().rss / 1e6}]
    with lora.disable(model), lora.disable(stock):
        tokens = sum(map(len, prompts))
        lines.append(compare("targets, 1 token", model, lambda: ia2.few_shot_targets(model, tokenizer, sets[0]),
                             lambda: plain_targets(stock, prompts, 1), 2 * (tokens * weights + 6 * head), tokens, repeats,
                             "4 training and 2 dev examples"))
        problems = word_problems(4)
        prompt = ia2.prompt_tokens(model, tokenizer, problems[:3], problems[3].query)
        tokens = len(prompt) + 47
        lines.append(compare("targets, 48 tokens", model,
                             lambda: ia2.collect_targets(model, tokenizer, problems[3:], [problems[:3]], 48),
                             lambda: plain_targets(stock, [prompt], 48), 2 * (tokens * weights + 48 * head), tokens, repeats,
                             f"one example, 3 demos, a prompt of {len(prompt)} tokens"))
    targets = [ia2.few_shot_targets(model, tokenizer, few_shot) for few_shot in sets]

    def stage_run(name, choices, epochs=epochs):
        runs = [ia2.Run(number, *targets[s], lr, f"{s}") for number, (s, lr) in enumerate(choices)]
        for number, (s, _) in enumerate(choices):
            lora.reset(model, number, seed=s)
        ia2.train(model, ia2.stage(name), runs, max_epochs=epochs, patience=epochs)

    def work(choices, epochs):
        """(FLOPs, tokens) of an IA2 stage: per training token 4 for a frozen weight and 6 for an adapter's, per dev token 2."""
        trained = epochs * sum(len(target.query) for s, _ in choices for target in targets[s][0])
        read = epochs // 2 * sum(len(target.query) for s, _ in choices for target in targets[s][1])
        return weights * (4 * trained + 2 * read) + adapter * (6 * trained + 2 * read), trained + read

    def plainly(name):
        lora.reset(stock)
        plain_train(stock, name, *targets[0], 3e-4, epochs)

    lone = [(0, 3e-4)]
    for name_of_stage in ("ia2", "sft"):
        lines.append(compare(f"{name_of_stage} stage", model, lambda: stage_run(name_of_stage, lone),
                             lambda: plainly(name_of_stage), *work(lone, epochs), repeats, f"n = 4, {epochs} epochs"))
    many, few = [(s, lr) for s in range(5) for lr in (1e-4, 3e-4, 1e-3)], max(2, epochs // 5)
    lines.append(compare("ia2 stage, 15 runs together", model, lambda: stage_run("ia2", many, few),
                         lambda: [stage_run("ia2", [choice], few) for choice in many], *work(many, few), repeats,
                         f"against the same 15 one after another, {few} epochs"))
    exam = ia2.Exam(task.task, task.test[:queries], labels, 1)
    alone = [ia2.prompt_tokens(model, tokenizer, (), example.query) for example in exam.examples]
    tokens = sum(map(len, alone))
    lines.append(compare("evaluation", model, lambda: ia2.evaluate(model, tokenizer, exam, [0]),
                         lambda: plain_evaluate(stock, alone, labels), 2 * (tokens * weights + queries * head), tokens, repeats,
                         f"{queries} queries without demos"))
    with_demos = [ia2.prompt_tokens(model, tokenizer, sets[0].train, example.query) for example in exam.examples]
    tokens += len(with_demos[0]) - len(alone[0])
    with lora.disable(model), lora.disable(stock):
        lines.append(compare("icl evaluation", model, lambda: ia2.evaluate(model, tokenizer, exam, demos=sets[0].train),
                             lambda: plain_evaluate(stock, with_demos, labels), 2 * (tokens * weights + queries * head), tokens,
                             repeats, f"{queries} queries, 4 demos each"))
    return lines, intensities(model, targets, weights)


def intensities(model, targets, weights):
    """FLOPs per byte of weights read in one training step of R runs: each pass reads all weights forward and backward."""
    found = {}
    for count in (1, 5, 15, 60):
        sequences = [ia2.sequence(target.query, target.icl, run) for run in range(count) for target in targets[run % 5][0]]
        tokens, passes = sum(len(s.tokens) for s in sequences), len(packing.lay_passes(sequences, base.PASS_TOKENS))
        found[count] = 4 * weights * tokens / (passes * 2 * weights * model.dtype.itemsize)
    return found


def machine(device):
    """The machine in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB"
    clock = psutil.cpu_freq()
    return (f"{platform.machine()} CPU, {torch.get_num_threads()} cores in use"
            f"{f', {clock.current / 1000:.1f} GHz' if clock else ''}, {psutil.virtual_memory().total / 1e9:.0f} GB of memory, "
            f"torch {torch.__version__}")


def main():
    parser = options.Parser(prog="bench.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", default="auto", help="as in ia2.py (default: auto)")
    parser.add_argument("--device", default="auto", type=options.one_of(("auto", "cpu", "cuda")), help="auto, cpu or cuda")
    parser.add_argument("--repeats", type=options.whole(1), default=3, help="times that each line is measured (default: 3)")
    parser.add_argument("--epochs", type=options.whole(2), default=10, help="epochs of a measured stage (default: 10)")
    parser.add_argument("--queries", type=options.whole(2), default=60, help="queries of a measured evaluation (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    settings = parser.parse_args()
    device = base.pick_device(settings.device)
    name = base.pick_model(settings.model, device)
    lines, found = measure(name, device, settings.repeats, settings.epochs, settings.queries)
    if settings.json:
        print(json.dumps({"model": name, "machine": machine(device), "repeats": settings.repeats, "lines": lines,
                          "flops_per_weight_byte": found}, indent=2))
        return
    show = lambda value, digits: "-" if value is None else f"{value:.{digits}f}"
    table = [["step", "seconds", "plain way", "ratio", "tokens/s", "peak MB", "share of limit", "what"]]
    for line in lines:
        table.append([line["step"], show(line["seconds"], 2), show(line.get("plain_seconds"), 2), show(line.get("ratio"), 2),
                      show(line.get("tokens_per_second"), 0), show(line["peak_mb"], 0), show(line.get("share"), 2),
                      line.get("note", "")])
    print(f"{name}; {machine(device)}; medians of {settings.repeats}\n\n{results.markdown(table)}\n")
    print("FLOPs per byte of weights read in a training step of R runs: "
          + ", ".join(f"R = {count}: {value:.0f}" for count, value in found.items()))


if __name__ == "__main__":
    try:
        main()
    except base.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
