"""IA2, ICL Activation Alignment (ICLR 2026): teach a model to work inside as it does with demos, then answer.

    python ia2.py --dataset sst2 --n 4

It reads from top to bottom as the paper does: run the model and read its self-attention outputs; collect the
targets A_ICL; the two losses; the training loop; evaluation; and main(), the whole experiment in order.

Shapes: B batch, T tokens, L layers, G output positions of an example, N of a batch, d hidden, V vocabulary.
"""
import math
import random
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import lora
import metrics
from sources import models, offline, tasks
from sources.offline import UserError, say

# ---- 1. the model, and what its self-attention puts out ----------------------------------------------------


@contextmanager
def capture_outputs(model, rows, columns):
    """Read the model at N output positions only; yields a list that a pass fills with L tensors (N, d).

    They are what each layer's self-attention block puts out (after W_O, before the residual add). The head,
    too, gets the hidden states of these positions alone, so the logits are (1, N, V).
    """
    activations = []

    def keep(module, inputs, output):
        activations.append((output[0] if isinstance(output, tuple) else output)[rows, columns])

    def narrow(module, inputs):
        return (inputs[0][rows, columns][None],)

    hooks = [layer.self_attn.register_forward_hook(keep) for layer in model.get_decoder().layers]
    hooks.append(model.get_output_embeddings().register_forward_pre_hook(narrow))
    try:
        yield activations
    finally:
        for hook in hooks:
            hook.remove()


def forward(model, prompts, responses, demos=None, head=True):
    """Run prompts with their responses, lists of token ids; for each, (activations (L, G, d), logits (G, V)).

    The output positions are those that predict the response: the prompt's last token and all response tokens
    but the last. Shorter rows are padded on the right, where a causal model never looks, so no mask is
    needed. `demos` is a cache of what comes before every prompt; without `head` there are no logits (None).
    """
    sizes = [len(response) for response in responses]
    rows = [torch.tensor(prompt + response[:-1]) for prompt, response in zip(prompts, responses)]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)               # (B, T)
    places = [(b, len(prompts[b]) - 1 + g) for b, size in enumerate(sizes) for g in range(size)]
    at_rows, at_columns = torch.tensor(places, device=model.device).T                               # (N), (N)
    past = models.for_rows(demos, len(prompts)) if demos else None
    with capture_outputs(model, at_rows, at_columns) as captured:
        run = model if head else model.get_decoder()
        output = run(input_ids=tokens, past_key_values=past, use_cache=past is not None)
    activations = torch.stack(captured).split(sizes, dim=1)                                        # (L, N, d)
    return list(zip(activations, output.logits[0].split(sizes) if head else [None] * len(sizes)))


# ---- 2. targets: what ICL does inside (the paper's A_ICL) --------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One example, and what the ICL run of the base model leaves for it."""
    prompt: list                # tokens of demos and query, I + X
    query: list                 # tokens of the query alone, X
    gold: list                  # tokens of the true response, Y
    icl: list                   # tokens of the greedy response with demos, Yhat (G of them)
    activations: torch.Tensor   # A_ICL (L, G, d): the attention outputs that predict Yhat, with demos


@torch.no_grad()
def collect_target(model, tokenizer, example, demos, max_tokens):
    """Answer one example with demos in the prompt, the adapter switched off, and keep the activations."""
    prompt, query = (data.prompt_tokens(tokenizer, before, example.query) for before in (demos, []))
    models.check_length(model, prompt, max_tokens)
    with lora.disable(model):
        cache, rest = models.share_demos(model, [prompt])      # all but the prompt's last token, encoded once
        response, = models.generate(model, tokenizer, rest, max_tokens, cache)
        (activations, _), = forward(model, rest, [response], cache, head=False)
    gold = data.new_tokens(tokenizer, example.query, example.response)  # of a label the first, of a text all
    gold = gold[:1] if example.label is not None else [*gold, tokenizer.eos_token_id][:max_tokens]
    return Target(prompt, query, gold, response, activations)


def few_shot_targets(model, tokenizer, few_shot, max_tokens=1):
    """Targets of the training examples, each with the others as demos (leave-one-out), and of the dev set."""
    train = [collect_target(model, tokenizer, example, data.leave_one_out(few_shot, i), max_tokens)
             for i, example in enumerate(few_shot.train)]
    dev = [collect_target(model, tokenizer, example, few_shot.demos, max_tokens) for example in few_shot.dev]
    return train, dev


