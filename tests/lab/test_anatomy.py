"""pytest tests/lab/test_anatomy.py: what the shift is made of, against loops; records, tables."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import data
import ia2
from engine import models
from lab import anatomy, anatomy_report, sweep, variants
from support import records
from support.cli import UserError

QUICK = ("--test", 6)


def record(number=0, **changes):
    """A record with made-up figures, which depend on the set's number."""
    near = {"asim": 0.9, "asim_centred": 0.3, "asim_layers": [0.9] * 2}
    near["asim_centred_layers"] = [0.2, 0.4 + number / 10]
    scores = {"accuracy": 0.5 + number / 10, "label_mass": 0.9, "nll": 0.4, "agreement": 0.8}
    return {
        "run": f"r{number}/anatomy",
        "model": "m",
        "labels": "words",
        "dataset": "movies",
        "n": 4,
        "set": number,
        "eval_dataset": "movies",
        "test": 6,
        "test_data": f"t{number}",
        "share": 0.7 + number / 10,
        "share_median": 0.8,
        "share_layers": [0.6, 0.8 + number / 10],
        "constant_asim": 0.95,
        "constant_asim_layers": [0.9, 1.0],
        "vector_share": 0.5,
        "vector_share_layers": [0.4, None],
        "vector_cosine": 0.9,
        "methods": {name: {**scores, **near} for name in anatomy_report.METHODS},
        "teachers": {"flipped": {**scores, **near}, "foreign": None, "shuffled": near},
        **changes,
    }


def write(path, found):
    path.write_text("".join(json.dumps(each) + "\n" for each in found))
    return path


# ---- the constant --------------------------------------------------------------------------------


