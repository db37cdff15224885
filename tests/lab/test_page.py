"""pytest tests/lab/test_page.py: the page is what its command writes, says what the record holds,
and works in a browser, where there is one.
"""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

import data
import ia2
import lora
import metrics
from engine import models
from lab import page, page_record
from support import records

ROOT = Path(__file__).parents[2]
TEXT = page.PAGE.read_text(encoding="utf-8")
RECORD = json.loads(page.RECORD.read_text(encoding="utf-8"))
MAIN = ("base", "icl", "sft", "ia2", "ia2-sft")
PLAYED = ("sft", "ia2", "ia2-sft", "steer")


def states(method):
    return RECORD["methods"][method]["states"]


# ---- the file ------------------------------------------------------------------------------------


def test_the_committed_page_is_what_the_command_writes(tmp_path, monkeypatch):
    written = tmp_path / "ia2.html"
    monkeypatch.setattr(page, "PAGE", written)
    page.main([])
    assert written.read_bytes() == (ROOT / "docs" / "ia2.html").read_bytes()


def test_the_page_is_one_small_file_that_asks_for_nothing():
    assert len(TEXT.encode()) <= 100_000
    outside = re.compile(r"https?:|//\w|\bsrc=|<link|@import|url\(|fetch\(|XMLHttp|import\(")
    assert outside.findall(TEXT) == []
    assert outside.findall('<img src="//example.org">') == ["src=", "//e"]


VOID = {"meta", "input", "br", "img", "link", "hr"}
REFERENCES = ("for", "aria-labelledby", "aria-describedby")


class Faults(HTMLParser):
    """What is wrong with a page: tags that do not match, ids that are there twice or not at all."""

    def __init__(self, text):
        super().__init__()
        self.open = []
        self.ids = []
        self.references = []
        self.found = []
        self.controls = []  # native controls, and whether a label names each
        self.feed(text)
        self.close()
        self.found += [f"{tag} is not closed" for tag in self.open]
        self.found += [f"{name} is there twice" for name in self.ids if self.ids.count(name) > 1]
        self.found += [f"{name} is missing" for name in self.references if name not in self.ids]

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        names = [name for name, _ in attributes]
        attributes = dict(attributes)
        if len(attributes) < len(names):
            self.found.append(f"{tag} has an attribute twice")
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for name in REFERENCES:
            self.references += attributes.get(name, "").split()
        if attributes.get("href", "").startswith("#"):
            self.references.append(attributes["href"][1:])
        if tag in ("input", "select"):
            self.controls.append((attributes.get("id"), "label" in self.open))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.found.append(f"{tag} is closed where it is not open")


def test_the_html_is_whole():
    assert TEXT.startswith("<!DOCTYPE html>\n<html lang=")
    assert Faults(TEXT).found == []
    assert "@@" not in TEXT


@pytest.mark.parametrize(
    "text", ["<p><b></p></b>", "<div>", '<p id="a"></p><p id="a"></p>', '<a href="#b"></a>']
)
def test_html_that_is_not_whole_is_seen(text):
    assert Faults(text).found


def test_every_control_has_a_label_and_every_picture_a_name_and_a_text():
    labelled = re.findall(r'<label for="(\w+)"', TEXT)
    controls = Faults(TEXT).controls
    assert len(controls) == 9
    for name, inside in controls:
        assert inside or name in labelled
    pictures = re.findall(r"<svg id=.*?</svg>", TEXT)
    assert len(pictures) == 4
    for picture in pictures:
        assert 'role="img"' in picture and "<title" in picture and "<desc" in picture
        assert "aria-labelledby" in picture and "aria-describedby" in picture


# ---- what it says --------------------------------------------------------------------------------


def test_the_record_is_of_the_lesson():
    lesson = (ROOT / "run.ipynb").read_text(encoding="utf-8")
    first = RECORD["methods"]["ia2"]["stage"]["first_loss"]
    assert f"the loss before training: {first:.4f}" in lesson
    assert RECORD["examples"][0]["text"] in lesson
    assert (RECORD["n"], RECORD["set"], RECORD["lr"]) == (4, 0, 3e-4)
    assert len(RECORD["queries"]) == 40
    assert max(len(query["text"]) for query in RECORD["queries"]) <= 120