# ---- 3. losses ---------------------------------------------------------------------------------------------


def ia2_loss(model, batch):
    """L_IA2 = mean_i sum_l mean_{g,d} (A - A_ICL)^2, the paper's; A is read without demos over X + Yhat."""
    outputs = forward(model, [target.query for target in batch], [target.icl for target in batch], head=False)
    return sum((A.float() - target.activations.float()).square().mean(dim=(1, 2)).sum()
               for (A, _), target in zip(outputs, batch)) / len(batch)


def sft_loss(model, batch):
    """L_SFT: cross-entropy of the true response without demos, mean over its tokens, then over examples."""
    outputs = forward(model, [target.query for target in batch], [target.gold for target in batch])
    return sum(F.cross_entropy(logits.float(), torch.tensor(target.gold, device=logits.device))
               for (_, logits), target in zip(outputs, batch)) / len(batch)


@torch.no_grad()
def mean_loss(model, loss, targets, size=4):
    """A loss over all targets, in batches so that memory is bounded."""
    batches = [targets[i:i + size] for i in range(0, len(targets), size)]
    return sum(loss(model, batch).item() * len(batch) for batch in batches) / len(targets)


# ---- 4. training -------------------------------------------------------------------------------------------


def train(model, loss, targets, dev, lr, epochs=50, name="", seed="0", size=4, patience=5):
    """Minimise a loss over the adapter: Adam, early stopping on the dev loss, and back to the best adapter.

    Returns {"name", "steps", "best_step", "dev_loss", "seconds", "history": [(step, loss, dev loss)]}. Raises
    UserError when a loss is not finite.
    """
    optimiser = torch.optim.Adam(lora.weights(model).values(), lr, fused=True)
    rng, start, step = random.Random(f"batches-{seed}-{name}"), time.perf_counter(), 0
    recent, history, steps_an_epoch = [], [], math.ceil(len(targets) / size)
    best, state = {"dev_loss": mean_loss(model, loss, dev, size), "best_step": 0}, lora.get_state(model)
    while step < epochs * steps_an_epoch and step - best["best_step"] < 2 * patience:
        if step % steps_an_epoch == 0:
            order = rng.sample(targets, len(targets))                       # a new order each epoch
        batch, order = order[:size], order[size:]
        value = loss(model, batch)
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
        step, recent = step + 1, [*recent, value.item()]
        if step == 1:
            say(f"{name}: first loss {value.item():.4f}")
        if step % 2 == 0 or step == epochs * steps_an_epoch:
            dev_loss, seconds = mean_loss(model, loss, dev, size), round(time.perf_counter() - start, 2)
            if not math.isfinite(sum(recent) + dev_loss):
                raise UserError(f"the {name} loss is {recent[-1]} and the dev loss {dev_loss} at step {step};"
                                " training has diverged: use a smaller --lr")
            history, recent = [*history, (step, sum(recent) / len(recent), dev_loss)], []
            if dev_loss < best["dev_loss"]:
                best, state = {"dev_loss": dev_loss, "best_step": step}, lora.get_state(model)
            say(f"{name}: step {step}, loss {history[-1][1]:.4g}, dev loss {dev_loss:.4g}, {seconds:.1f} s")
    lora.set_state(model, state)
    return {"name": name, "steps": step, **best, "seconds": seconds, "history": history}


# ---- 5. evaluation -----------------------------------------------------------------------------------------

BLOCK = 16           # queries that share one order of the demos, encoded once
COMPARED = (200, 8)  # queries whose activations are compared: of label tasks, of free text (G times larger)


@dataclass(frozen=True)
class Evaluation:
    """What one state of the model did on a test. ICL's is what the others are compared with."""
    scores: dict
    answers: list       # the answer to each query: a token, or what the parser found in the text
    responses: list     # its tokens
    activations: list   # (L, G, d) for the first queries, over ICL's response


