"""pytest tests/test_reference.py: a short run of the main job on the bundled model, recomputed with
plain loops: one prompt at a time, straight through transformers, torch's Adam, sums in Python.

Of our code only the adapter's layers, the drawing of few-shot sets and the parsed options are used.
"""

import functools
import json
import math
import random

import pytest
import torch
import torch.nn.functional as F

import data
import ia2
import lora
from engine import models
from support import records

EPOCHS = 5
LR = 1e-2  # so large that the dev loss does not fall at each step
WORDS = (("warm", "funny", "clever", "lovely"), ("dull", "awful", "lazy", "stale"))
SUBJECTS = ("plot", "cast", "score", "ending", "script", "camera", "pace", "idea")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The rows of `ia2.py --methods ia2-sft` on reviews of a few words, by method. The opinion on
    ideas is the wrong one, so that some answers are wrong.
    """
    folder = tmp_path_factory.mktemp("reference")
    rows = []
    for label, words in zip((" good", " bad"), WORDS):
        for word in words:
            for subject in SUBJECTS:
                response = label if subject != "idea" else {" good": " bad", " bad": " good"}[label]
                rows.append({"query": f"The {subject} is {word}. It is", "response": response})
    random.Random(0).shuffle(rows)
    for name, part in (("train", rows[:40]), ("test", rows[40:])):
        lines = "\n".join(json.dumps(row) for row in part)
        (folder / f"{name}.jsonl").write_text(lines)
    few = functools.partial(data.unrelated_prompts, count=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "unrelated_prompts", few)
        options = ["--dataset", str(folder), "--methods", "ia2-sft", "--epochs", str(EPOCHS)]
        options += ["--lr", str(LR), "--test", "8", "--out", str(folder / "out")]
        ia2.main([*options, "--model", "smollm2-135m", "--device", "cpu"])
    found = {row["method"]: row for row in records.read_rows(folder / "out" / "results.jsonl")}
    return folder, found


def alone(model, tokens: list[int]):
    """(attention outputs (L, d), logits (V)) at the last token of one prompt."""
    kept = []
    handles = []
    for layer in model.model.layers:
        hook = layer.self_attn.register_forward_hook(lambda m, i, o: kept.append(o[0][0, -1]))
        handles.append(hook)
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return torch.stack(kept), logits


class Loops:
    """The same experiment, written out."""

    def __init__(self, folder):
        choice = models.find("smollm2-135m", "cpu")
        self.tokenizer = choice.tokenizer
        self.model = models.load_model(choice)
        options = data.Options(default_labels="words", plain=True)
        task, [test] = data.load_with_tests(str(folder), [], self.tokenizer, options)
        self.test = data.draw_test(test, 8, 0, 0).test
        self.few_shot = data.few_shot_set(task.pool, 4, 0, 0, balanced=True)
        self.labels = [self.first(text) for text in task.label_texts]
        lora.add(self.model)
        lora.reset(self.model, seed=0)

    def first(self, text: str) -> int:
        return self.tokenizer(text).input_ids[0]

    def tokens(self, demos, query: str) -> list[int]:
        texts = [demo.query + demo.response for demo in demos]
        return self.tokenizer("\n\n".join([*texts, query])).input_ids

    @torch.no_grad()
    def teacher(self, demos, query: str):
        with lora.disable(self.model):
            return alone(self.model, self.tokens(demos, query))

    def losses(self):
        """{stage: [its loss on an example]} as functions of no argument, train and dev."""
        train, dev = self.few_shot.train, self.few_shot.dev
        stages = {"ia2": ([], []), "sft": ([], [])}
        for i, example in enumerate(train):
            demos = [other for other in train if other is not example]
            random.Random(f"demos-0-0-{i}").shuffle(demos)
            self.add(stages, 0, example, demos)
        for example in dev:
            self.add(stages, 1, example, train)
        return stages

    def add(self, stages, part: int, example, demos) -> None:
        A_icl, _ = self.teacher(demos, example.query)
        query = self.tokens([], example.query)
        gold = self.first(example.response)

        def ia2_of_example():
            A, _ = alone(self.model, query)
            return sum((A[layer] - A_icl[layer]).pow(2).mean() for layer in range(len(A)))

        def sft_of_example():
            _, logits = alone(self.model, query)
            return -logits.log_softmax(-1)[gold]

        stages["ia2"][part].append(ia2_of_example)
        stages["sft"][part].append(sft_of_example)

    def train(self, name: str, train, dev) -> tuple[int, list[float]]:
        """(the step that is kept, dev losses of all steps): a batch holds all four examples."""
        optimizer = torch.optim.Adam(lora.weights(self.model).values(), lr=LR)
        rng = random.Random(f"batches-0-0-{name}")
        readings = []
        states = []
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            for loss in rng.sample(train, len(train)):
                (loss() / len(train)).backward()
            optimizer.step()
            with torch.no_grad():
                readings.append(sum(loss().item() for loss in dev) / len(dev))
            states.append(lora.state(self.model))
            best = min(range(len(readings)), key=readings.__getitem__)
            if len(readings) - 1 - best == 5:
                break
        lora.load_state(self.model, states[best])
        return best + 1, readings

    @torch.no_grad()
    def answers(self):
        """(attention outputs (Q, L, d), label probabilities (Q, C), ICL's outputs) of the test."""
        student, shares, teacher = [], [], []
        for example in self.test:
            A, logits = alone(self.model, self.tokens([], example.query))
            student.append(A)
            chosen = logits.double().softmax(-1)[self.labels]
            shares.append((chosen / chosen.sum()).tolist())
            demos = data.icl_demos(self.few_shot, 0)  # eight queries are one block
            teacher.append(self.teacher(demos, example.query)[0])
        return torch.stack(student), shares, torch.stack(teacher)


@pytest.fixture(scope="module")
def loops(run):
    """The loops after both stages, with what each stage kept."""
    found = Loops(run[0])
    found.kept = {name: found.train(name, *parts) for name, parts in found.losses().items()}
    found.student, found.shares, found.teacher = found.answers()
    return found


def test_each_stage_keeps_the_step_of_plain_loops(run, loops):
    for stage in run[1]["ia2-sft"]["stages"]:
        kept, readings = loops.kept[stage["name"]]
        assert stage["kept_step"] == kept
        assert [dev for _, _, dev in stage["history"]] == pytest.approx(readings, rel=2e-2)
    falls = [kept < len(readings) for kept, readings in loops.kept.values()]
    assert any(falls), "the best step is not always the last one"


def test_the_scores_over_the_labels_are_those_of_plain_sums(run, loops):
    row = run[1]["ia2-sft"]
    labels = [loops.labels.index(loops.first(example.response)) for example in loops.test]
    chosen = [max(range(2), key=share.__getitem__) for share in loops.shares]
    right = [a == b for a, b in zip(chosen, labels)]
    confidence = [max(share) for share in loops.shares]
    gap = sum(confidence) / 8 - sum(right) / 8
    assert row["accuracy_among_labels"] == sum(right) / 8
    nll = brier = 0.0
    for share, label in zip(loops.shares, labels):
        nll -= math.log(share[label]) / 8
        brier += sum((share[c] - (c == label)) ** 2 for c in (0, 1)) / 8
    assert row["nll"] == pytest.approx(nll, rel=1e-2)
    assert row["brier"] == pytest.approx(brier, rel=1e-2)
    assert row["gap"] == pytest.approx(gap, abs=2e-3)
    above = [x for x, is_right in zip(confidence, right) if is_right]
    below = [x for x, is_right in zip(confidence, right) if not is_right]
    assert above and below, "AUROC needs both"
    wins = sum((x > y) + (x == y) / 2 for x in above for y in below)
    assert row["auroc"] == pytest.approx(wins / (len(above) * len(below)), abs=1e-6)


def test_similarities_are_those_of_plain_loops(run, loops):
    queries, layers, _ = loops.student.shape
    raw = centred = 0.0
    for layer in range(layers):
        mean = sum(loops.student[q, layer] for q in range(queries)) / queries
        mean_icl = sum(loops.teacher[q, layer] for q in range(queries)) / queries
        for q in range(queries):
            A, A_icl = loops.student[q, layer], loops.teacher[q, layer]
            raw += F.cosine_similarity(A, A_icl, dim=0).item() / (queries * layers)
            cosine = F.cosine_similarity(A - mean, A_icl - mean_icl, dim=0).item()
            centred += cosine / (queries * layers)
    assert run[1]["ia2-sft"]["asim"] == pytest.approx(raw, abs=1e-3)
    assert run[1]["ia2-sft"]["asim_centred"] == pytest.approx(centred, abs=2e-3)


@torch.no_grad()
def test_forgetting_is_a_plain_sum_over_the_vocabulary(run, loops):
    task, _ = data.load_with_tests(
        str(run[0]), [], loops.tokenizer, data.Options(default_labels="words", plain=True)
    )
    total = 0.0
    prompts = data.unrelated_prompts(loops.tokenizer, [task], count=6)
    for prompt in prompts:
        now = alone(loops.model, prompt)[1].double().log_softmax(-1).tolist()
        with lora.disable(loops.model):
            base = alone(loops.model, prompt)[1].double().log_softmax(-1).tolist()
        total += sum(math.exp(b) * (b - q) for b, q in zip(base, now)) / len(prompts)
    assert len(prompts) == 6
    assert run[1]["ia2-sft"]["forgets"] == pytest.approx(total, rel=2e-2)