def test_each_method_begins_where_its_path_does_and_ends_at_the_adapter_that_is_kept():
    def without_step(state):
        return {**state, "step": None}

    [base] = states("base")
    for method, start in (("sft", base), ("ia2", base), ("ia2-sft", states("ia2")[-1])):
        assert without_step(states(method)[0]) == without_step(start)
        steps = [state["step"] for state in states(method)]
        assert steps == sorted(set(steps)) and len(steps) <= 20
        assert steps[-1] == RECORD["methods"][method]["stage"]["kept_step"]
    assert len(states("steer")) == 1
    assert set(states("icl")[0]["asim"]) == {1000}


def test_the_table_of_ends_holds_what_the_record_does():
    labels = [query["label"] for query in RECORD["queries"]]
    base, icl = (fmean(states(method)[0]["x"]) for method in ("base", "icl"))
    for method, name in page.NAMES.items():
        state = states(method)[-1]
        right = labelled = 0
        for answer, label in zip(state["answer"], labels):
            right += answer == label
            labelled += RECORD["answers"][answer] in (" negative", " positive")
        way = round(100 * (fmean(state["x"]) - base) / (icl - base))
        cells = [right, labelled, f"{way}%".replace("-", "−")]
        cells += [f"{fmean(state[kind]) / 1000:.2f}" for kind in ("asim", "centred")]
        line = f'<th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells)
        assert line in TEXT, name


def share_between(values, groups):
    """The share of the variance that lies between groups."""
    values = np.array(values, dtype=float)
    means = np.array([values[groups == group].mean() for group in groups])
    return means.var() / values.var()


def test_what_the_page_says_of_the_two_axes_is_so():
    base, icl = states("base")[0], states("icl")[0]
    sides = np.repeat([0, 1], 40)
    assert share_between(base["x"] + icl["x"], sides) > 0.95, "mostly the shift that all share"
    blocks = np.arange(40) // data.BLOCK
    share = f"{share_between(icl['y'], blocks):.0%}"
    assert f"{share} comes from differences between groups of 16 queries" in TEXT
    wider = np.std(base["y"]) / np.std(icl["y"])
    assert f"{wider:.1f} times as wide along it as ICL's" in TEXT
    assert wider > 3, "mostly how base's marks differ"


# ---- few-shot sets -------------------------------------------------------------------------------


def test_the_sets_are_the_committed_rows_at_the_planned_rate():
    rows = page.few_shot_rows()
    shown = json.loads(re.search(r'id="data">(.*?)</script>', TEXT, re.DOTALL)[1])["sets"]["tests"]
    assert shown == page.few_shot_tests(rows)
    values = 0
    for test in shown:
        for each in test["sets"]:
            for method in MAIN:
                values += each[method] is not None
    assert values == sum(row["method"] in MAIN for row in rows)
    assert {row.get("lr") for row in rows} == {None, 3e-4}
    assert {row["demos"] for row in rows if "demos" in row} <= {"own"}


def few_rows(difference, **changes):
    """Rows of three few-shot sets on which IA2 then SFT is better by some points."""
    found = []
    for number in range(3):
        for method, accuracy in (("sft", 0.5), ("ia2-sft", 0.5 + difference / 100)):
            row = {
                "model": "qwen2.5-coder-1.5b",
                "dataset": "sst2",
                "eval_dataset": "poems",
                "n": 4,
                "set": number,
                "method": method,
                "lr": 3e-4,
                "accuracy": accuracy + number / 100,
                "test": 100,
                "test_data": str(number),
                "train_labels": ["0", "1", "1", "0"],
                "labels": "digits",
                "run": f"{number}{method}{changes}",
                **changes,
            }
            found.append(row)
    return found