@pytest.fixture
def shift():
    """A shift (Q, L, d) with a constant in it that is larger in later layers."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(9, 3, 5, generator=generator, dtype=torch.float64)
    constant = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return noise + constant * torch.tensor([0.5, 1.0, 2.0])[:, None]


HALVES = [[1, 4, 6, 8], [0, 2, 3, 5, 7]]


def test_the_share_is_that_of_a_written_out_loop(shift):
    values = shift.numpy()
    layers = np.zeros(3)
    whole = 0.0
    for fit, held in (HALVES, HALVES[::-1]):
        left = np.zeros(3)
        total = np.zeros(3)
        for layer in range(3):
            constant = sum(values[q, layer] for q in fit) / len(fit)
            for q in held:
                left[layer] += ((values[q, layer] - constant) ** 2).sum()
                total[layer] += (values[q, layer] ** 2).sum()
        layers += (1 - left / total) / 2
        whole += (1 - left.sum() / total.sum()) / 2
    share = anatomy.constant_share(shift, HALVES)
    assert share.layers.numpy() == pytest.approx(layers)
    assert share.whole == pytest.approx(whole)
    assert sorted(layers) == list(layers)


def test_the_share_is_1_of_a_constant_and_about_0_of_what_has_no_mean():
    constant = torch.randn(3, 5, dtype=torch.float64).expand(200, 3, 5)
    halves = anatomy.split(200, "seed")
    assert anatomy.constant_share(constant, halves).layers.tolist() == pytest.approx([1, 1, 1])
    noise = torch.randn(200, 3, 50, generator=torch.Generator().manual_seed(0))
    share = anatomy.constant_share(noise, halves)
    assert share.layers.tolist() == pytest.approx([-0.01] * 3, abs=0.01)
    assert share.whole == pytest.approx(-0.01, abs=0.01)


def test_halves_hold_each_query_once_and_depend_on_the_seed():
    first, second = anatomy.split(9, "0-0")
    assert (len(first), len(second)) == (4, 5)
    assert sorted(first + second) == list(range(9))
    assert anatomy.split(9, "0-0") == [first, second]
    assert anatomy.split(9, "0-1") != [first, second]


def test_where_nothing_shifts_there_is_no_share(shift):
    shift[:, 1] = 0
    figures = anatomy.shift_figures(shift, shift + 1, HALVES, torch.ones(3, 5).double())
    kept = anatomy_report.rounded(figures)
    assert kept["share_layers"][1] is None and kept["vector_share_layers"][1] is None
    others = [kept["share_layers"][0], kept["share_layers"][2]]
    assert kept["share_median"] == pytest.approx(sum(others) / 2, abs=1e-5)


def test_what_a_vector_explains_is_that_of_a_written_out_loop(shift):
    vector = shift[:2].mean(dim=0)
    found = anatomy.shift_figures(shift, shift, HALVES, vector)
    for layer in range(3):
        left = sum(((shift[q, layer] - vector[layer]) ** 2).sum().item() for q in range(9))
        total = sum((shift[q, layer] ** 2).sum().item() for q in range(9))
        assert found["vector_share_layers"][layer] == pytest.approx(1 - left / total)
        mean = sum(shift[q, layer] for q in range(9)) / 9
        cosine = (mean @ vector[layer]) / (mean.norm() * vector[layer].norm())
        assert found["vector_cosine_layers"][layer] == pytest.approx(cosine.item())


def test_the_asim_of_a_constant_is_that_of_a_written_out_loop(shift):
    A_icl = shift + 3
    layers = []
    for layer in range(3):
        cosines = []
        for fit, held in (HALVES, HALVES[::-1]):
            constant = sum(A_icl[q, layer] for q in fit) / len(fit)
            for q in held:
                A = A_icl[q, layer]
                cosines.append((A @ constant / (A.norm() * constant.norm())).item())
        layers.append(sum(cosines) / 9)
    assert anatomy.constant_asim(A_icl, HALVES).tolist() == pytest.approx(layers)


# ---- the command, on a tiny model ----------------------------------------------------------------


@pytest.fixture
def run(call, tmp_path):
    """run(*options) measures, which must end well, and returns the records that are there."""

    def measured(*options, out="out"):
        result = call(*options, main=anatomy.main, out=out, quick=QUICK)
        assert result.code == 0, result.err
        return anatomy_report.read_records(tmp_path / out / "anatomy.jsonl")

    return measured


def refused(call, *options, quick=QUICK):
    result = call(*options, main=anatomy.main, quick=quick)
    assert result.code == 2 and result.err.count("\n") == 1
    return result.err


def without_times(found):
    changing = ("seconds", "command", "commit")
    kept = []
    for each in found:
        kept.append({key: value for key, value in each.items() if key not in changing})
    return sorted(kept, key=records.row_key)


class Plain:
    """The tiny model's passes, one prompt at a time, with hooks of their own."""

    def __init__(self, place):
        choice = models.find(str(place / "tiny"), "cpu")
        self.model = models.load_model(choice)
        self.tokenizer = choice.tokenizer
        options = data.Options(default_labels="digits", data_dir=str(place / "bench"))
        self.task = data.load("sst2", choice.tokenizer, options)
        self.test = data.draw_test(self.task, 6)
        self.few_shot = data.few_shot_set(self.task.pool, 4)

    @torch.no_grad()
    def read(self, prompt, added=None):
        """What self-attention puts out at the last token (L, d), and the labels' probabilities."""
        outputs = []

        def hook(layer):
            def inner(module, inputs, output):
                hidden = output[0].clone()
                if added is not None:
                    hidden[0, -1] += added[layer]
                outputs.append(hidden[0, -1])
                return (hidden, *output[1:])

            return inner

        layers = self.model.get_decoder().layers
        handles = [each.self_attn.register_forward_hook(hook(i)) for i, each in enumerate(layers)]
        logits = self.model(torch.tensor([prompt])).logits[0, -1]
        for handle in handles:
            handle.remove()
        return torch.stack(outputs).double(), logits.softmax(-1)[self.task.label_tokens]

    def alone(self, query, added=None):
        return self.read(data.prompt_tokens(self.tokenizer, [], query), added)

    def behind_demos(self):
        """ICL's activations of the six queries, which are one block, (Q, L, d)."""
        demos = data.icl_demos(self.few_shot, 0)
        found = []
        for example in self.test.test:
            prompt = data.prompt_tokens(self.tokenizer, demos, example.query)
            found.append(self.read(prompt)[0])
        return torch.stack(found)