@torch.no_grad()
def evaluate(model, tokenizer, test, few_shot=None, icl=None, batch_size=None):
    """Answer the held-out queries of `test`, a data.Data, with the demos of `few_shot` (ICL) or without.

    With `icl`, ICL's Evaluation of the same queries, the scores hold `asim` to its activations (the mean, and
    by layer) and `agreement`, the share of queries with its answer. In label tasks `batch_size` queries of
    similar length run together (a block, behind demos half of it); texts are written a block at a time.
    """
    found = answer_labels(model, tokenizer, test, few_shot, batch_size) if test.label_tokens else \
        answer_texts(model, tokenizer, test, few_shot, icl)
    reference = icl or (found if few_shot else None)
    if reference:
        pairs = zip(found.activations, reference.activations)
        layers = torch.stack([metrics.asim(A, A_icl).mean(1) for A, A_icl in pairs]).mean(0).tolist()    # (L)
        same = [a == b for a, b in zip(found.answers, reference.answers)]
        found.scores.update(asim=sum(layers) / len(layers), asim_layers=[round(value, 6) for value in layers],
                            agreement=sum(same) / len(same))
    return found


def answer_labels(model, tokenizer, test, few_shot, batch_size):
    """The next token after each query, its probability and the labels'; the activations with it."""
    readings, labels = {}, test.label_tokens
    for batch, _, rests, demos in query_batches(model, tokenizer, test, few_shot, batch_size):
        for i, (A, logits) in zip(batch, forward(model, rests, [[0]] * len(batch), demos)):            # G = 1
            probabilities = logits[0].float().softmax(-1)                                                # (V)
            confidence, token = probabilities.max(-1)
            readings[i] = (token.item(), confidence.item(), logits[0, labels].tolist(),
                           probabilities[labels].sum().item(), A if i < COMPARED[0] else None)
    tokens, *figures, activations = zip(*(readings[i] for i in range(len(readings))))
    scores = metrics.label_scores(tokens, *figures, labels, [example.label for example in test.test])
    return Evaluation(scores, list(tokens), [[token] for token in tokens], activations[:COMPARED[0]])


def answer_texts(model, tokenizer, test, few_shot, icl):
    """Greedy answers up to a blank line, parsed and compared; activations in passes of their own."""
    task, prompts, found = test.task, {}, {}
    for batch, whole, rests, demos in query_batches(model, tokenizer, test, few_shot, BLOCK):
        prompts.update(zip(batch, whole))
        tokens = models.generate(model, tokenizer, rests, test.max_tokens, demos, data.BLANK_LINE)
        found.update(zip(batch, tokens))
    responses = [found[i] for i in range(len(found))]
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in responses]
    answers = [task.parse(text.split(data.BLANK_LINE)[0]) for text in texts]
    right = [task.same(answer, task.parse(example.response)) for answer, example in zip(answers, test.test)]
    activations = [forward(model, [prompts[i]], [response], head=False)[0][0]
                   for i, response in zip(range(COMPARED[1]), icl.responses if icl else responses)]
    return Evaluation({"accuracy": sum(right) / len(right)}, answers, responses, activations)