def test_newer_rows_take_the_place_of_the_former_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROOT", tmp_path)
    former = few_rows(10, procedure="1")
    other_rate = few_rows(30, lr=1e-3)
    last_kept = few_rows(40, keep="last")
    for name, rows in (
        (page.FORMER[0], former),
        (page.LARGER[0], few_rows(20) + other_rate + last_kept),
    ):
        (tmp_path / "results" / name).mkdir(parents=True)
        records.write_rows(tmp_path / "results" / name / "results.jsonl", rows)
    rows = page.few_shot_rows()
    [test] = page.few_shot_tests(rows)
    assert test["name"] == "1.5B: SST-2, tested on Poem"
    assert test["difference"].startswith("+20.0")
    assert [each["ia2-sft"] for each in test["sets"]] == [70, 71, 72]
    assert [each["labels"] for each in test["sets"]] == [["0", "1", "1", "0"]] * len(test["sets"])
    assert "former procedure" not in page.sets_text(rows, "another")
    (tmp_path / "results" / page.LARGER[0] / "results.jsonl").unlink()
    rows = page.few_shot_rows()
    assert page.few_shot_tests(rows)[0]["difference"].startswith("+10.0")
    assert "former procedure" in page.sets_text(rows, "another")


def test_what_a_picture_of_sets_does_not_tell_is_said():
    stages = [{"name": "sft", "steps": 10, "kept_step": 0}]
    rows = [{**row, "stages": stages} for row in few_rows(0)[-1:]]
    assert "In set 2 of 1.5B on SST-2 the SFT stage kept nothing" in page.sets_note(rows)
    assert page.sets_note(few_rows(0)) == ""
    base = [{**row, "method": "base", "accuracy": 0.0} for row in few_rows(0)]
    said = "Base of 1.5B is near 0% because its likeliest next token is no digit."
    assert page.sets_note(base) == said


# ---- recording -----------------------------------------------------------------------------------


def test_steps_are_few_and_hold_both_ends():
    assert page_record.chosen_steps(5) == [0, 1, 2, 3, 4, 5]
    for last in (19, 20, 50, 400):
        steps = page_record.chosen_steps(last)
        assert (steps[0], steps[-1]) == (0, last)
        assert len(set(steps)) == len(steps) <= page_record.STATES
        gaps = np.diff(steps)
        assert gaps[0] == min(gaps) and gaps[-1] == max(gaps), "denser at the start"


def test_the_plane_is_that_of_the_covariance_matrix():
    generator = torch.Generator().manual_seed(0)
    base = [torch.randn(3, 1, 8, generator=generator) for _ in range(6)]
    icl = [torch.randn(3, 1, 8, generator=generator) + 2 for _ in range(6)]
    plane = page_record.fit_plane(base, icl, 1)
    points = np.array([A[1, 0].numpy() for A in base + icl], dtype=float)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    assert plane.variance == pytest.approx((values[::-1] / values.sum())[:2])
    expected = (points - points.mean(axis=0)) @ vectors[:, ::-1][:, :2]
    places = np.concatenate([plane.places(base).numpy(), plane.places(icl).numpy()])
    assert np.abs(places) == pytest.approx(np.abs(expected))
    assert places[:6, 0].mean() < places[6:, 0].mean(), "base on the left, ICL on the right"
    assert places[0, 1] > 0


@pytest.fixture(scope="module")
def small(place):
    """The tiny model with five test queries, and a few-shot set."""
    choice = models.find(str(place / "tiny"), "cpu")
    options = data.Options(labels="words", data_dir=str(place / "bench"))
    task = data.load("sst2", choice.tokenizer, options)
    setup = ia2.set_up(choice, task, [replace(task, test=task.test[:5])], rank=2)
    return setup, data.few_shot_set(task.pool, 2)


