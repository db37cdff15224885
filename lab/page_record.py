"""What docs/ia2.html shows of one few-shot set: each method's states over its training, as JSON.

Shapes: Q queries, C labels, L layers, d hidden size.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from torch import Tensor

import data
import ia2
import lora
import metrics
from engine import models
from lab import variants

QUERIES = 40
STATES = 20  # of each training at most
LETTERS = 120  # of a query's text at most

# ---- 1. One state of the model -------------------------------------------------------------------


@dataclass(frozen=True)
class Plane:
    """The two directions in which base's and ICL's activations of one layer differ most (PCA)."""

    layer: int
    centre: Tensor  # (d)
    axes: Tensor  # (2, d), orthonormal
    variance: list[float]  # the share of each axis

    def places(self, activations: list[Tensor]) -> Tensor:
        """Where the activations (L, 1, d) of each query fall: (Q, 2)."""
        return (at_layer(activations, self.layer) - self.centre) @ self.axes.T


def at_layer(activations: list[Tensor], layer: int) -> Tensor:
    """One layer of the activations (L, 1, d) of each query: (Q, d), in float64."""
    return torch.stack([A[layer, 0].double() for A in activations])


def fit_plane(base: list[Tensor], icl: list[Tensor], layer: int) -> Plane:
    """PCA of base's and ICL's activations of the same queries, together, in one layer.

    A principal axis has no sign of its own: here ICL lies to the right of base, and base's first
    query in the upper half.
    """
    base_points = at_layer(base, layer)
    points = torch.cat([base_points, at_layer(icl, layer)])  # (2 Q, d)
    centre = points.mean(dim=0)
    _, scale, axes = torch.linalg.svd(points - centre, full_matrices=False)
    signs = (base_points - centre) @ axes[:2].T  # (Q, 2)
    flip = torch.stack([-signs[:, 0].mean().sign(), signs[0, 1].sign()])
    share = scale.square() / scale.square().sum()
    return Plane(layer, centre, axes[:2] * flip[:, None], share[:2].tolist())


def loss_by_layer(activations: list[Tensor], icl: list[Tensor]) -> Tensor:
    """Each layer's part of L_IA2, averaged over the queries: (L)."""
    parts = []
    for A, A_icl in zip(activations, icl):
        parts.append((A.float() - A_icl.float()).square().mean(dim=(1, 2)))
    return torch.stack(parts).mean(dim=0)


@dataclass(frozen=True)
class State:
    """What the page shows of the model at one moment."""

    step: int
    places: Tensor  # (Q, 2)
    tokens: list[int]  # the answer to each query: the likeliest next token
    probabilities: Tensor  # (Q, C), of the labels, over the whole vocabulary
    asim: Tensor  # (L), mean over the queries
    centred: Tensor  # (L)


def state_of(evaluation: ia2.Evaluation, icl: ia2.Evaluation, plane: Plane, step=0) -> State:
    pairs = zip(evaluation.activations, icl.activations)
    by_query = [metrics.asim(A, A_icl)[:, 0] for A, A_icl in pairs]
    return State(
        step=step,
        places=plane.places(evaluation.activations),
        tokens=evaluation.answers,
        probabilities=evaluation.label_answers.label_logprobs.exp(),
        asim=torch.stack(by_query).mean(dim=0),
        centred=metrics.asim_centred(evaluation.activations, icl.activations),
    )


# ---- 2. Recording a training ---------------------------------------------------------------------


def watched(loss_fn: Callable, look: Callable[[], None]) -> Callable:
    """The loss, with a look at the model before each training step.

    `ia2.train` asks for the loss with gradients once a step, and without them for the dev loss.
    """

    @functools.wraps(loss_fn)
    def loss(model, batch):
        if torch.is_grad_enabled():
            look()
        return loss_fn(model, batch)

    return loss


@dataclass(frozen=True)
class Recorded:
    """The states of one method: from the start of its last stage to the adapter that is kept."""

    states: list[State]
    stage: ia2.Stage | None = None  # None where nothing is trained
    path: tuple = ()  # the losses as they were watched


def chosen_steps(last: int, count: int = STATES) -> list[int]:
    """At most `count` of the steps 0 to `last`, both among them, denser at the start."""
    if last < count:
        return list(range(last + 1))
    return sorted({round(last * (i / (count - 1)) ** 1.5) for i in range(count)})


def record_method(
    loss_fn, before: tuple, follow: Callable, evaluate: Callable, last: int
) -> Recorded:
    """Train one more stage after the stages `before`, with a look at some of its steps.

    `follow(path)` trains a path of losses, `evaluate(step)` gives the model's State, `last` is the
    number of steps at most. What is trained after the step that is kept is not shown.
    """
    steps = itertools.count()
    chosen = chosen_steps(last)
    states = []

    def look():
        step = next(steps)
        if step in chosen:
            states.append(evaluate(step))

    path = (*before, watched(loss_fn, look))
    stage = follow(path)[-1]
    shown = [state for state in states if state.step < stage.kept_step]
    return Recorded([*shown, evaluate(stage.kept_step)], stage, path)