def test_a_record_holds_what_plain_passes_of_the_model_give(run, place):
    [found] = run("--dataset", "sst2", "--n", 4)
    plain = Plain(place)
    assert found["test_data"] == data.digest(plain.test.test)
    A_icl = plain.behind_demos()
    A = torch.stack([plain.alone(example.query)[0] for example in plain.test.test])
    halves = anatomy.split(6, "0-0")
    share = anatomy.constant_share(A_icl - A, halves)
    assert found["share_layers"] == pytest.approx(share.layers.tolist(), abs=1e-4)
    assert found["share"] == pytest.approx(share.whole, abs=1e-4)
    masses = []
    for fit, held in (halves, halves[::-1]):
        vector = (A_icl - A)[fit].mean(dim=0).float()
        for q in held:
            masses.append(plain.alone(plain.test.test[q].query, vector)[1].sum().item())
    mass = found["methods"]["exact"]["label_mass"]
    assert mass == pytest.approx(sum(masses) / 6, rel=1e-3, abs=2e-5)
    cosines = torch.cosine_similarity(A_icl, A_icl.roll(-1, dims=0), dim=-1).mean(dim=0)
    shuffled = found["teachers"]["shuffled"]
    assert shuffled["asim_layers"] == pytest.approx(cosines.tolist(), abs=1e-4)
    centred = A_icl - A_icl.mean(dim=0)
    cosines = torch.cosine_similarity(centred, centred.roll(-1, dims=0), dim=-1).mean(dim=0)
    assert shuffled["asim_centred_layers"] == pytest.approx(cosines.tolist(), abs=1e-4)


def test_the_scores_are_those_of_a_sweep(run, call):
    [found] = run("--dataset", "sst2", "--eval", "poems", "--set", 1)
    assert found["foreign"] == "finsen"
    options = ("--dataset", "sst2", "--eval", "poems", "--set", 1, "--methods", "steer")
    own = call(*options, main=sweep.main, out="own")
    flipped = call(*options, "--demos", "flipped", main=sweep.main, out="flipped")
    scores = ("accuracy", "nll", "label_mass", "asim", "asim_centred", "agreement")
    for row in own.rows:
        for score in scores:
            expected = found["methods"][row["method"]][score]
            assert row[score] == pytest.approx(expected, rel=1e-3, abs=2e-5), score
    icl = next(row for row in flipped.rows if row["method"] == "icl")
    for score in scores[:3]:
        assert found["teachers"]["flipped"][score] == pytest.approx(icl[score], rel=1e-3, abs=2e-5)


def test_flipped_demos_move_what_icl_does_less_than_another_query_does(run):
    """On a random model too: the texts are the same, and labels are few tokens."""
    [found] = run("--dataset", "sst2", "--n", 4)
    teachers = found["teachers"]
    assert 1 > teachers["flipped"]["asim"] > teachers["shuffled"]["asim"]
    assert found["methods"]["icl"]["asim"] == pytest.approx(1, abs=1e-5)


def test_an_interrupted_command_resumes_and_ends_with_the_same_records(run, monkeypatch, tmp_path):
    options = ("--dataset", "sst2", "--eval", "sst2", "poems", "--n", 2)
    whole = run(*options, "--sets", 2, out="whole")
    assert len(whole) == 4
    run(*options, "--set", 1)
    path = tmp_path / "out" / "anatomy.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:200])  # killed while it wrote the second
    assert without_times(run(*options, "--sets", 2)) == without_times(whole)
    assert path.read_text().startswith(lines[0])

    def no_more(*_, **__):
        raise AssertionError("it is there")

    monkeypatch.setattr(ia2, "evaluate", no_more)
    monkeypatch.setattr(ia2, "few_shot_targets", no_more)
    before = path.read_bytes()
    run(*options, "--sets", 2)
    assert path.read_bytes() == before