def test_recording_changes_nothing_in_training_and_ends_where_training_does(small, monkeypatch):
    setup, few_shot = small
    model = setup.model
    [test] = setup.tests
    recipe = ia2.Recipe(lr=1e-2, epochs=6)
    followed = []
    follow = ia2.follow

    def remember(model, path, *given, **kept):
        stages = follow(model, path, *given, **kept)
        if kept:  # the page's own call: follow calls itself without names
            followed.append((lora.state(model), stages[-1]))
        return stages

    monkeypatch.setattr(ia2, "follow", remember)
    found = page_record.record(setup, few_shot, recipe)
    targets, dev = ia2.few_shot_targets(model, setup.tokenizer, few_shot)
    lora.reset(model, seed=0)
    trained = {(): ia2.Trained(lora.state(model), [])}
    with lora.disable(model):
        icl = ia2.evaluate(model, setup.tokenizer, test, few_shot)
    assert len(followed) == len(ia2.METHODS)
    for (method, path), (adapter, stage) in zip(ia2.METHODS.items(), followed):
        [*_, alone] = follow(model, path, targets, dev, recipe, trained)
        assert replace(alone, seconds=0) == replace(stage, seconds=0)
        for name, weight in lora.state(model).items():
            assert torch.equal(weight, adapter[name]), (method, name)
        scores = ia2.compare(ia2.evaluate(model, setup.tokenizer, test), icl)
        state = found["methods"][method]["states"][-1]
        assert state["step"] == alone.kept_step
        assert fmean(state["asim"]) / 1000 == pytest.approx(scores["asim"], abs=1e-3)
        assert fmean(state["centred"]) / 1000 == pytest.approx(scores["asim_centred"], abs=1e-3)
        shares = [outcome[4] for outcome in scores["outcomes"]]  # among the labels
        for (own, other), *written in zip(shares, *state["p"]):
            assert own + other == pytest.approx(1, abs=1e-3) and max(written) <= 100


def test_steering_is_recorded_with_the_vector_in_place(small):
    setup, few_shot = small
    found = page_record.record(setup, few_shot, ia2.Recipe(epochs=1))
    model = setup.model
    [test] = setup.tests
    targets, _ = ia2.few_shot_targets(model, setup.tokenizer, few_shot)
    with lora.disable(model):
        shifts = []
        for target in targets:
            [own] = ia2.forward(model, [target.student_prompt], [target.Y_icl])
            shifts.append(target.A_icl - own.activations)
        vector = torch.stack(shifts).mean(dim=0)[:, 0]  # (L, d)
        steered = ia2.evaluate(
            model, setup.tokenizer, test, edit=lambda layer, outputs: outputs + vector[layer]
        )
        icl = ia2.evaluate(model, setup.tokenizer, test, few_shot)
    [state] = found["methods"]["steer"]["states"]
    by_query = [metrics.asim(A, B)[:, 0] for A, B in zip(steered.activations, icl.activations)]
    expected = 1000 * torch.stack(by_query).mean(dim=0)
    assert state["asim"] == pytest.approx(expected.tolist(), abs=1)


# ---- in a browser --------------------------------------------------------------------------------

BROWSERS = ("google-chrome", "chromium", "chromium-browser")
OPTIONS = "--headless --no-sandbox --disable-gpu --virtual-time-budget=20000 --dump-dom"
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>"""
BEFORE = """<script>
const faults = [];
addEventListener("error", (event) => faults.push(event.message));
console.error = console.warn = (...words) => faults.push(words.join(" "));
</script>"""
AFTER = """<script>
const all = (selector) => [...document.querySelectorAll(selector)];
const text = (name) => $(name).textContent;
const place = (mark) => mark.getAttribute("transform").match(/-?[0-9.]+/g).map(Number);
const marks = (kind) =>
  all(`#cloud ${kind}`).map((mark) => [...place(mark), mark.getAttribute("href")]);
const change = (element, value, kind) => {
  element.value = value;
  element.dispatchEvent(new Event(kind));
};
const click = (selector) => document.querySelector(selector).click();
const player = () =>
  ({ text: text("play"), live: $("said").getAttribute("aria-live"), at: $("step").value });
const overflow = () => 
  document.documentElement.scrollWidth - document.documentElement.clientWidth;