def record_methods(setup: ia2.Setup, few_shot, recipe: ia2.Recipe, evaluate) -> dict[str, Recorded]:
    """The methods of the paper, trained as in `ia2.main`, and steering, which is not trained.

    `evaluate(step, edit)` gives the model's State.
    """
    model = setup.model
    targets, dev = ia2.few_shot_targets(model, setup.tokenizer, few_shot)
    lora.reset(model, seed=1000 * few_shot.seed + few_shot.number)
    trained = {(): ia2.Trained(lora.state(model), [])}
    follow = functools.partial(
        ia2.follow, model, targets=targets, dev=dev, recipe=recipe, trained=trained
    )
    last = recipe.epochs * math.ceil(len(targets) / recipe.batch_size)
    recorded = {}
    watched_paths = {(): ()}
    for method, path in ia2.METHODS.items():
        before = watched_paths[path[:-1]]
        recorded[method] = record_method(path[-1], before, follow, evaluate, last)
        watched_paths[path] = recorded[method].path
    steering = variants.make_steering(model, targets)
    with lora.disable(model):
        recorded["steer"] = Recorded([evaluate(0, steering.edit)])
    return recorded


# ---- 3. The record -------------------------------------------------------------------------------


def record(setup: ia2.Setup, few_shot: data.FewShotSet, recipe: ia2.Recipe) -> dict:
    """All that the page shows of one few-shot set of a label task, ready to be written as JSON."""
    model, tokenizer = setup.model, setup.tokenizer
    [test] = setup.tests
    with lora.disable(model):
        icl = ia2.evaluate(model, tokenizer, test, few_shot)
        base = ia2.evaluate(model, tokenizer, test)
    losses = loss_by_layer(base.activations, icl.activations)  # (L)
    plane = fit_plane(base.activations, icl.activations, losses.argmax().item())

    def evaluate(step, edit=None):
        return state_of(ia2.evaluate(model, tokenizer, test, edit=edit), icl, plane, step)

    recorded = {
        "base": Recorded([state_of(base, icl, plane)]),
        "icl": Recorded([state_of(icl, icl, plane)]),
        **record_methods(setup, few_shot, recipe, evaluate),
    }
    tokens = all_tokens(recorded, test.label_tokens)
    unit = unit_of(recorded)
    methods = {}
    for name, each in recorded.items():
        methods[name] = {"states": [written(state, tokens, unit) for state in each.states]}
        if each.stage is not None:
            methods[name]["stage"] = summary(each.stage)
    return {
        **settings_of(setup, few_shot, recipe),
        "layers": len(losses),
        "layer": plane.layer + 1,
        "layer_share": round((losses.max() / losses.sum()).item(), 4),
        "variance": [round(share, 4) for share in plane.variance],
        "unit": unit,
        "answers": [tokenizer.decode([token]) for token in tokens],
        "methods": methods,
    }


def settings_of(setup: ia2.Setup, few_shot: data.FewShotSet, recipe: ia2.Recipe) -> dict:
    """The model, the texts, and how the methods are trained."""
    [test] = setup.tests
    return {
        **setup.settings,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "dataset": test.spec.name,
        "source": test.source,
        "n": len(few_shot.train),
        "set": few_shot.number,
        "lr": recipe.lr,
        "rank": setup.rank,
        "prompt": test.prompt,
        "examples": shown(few_shot.train, test),
        "queries": shown(test.test, test),
    }


def all_tokens(recorded: dict[str, Recorded], label_tokens: list[int]) -> list[int]:
    """The label tokens, then what else was answered."""
    tokens = list(label_tokens)
    for each in recorded.values():
        for state in each.states:
            tokens += [token for token in state.tokens if token not in tokens]
    return list(dict.fromkeys(tokens))


def unit_of(recorded: dict[str, Recorded]) -> float:
    """The power of ten in which places are written, so that whole numbers are exact enough."""
    places = torch.cat([state.places for each in recorded.values() for state in each.states])
    return 10.0 ** math.floor(math.log10(places.abs().max().item() / 400))


def written(state: State, tokens: list[int], unit: float) -> dict:
    """A State as JSON: places in units, probabilities in %, similarities in thousandths."""
    xs, ys = (state.places / unit).round().int().T.tolist()
    return {
        "step": state.step,
        "x": xs,
        "y": ys,
        "answer": [tokens.index(token) for token in state.tokens],
        "p": (100 * state.probabilities.T).round().int().tolist(),  # (C, Q)
        "asim": (1000 * state.asim).round().int().tolist(),
        "centred": (1000 * state.centred).round().int().tolist(),
    }


def summary(stage: ia2.Stage) -> dict:
    """What the page says of the training of a stage."""
    return {
        "name": stage.name,
        "steps": stage.steps,
        "kept_step": stage.kept_step,
        "first_loss": round(stage.first_loss, 4),
        "dev_loss": round(stage.dev_loss, 4),
    }


def shown(examples: list[data.Example], task: data.Data) -> list[dict]:
    """Texts without the prompt around them, and the numbers of their labels."""
    before, after = task.prompt.split("{text}")
    found = []
    for example in examples:
        text = example.query.removeprefix(before).removesuffix(after)
        found.append({"text": " ".join(text.split()), "label": example.label})
    return found


def record_lesson() -> dict:
    """The lesson's few-shot set, trained as `ia2.py` trains; the first short test queries."""
    choice = models.find("qwen2.5-coder-0.5b", "cpu", "float32")
    options = data.Options(labels="words", plain=choice.entry.plain)
    task = data.load("movies", choice.tokenizer, options)
    few_shot = data.few_shot_set(task.pool, 4, balanced=choice.entry.balanced)
    test = data.draw_test(task, 200)
    longest = LETTERS + len(test.prompt.format(text=""))
    short = [example for example in test.test if len(example.query) <= longest]
    setup = ia2.set_up(choice, task, [replace(test, test=short[:QUERIES])], rank=8)
    return record(setup, few_shot, ia2.Recipe())


def json_text(value: dict) -> str:
    """JSON in which each state is a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace('{"step"', '\n{"step"') + "\n"