def test_the_base_model_answers_the_queries_of_a_set_once(run, monkeypatch):
    seen = []
    evaluate = ia2.evaluate

    def watched(model, tokenizer, test, few_shot=None, icl=None, edit=None):
        seen.append((few_shot is None, edit is None))
        return evaluate(model, tokenizer, test, few_shot, icl, edit)

    monkeypatch.setattr(ia2, "evaluate", watched)
    run("--dataset", "sst2", "--n", 2, 4)
    assert seen.count((True, True)) == 1  # base
    assert seen.count((True, False)) == 2 * 3  # steer, and exact in two halves
    assert seen.count((False, True)) == 2 * 3  # own, flipped and foreign demos


def test_each_record_is_there_before_the_next_one_is_made(run, monkeypatch, tmp_path):
    there = []
    measure = anatomy.measure

    def watched(*arguments):
        there.append(len(anatomy_report.read_records(tmp_path / "out" / "anatomy.jsonl")))
        return measure(*arguments)

    monkeypatch.setattr(anatomy, "measure", watched)
    run("--dataset", "sst2", "--eval", "sst2", "poems")
    assert there == [0, 1]


def test_without_a_task_for_foreign_demos_the_rest_is_measured(call, run, tmp_path):
    [found] = run("--dataset", "strategytf")
    assert found["foreign"] is None and found["teachers"]["foreign"] is None
    assert found["teachers"]["flipped"]["asim"] < 1
    again = call("--dataset", "strategytf", main=anatomy.main, quick=QUICK)
    assert "no foreign demos" in again.err
    assert "| foreign    | -" in again.out


def test_what_cannot_be_measured_is_refused_in_a_sentence(call, tmp_path):
    assert "free text" in refused(call, "--dataset", "gsm8k")
    assert "4" in refused(call, "--dataset", "sst2", quick=("--test", 3))
    assert ".svg" in refused(call, "--plot", "picture.jpg")
    assert "no file" in refused(call, "--show", tmp_path / "none.jsonl")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "anatomy.jsonl").write_text("[]\n")
    assert "line 1" in refused(call, "--dataset", "sst2")
    assert (tmp_path / "out" / "anatomy.jsonl").read_text() == "[]\n"


def test_options_of_training_are_not_there():
    names = anatomy.anatomy_parser().format_help()
    for option in ("--lr", "--epochs", "--rank", "--methods", "--keep"):
        assert option not in names


def test_parts_of_an_evaluation_are_joined_as_if_they_were_one():
    logprobs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    answers = ia2.metrics.LabelAnswers(
        tokens=torch.tensor([7, 8, 9, 7]),
        confidence=torch.tensor([0.5, 0.6, 0.7, 0.8]),
        label_logprobs=logprobs,
        label_tokens=torch.tensor([7, 8]),
        labels=torch.tensor([0, 0, 1, 1]),
    )
    whole = ia2.Evaluation({}, [7, 8, 9, 7], [0.5] * 4, [[1]] * 4, [torch.ones(1, 1, 2)] * 4)

    def part(numbers):
        values = {}
        for name in ("tokens", "confidence", "labels", "label_logprobs"):
            values[name] = getattr(answers, name)[numbers]
        return replace(
            whole,
            answers=[whole.answers[i] for i in numbers],
            activations=[whole.activations[i] for i in numbers],
            label_answers=replace(answers, **values),
        )

    joined = anatomy.joined([part([0, 1]), part([2, 3])])
    assert joined.answers == whole.answers and len(joined.activations) == 4
    assert joined.scores == ia2.metrics.label_scores(answers)


# ---- tables, summary and picture -----------------------------------------------------------------