const clipped = () => all("figure > svg").flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("use, text, path")].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 ||
      box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map((element) => svg.id + " " + element.outerHTML);
});
const report = { faults, width: innerWidth };
const tell = () => {
  const box = top.document.createElement("pre");
  box.id = "report";
  box.textContent = JSON.stringify(report);
  top.document.body.replaceChildren(box);
};
ACTIONS
</script>"""
ACT = """
report.first = { said: text("said"), text: text("query-text"), now: marks(".now") };
report.base = marks(".hollow");
report.icl = marks(".pale");
report.methods = {};
for (const radio of all("[name=method]")) {
  radio.click();
  const seen = [];
  for (let at = 0; at <= Number($("step").max); at++) {
    if (!$("step").disabled) change($("step"), at, "input");
    const thick = all("#layers .strong").map((curve) => curve.getAttribute("class"));
    seen.push({ marks: marks(".now"), said: text("said-step"), thick });
  }
  report.methods[radio.value] = { seen, disabled: $("step").disabled && $("play").disabled };
}
click("[value=ia2]");
report.kinds = {};
for (const kind of ["centred", "asim"]) {
  click(`[value=${kind}]`);
  report.kinds[kind] = { mean: text("mean-base"), text: text("layers-text") };
}
all("#cloud .now")[7].dispatchEvent(new MouseEvent("click"));
report.clicked = { query: $("query").value, text: text("query-text") };
change($("query"), 11, "change");
report.selected = { text: text("query-text"), rings: all("#cloud circle").length,
  shares: all("#shares use").length };
