"""Speed: each step against the plain way of doing it, in one run: `python -m lab.bench`, about 6 minutes.

The plain way is written out below: one example at a time, straight through transformers' own model on the
same weights, with its full vocabulary projection and no cache. Timed in turn; seconds are medians.
"""
import statistics
import sys
import time
from argparse import Namespace

import torch
from transformers import AutoModelForCausalLM

import data
import ia2
import lora
from sources import models, offline
from sources.offline import grid, say

PROBLEM = (  # with its answer 190 tokens of SmolLM2, the mean of GSM8K
    "Question:On Monday morning the {a} children of the village school each bring {b} ripe red apples from "
    "home, because the whole school is getting ready for the harvest fair. The teacher asks them to share "
    "all of their apples out into {c} large baskets, so that every basket holds the same number and no apple "
    "is left over. How many apples are there in one of the large baskets in the end?\nAnswer:")
WORKED = (
    " There are {a} children in the school, and each of them brings {b} apples.\nSo together they bring "
    "{a} * {b} = <<{a}*{b}={ab}>>{ab} apples to the school on Monday.\nAll of these {ab} apples are shared "
    "out into {c} baskets, with the same number in each.\nSo in the end one basket gets {ab} / {c} = "
    "<<{ab}/{c}={q}>>{q} apples for the harvest fair.\n#### {q}")

def word_problems(count):
    numbers = [{"a": 4 + 2 * k, "b": 6, "c": 3, "ab": 24 + 12 * k, "q": 8 + 4 * k} for k in range(count)]
    return [data.Example(PROBLEM.format(**some), WORKED.format(**some)) for some in numbers]

# ---- the plain way -----------------------------------------------------------------------------------------

def plain_model(model):
    """The model as transformers makes it, on the weights of `model`: no second copy of them."""
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.get_decoder().rotary_emb = model.get_decoder().rotary_emb  # no part of the state
    return plain.eval().requires_grad_(False)

def plain_pass(model, tokens, outputs):
    """(attention outputs (L, G, d), logits (G, V)) of one example; logits are made at every position."""
    kept = []

    def keep(module, inputs, output):
        kept.append(output[0])

    handles = [layer.self_attn.register_forward_hook(keep) for layer in model.get_decoder().layers]
    logits = model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return torch.stack([output[0, -outputs:] for output in kept]), logits[0, -outputs:]

@torch.no_grad()
def plain_target(model, prompt, max_tokens):
    """(response, activations) of one prompt by a full forward pass per response token."""
    tokens, activations = list(prompt), []
    for _ in range(max_tokens):
        outputs, logits = plain_pass(model, tokens, 1)
        tokens.append(logits[0].argmax().item())
        activations.append(outputs)
    return tokens[len(prompt):], torch.cat(activations, dim=1)

def plain_loss(model, name, target):
    response = target.icl if name == "ia2" else target.gold
    activations, logits = plain_pass(model, [*target.query, *response[:-1]], len(response))
    if name == "ia2":
        return (activations - target.activations).square().mean((1, 2)).sum()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(response, device=logits.device))

def plain_train(model, name, targets, dev, epochs):
    """One stage, an example at a time."""
    optimiser = torch.optim.Adam(lora.weights(model).values(), lr=3e-4)
    for epoch in range(1, epochs + 1):
        for target in targets:
            (plain_loss(model, name, target) / len(targets)).backward()
        optimiser.step()
        optimiser.zero_grad()
        if epoch % 2 == 0:
            with torch.no_grad():
                sum(plain_loss(model, name, target).item() for target in dev)

@torch.no_grad()
def plain_evaluate(model, prompts, label_tokens):
    for prompt in prompts:
        logits = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False).logits[0, -1]
        logits.softmax(-1)[label_tokens]

# ---- measuring ---------------------------------------------------------------------------------------------

def timed(job, device):
    """Seconds that a job takes, the GPU's work included."""
    start = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start

def measure(args, found):
    """Lines of the table: [step, seconds, seconds of the plain way, ratio, what]."""
    tokenizer, device = found.tokenizer, found.device
    options = Namespace(data_dir=None, seed=0, test=args.queries, max_tokens=None)
    task = data.load("movies", tokenizer, options, found.entry.plain, usual=found.entry.labels)
    model = models.load_model(found)
    plain = plain_model(model)  # before adapters are put on
    few_shot = data.few_shot_set(task.pool, 4, balanced=True)
    for carrier in (model, plain):
        lora.add(carrier)
    targets, dev = ia2.few_shot_targets(model, tokenizer, few_shot)
    problems = word_problems(4)
    prompt = data.prompt_tokens(tokenizer, problems[:3], problems[3].query)
    alone, shown = ([data.prompt_tokens(tokenizer, demos, example.query) for example in task.test]
                    for demos in ([], few_shot.train))

    def stage(name, loss):
        lora.reset(model)
        ia2.train(model, loss, targets, dev, 3e-4, args.epochs, name, patience=args.epochs)

    def plain_stage(name):
        plain_train(plain, name, targets, dev, args.epochs)
    epochs, queries = f"n = 4, {args.epochs} epochs", f"{args.queries} queries"
    steps = (
        ("targets, 48 tokens", lambda: ia2.collect_target(model, tokenizer, problems[3], problems[:3], 48),
         lambda: plain_target(plain, prompt, 48), f"one example, a prompt of {len(prompt)} tokens"),
        ("ia2 stage", lambda: stage("ia2", ia2.ia2_loss), lambda: plain_stage("ia2"), epochs),
        ("sft stage", lambda: stage("sft", ia2.sft_loss), lambda: plain_stage("sft"), epochs),
        ("evaluation", lambda: ia2.evaluate(model, tokenizer, task),
         lambda: plain_evaluate(plain, alone, task.label_tokens), queries),
        ("icl evaluation", lambda: ia2.evaluate(model, tokenizer, task, few_shot),
         lambda: plain_evaluate(plain, shown, task.label_tokens), f"{queries}, 4 demos each"))
    lines = []
    for step, ours, theirs, what in steps:
        ours()  # warms up
        seconds = [(timed(ours, device), timed(theirs, device)) for _ in range(args.repeats)]
        mine, other = (statistics.median(column) for column in zip(*seconds))
        lines.append([step, f"{mine:.2f}", f"{other:.2f}", f"{other / mine:.2f}", what])
        say(*lines[-1])
    return lines

def main():
    parser = offline.Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", default="auto", help="as in ia2.py (auto)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="(auto)")
    parser.add_argument("--repeats", type=offline.count, default=3, help="times each step is measured (3)")
    parser.add_argument("--epochs", type=offline.count, default=10, help="epochs of a measured stage (10)")
    parser.add_argument("--queries", type=offline.count, default=60, help="queries of an evaluation (60)")
    args = parser.parse_args()
    found = models.find(args.model, args.device)
    lines = measure(args, found)
    print(grid([["step", "seconds", "plain way", "ratio", "what"], *lines]))
    print(f"\n{found.name}, {torch.get_num_threads()} threads, torch {torch.__version__}")

if __name__ == "__main__":
    sys.exit(offline.run_main(main, lora.LoRAError))