def query_batches(model, tokenizer, test, few_shot, size):
    """Yield what runs together: (numbers of queries of similar length, prompts, the rests of the prompts
    behind the demos, the demos' cache).

    With demos a block is cut from the given order, so that a query's demos do not depend on the batch size.
    """
    queries, size = [example.query for example in test.test], size or (BLOCK // 2 if few_shot else BLOCK)
    lengths = [len(data.prompt_tokens(tokenizer, [], query)) for query in queries]
    order = range(len(queries)) if few_shot else sorted(range(len(queries)), key=lengths.__getitem__)
    for k in tqdm(range(math.ceil(len(queries) / BLOCK)), unit="block", leave=False, disable=None):
        block = sorted(order[k * BLOCK:(k + 1) * BLOCK], key=lengths.__getitem__)
        demos = data.icl_demos(few_shot, k) if few_shot else []
        prompts = [data.prompt_tokens(tokenizer, demos, queries[i]) for i in block]
        models.check_length(model, max(prompts, key=len), test.max_tokens)
        cache, rests = models.share_demos(model, prompts) if few_shot else (None, prompts)
        for i in range(0, len(block), size):
            yield block[i:i + size], prompts[i:i + size], rests[i:i + size], cache


# ---- 6. the experiment -------------------------------------------------------------------------------------


@torch.no_grad()
def prepare(args):
    """Load what a command names: (training Data, [test Data], tokenizer, model with an adapter, settings)."""
    names = list(dict.fromkeys(args.eval or [args.dataset]))
    for name in (args.dataset, *names):
        tasks.find_task(name)  # an unknown name is told before anything is loaded
    found = models.find(args.model, args.device)
    tokenizer, entry = found.tokenizer, found.entry
    train_data = data.load(args.dataset, tokenizer, args, entry.plain, args.labels, entry.labels)
    tests = [train_data if name == args.dataset else
             data.load(name, tokenizer, args, entry.plain, train_data.label_style) for name in names]
    for test in tests:
        tasks.check_pair(train_data.task, test.task)
    offline.make_out(args.out)
    model = models.load_model(found)
    prompt = torch.tensor([data.prompt_tokens(tokenizer, [], train_data.pool[0].query)], device=model.device)
    before = model(prompt).logits
    lora.add(model, args.rank, alpha=args.rank)
    weights = lora.weights(model).values()
    for weight in weights:
        weight.fill_(0.1)  # whatever an adapter holds: switched off, it must not show
    with lora.disable(model):
        same = torch.equal(before, model(prompt).logits)
    lora.reset(model)
    say(f"{sum(map(torch.numel, weights)):,} weights are trained; adapter off equals base: {same}")
    balanced = train_data.label_style and (entry.balanced if args.balanced is None else args.balanced)
    settings = {"model": found.name, "model_hash": found.fingerprint, "dtype": str(model.dtype)[6:],
                "balanced": bool(balanced), "demos": "own"}
    return train_data, tests, tokenizer, model, settings


def record(args, settings, method, tests, evaluations, stages=(), model=None, dev=(), **extra):
    """Append a method's rows, one a test, to the results file, and save the adapter of a trained one."""
    settings, training = {**settings, "method": method, "lr": None, "rank": None, "epochs": None}, {}
    if stages:
        settings.update(lr=args.lr, rank=args.rank, epochs=args.epochs)
        training = {"dev_gold_loss": mean_loss(model, sft_loss, dev), "stages": stages, **extra}
    results = [{**data.held_out(test), **found.scores} for test, found in zip(tests, evaluations)]
    return offline.record(args.out, settings, training, results, lambda folder: lora.save(model, folder))


def main(argv=None):
    """The experiment in the paper's order: baselines, targets, SFT alone, IA2, and SFT going on from IA2."""
    args = offline.options(__doc__.split("\n")[0]).parse_args(argv)
    train_data, tests, tokenizer, model, settings = prepare(args)
    few_shot = data.few_shot_set(train_data.pool, args.n, args.set, args.seed, settings["balanced"])
    settings.update(data.settings(train_data, few_shot))
    seed, first = f"{args.seed}-{args.set}", 1000 * args.seed + args.set    # of the batches, and of LoRA's A
    with lora.disable(model):                                               # the two baselines
        icl = [evaluate(model, tokenizer, test, few_shot) for test in tests]
        base = [evaluate(model, tokenizer, test, icl=reference) for test, reference in zip(tests, icl)]
    rows = record(args, settings, "base", tests, base) + record(args, settings, "icl", tests, icl)
    targets, dev = few_shot_targets(model, tokenizer, few_shot, train_data.max_tokens)  # A_ICL, leave-one-out

    if "sft" in args.methods:                                               # SFT alone
        lora.reset(model, first)
        sft = train(model, sft_loss, targets, dev, args.lr, args.epochs, "sft", seed)
        found = [evaluate(model, tokenizer, test, icl=reference) for test, reference in zip(tests, icl)]
        rows += record(args, settings, "sft", tests, found, [sft], model, dev)
    if "ia2" in args.methods or "ia2-sft" in args.methods:                  # IA2: work inside as with demos,
        lora.reset(model, first)
        ia2 = train(model, ia2_loss, targets, dev, args.lr, args.epochs, "ia2", seed)
    if "ia2" in args.methods:
        found = [evaluate(model, tokenizer, test, icl=reference) for test, reference in zip(tests, icl)]
        rows += record(args, settings, "ia2", tests, found, [ia2], model, dev)
    if "ia2-sft" in args.methods:                                           # and then answer
        sft = train(model, sft_loss, targets, dev, args.lr, args.epochs, "sft", seed)
        found = [evaluate(model, tokenizer, test, icl=reference) for test, reference in zip(tests, icl)]
        rows += record(args, settings, "ia2-sft", tests, found, [ia2, sft], model, dev)
    print(offline.table(rows))


if __name__ == "__main__":
    sys.exit(offline.run_main(main, lora.LoRAError))