report.table = all("#all-sets tr").map((row) => [...row.cells].map((cell) => cell.textContent));
report.tests = [];
for (const option of all("#test option")) {
  change($("test"), option.value, "change");
  report.tests.push({ name: option.textContent, bars: all("#sets .bar").length,
    marks: all("#sets use").length, said: text("sets-said") });
}
click("#play");
report.playing = player();
click("#play");
report.paused = player();
change($("step"), Number($("step").max) - 2, "input");
click("#play");
setTimeout(() => {
  report.played = { ...player(), max: $("step").max };
  tell();
}, 4000);
"""
LOOK = """
report.dark = matchMedia("(prefers-color-scheme: dark)").matches;
report.back = getComputedStyle(document.body).backgroundColor;
report.overflow = [];
report.clipped = [];
const look = () => {
  report.overflow.push(overflow());
  report.clipped.push(...clipped());
};
for (const method of all("[name=method]")) {
  method.click();
  look();
}
for (const option of all("#test option")) {
  change($("test"), option.value, "change");
  look();
}
document.querySelector("details").open = true;
look();
tell();
"""


def find_browser():
    """A browser that starts; None where there is none."""
    for browser in filter(None, map(shutil.which, BROWSERS)):
        if subprocess.run([browser, "--version"], capture_output=True).returncode == 0:
            return browser
    return None


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """browse(actions, width, dark) opens the page in a browser without a window and reports."""
    browser = find_browser()
    if browser is None:
        pytest.skip("not run: no browser found (chromium)")

    def run(actions, width, dark):
        folder = tmp_path_factory.mktemp("browser")
        text = TEXT.replace("<head>", f"<head>{BEFORE}")
        text = text.replace("</body>", AFTER.replace("ACTIONS", actions) + "</body>")
        frame = FRAME.format(width=width, page=html.escape(text))  # windows have a least width
        (folder / "page.html").write_text(frame, encoding="utf-8")
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        profile = f"--user-data-dir={folder / 'profile'}"
        command = [browser, *OPTIONS.split(), scheme, profile, (folder / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
        found = re.search(r'<pre id="report">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]
        return json.loads(html.unescape(found[1]))

    return run


@pytest.fixture(scope="module")
def acted(browse):
    return browse(ACT, 1000, dark=False)


def shape_of(answer):
    return "#" + ("negative", "positive", "other")[min(answer, 2)]


def drawn_at(state, scale):
    """Where marks of a state belong, by a scale (slope, start) for each axis."""
    found = []
    for x, y, answer in zip(state["x"], state["y"], state["answer"]):
        (a, b), (c, d) = scale
        found.append([a * x + b, c * y + d, shape_of(answer)])
    return found


def assert_same(marks, expected):
    assert len(marks) == len(expected) == 40
    for (x, y, shape), (expected_x, expected_y, expected_shape) in zip(marks, expected):
        assert (x, y) == pytest.approx((expected_x, expected_y), abs=0.11)
        assert shape == expected_shape


@pytest.fixture(scope="module")
def scale(acted):
    """The two linear maps from recorded places to pixels, by base's and ICL's marks."""
    maps = []
    for axis, name in enumerate("xy"):
        recorded = states("base")[0][name] + states("icl")[0][name]
        pixels = [mark[axis] for mark in acted["base"] + acted["icl"]]
        slope, start = np.polyfit(recorded, pixels, 1)
        maps.append((slope, start))
    return maps


def test_nothing_goes_wrong_in_a_browser(acted):
    assert acted["faults"] == []


def test_the_first_view_is_the_end_of_ia2(acted, scale):
    assert acted["first"]["said"].startswith("IA2, step 50 of 50: ")
    assert RECORD["queries"][0]["text"] in acted["first"]["text"]
    assert_same(acted["first"]["now"], drawn_at(states("ia2")[-1], scale))


def test_base_and_icl_stand_where_they_were_recorded(acted, scale):
    assert scale[0][0] > 0 > scale[1][0], "up and right are positive"
    assert_same(acted["base"], drawn_at(states("base")[0], scale))
    assert_same(acted["icl"], drawn_at(states("icl")[0], scale))


@pytest.mark.parametrize("method", PLAYED)
def test_the_slider_moves_the_marks_to_the_recorded_places(acted, scale, method):
    seen = acted["methods"][method]["seen"]
    assert len(seen) == len(states(method))
    for each, state in zip(seen, states(method)):
        assert_same(each["marks"], drawn_at(state, scale))
        assert each["thick"] == [f"curve {method} strong"]
        if method != "steer":
            assert each["said"] == f"{state['step']} of {states(method)[-1]['step']}"
    assert acted["methods"][method]["disabled"] == (method == "steer")


def test_similarity_is_shown_raw_and_centred(acted):
    for kind in ("asim", "centred"):
        mean = f"{fmean(states('base')[0][kind]) / 1000:.2f}"
        assert acted["kinds"][kind]["mean"] == mean
        assert f"base {mean}, " in acted["kinds"][kind]["text"]


def test_a_query_is_chosen_by_a_click_and_by_the_list(acted):
    assert acted["clicked"]["query"] == "7"
    assert RECORD["queries"][7]["text"] in acted["clicked"]["text"]
    assert RECORD["queries"][11]["text"] in acted["selected"]["text"]
    assert acted["selected"]["rings"] == 3
    assert acted["selected"]["shares"] == 3 * (len(states("ia2")) + 2)


def test_each_test_can_be_chosen_and_a_table_has_all(acted):
    tests = page.few_shot_tests(page.few_shot_rows())
    head, *lines = acted["table"]
    assert head[3:] == ["base", "ICL", "SFT", "IA2", "IA2 then SFT"]
    expected = []
    for test in tests:
        for each in test["sets"]:
            scores = ["–" if each[name] is None else f"{each[name]:.1f}" for name in MAIN]
            expected.append([test["name"], str(each["set"]), *scores])
    assert [[*line[:2], *line[3:]] for line in lines] == expected
    assert set("".join(line[2] for line in lines)) == set("−+")
    assert [each["name"] for each in acted["tests"]] == [test["name"] for test in tests]
    for each, test in zip(acted["tests"], tests):
        assert each["bars"] == len(test["sets"])
        assert each["marks"] == sum(one[name] is not None for one in test["sets"] for name in MAIN)
        assert test["difference"] in each["said"]


def test_play_goes_to_the_end_and_stops(acted):
    assert acted["playing"] == {"text": "Pause", "live": "off", "at": "0"}
    assert acted["paused"] == {"text": "Play", "live": "polite", "at": "0"}
    played = acted["played"]
    assert played == {"text": "Play", "live": "polite", "at": played["max"], "max": played["max"]}


@pytest.mark.parametrize("width, dark", [(360, True), (1000, False)])
def test_nothing_is_cut_off_on_a_phone_or_a_desk_and_dark_is_dark(browse, width, dark):
    found = browse(LOOK, width, dark)
    assert found["faults"] == []
    assert (found["width"], found["dark"]) == (width, dark)
    assert max(found["overflow"]) <= 0
    assert found["clipped"] == []
    brightness = fmean(int(value) for value in re.findall(r"\d+", found["back"])[:3])
    assert brightness < 40 if dark else brightness > 240