@pytest.fixture
def shown(call, tmp_path):
    """A file of three sets of one test and one of another, shown without a model."""
    found = [record(number) for number in (0, 1, 2)]
    found.append(record(0, run="other/anatomy", eval_dataset="amazon", test_data="a"))
    path = write(tmp_path / "some.jsonl", found)

    def show(*options):
        return call("--show", path, path, *options, main=anatomy.main, quick=())

    return show


def test_tables_and_summary_come_from_records_alone(shown, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "find", None)
    result = shown("--json", tmp_path / "new" / "a.json")
    assert result.code == 0, result.err
    groups = json.loads((tmp_path / "new" / "a.json").read_text())
    assert [(group["eval_dataset"], group["sets"]) for group in groups] == [
        ("movies", [0, 1, 2]),
        ("amazon", [0]),
    ]
    values = [0.7, 0.8, 0.9]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    expected = [0.8, 0.8 - half, 0.8 + half]
    assert groups[0]["figures"]["share"] == pytest.approx(expected, abs=1e-4)
    assert groups[1]["figures"]["share"] == [0.7, None, None]
    assert groups[0]["layers"]["share_layers"] == pytest.approx([0.6, 0.9])
    assert groups[0]["layers"]["vector_share_layers"] == [0.4, None]
    assert "teachers.foreign.asim" not in groups[0]["figures"]
    assert f"0.800 [{0.8 - half:.3f}, {0.8 + half:.3f}]" in result.out
    assert "| movies to amazon | 4 | 1 " in result.out
    assert list(groups[0]) == sorted(groups[0])


def test_the_picture_is_drawn_by_its_ending(shown, tmp_path):
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        assert shown("--plot", tmp_path / name).code == 0
        assert (tmp_path / name).read_bytes().startswith(start)
    assert not list(tmp_path.glob(".*partial"))


def test_the_picture_shows_the_share_by_depth_and_accuracies_set_by_set():
    groups = anatomy_report.groups_of([record(0), record(1), record(0, n=8, run="n8/anatomy")])
    four, eight, accuracy = anatomy_report.draw(groups).axes
    assert [axis.get_title() for axis in (four, eight)] == ["n = 4", "n = 8"]
    xs, ys = four.lines[0].get_data()
    assert (list(xs), list(ys)) == ([0.5, 1.0], pytest.approx([0.6, 0.85]))
    xs, ys = accuracy.lines[0].get_data()
    assert list(xs) == pytest.approx([50, 60]) and list(ys) == pytest.approx([50, 60])


def test_records_that_differ_in_more_than_the_set_are_never_averaged(tmp_path):
    other = record(1, balanced=True, run="other/anatomy")
    groups = anatomy_report.groups_of([record(0), other])
    names = [each.name for each in groups]
    assert names == ["m, words", "m, words, balanced True"]
    with pytest.raises(UserError, match="train_data"):
        anatomy_report.groups_of([record(0), record(0, run="other/anatomy")])


def test_a_cut_last_line_is_passed_over_and_a_spoiled_one_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [record(0), record(1)])
    whole = path.read_text()
    path.write_text(whole + json.dumps(record(2))[:150])
    assert [each["set"] for each in anatomy_report.read_records(path)] == [0, 1]
    path.write_text(whole.replace('"set": 0', '"group": 0'))
    with pytest.raises(UserError, match="line 1"):
        anatomy_report.read_records(path)


def test_the_vector_is_that_of_the_method_steer(place):
    plain = Plain(place)
    setup = ia2.Setup(plain.model, plain.tokenizer, plain.task, [plain.test], 0, {}, [], None)
    study = anatomy.Study(setup, "", "", None, False, 6, 0)
    vector = anatomy.steering_of(study, plain.few_shot).vector
    targets, _ = ia2.few_shot_targets(plain.model, plain.tokenizer, plain.few_shot)
    assert torch.equal(vector, variants.make_steering(plain.model, targets).vector)
