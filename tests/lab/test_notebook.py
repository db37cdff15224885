"""pytest tests/lab/test_notebook.py: the lesson runs from top to bottom with small settings; its
exercises know right answers from wrong ones; its pictures hide nothing; what is built by hand is
compared with the scripts; its committed outputs are those of one run with its live model.
"""

import inspect
import json
import re
import textwrap
import tomllib
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import short_ones
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
PICTURES = 14
METHODS = ("base", "icl", "constant", "steer", "sft", "ia2", "ia2-sft")

# Of each exercise: its check, the solution's function and arguments, and wrong answers (the body of
# a function, and how the check's words start).
EXERCISES = {
    1: (
        "check_hook",
        "attention_outputs(model, tokens)",
        {
            "...": "not done yet",
            "return ia2.forward(model, [tokens[:-1]])[0].activations[:, 0]": "value error: off by",
            "return ia2.forward(model, [tokens])[0].activations": "shape error",
            "LAYERS[0].self_attn.register_forward_hook(lambda *given: None)\n"
            "return attention_outputs(model, tokens)": "value error: 1 hooks are still there",
            "return attention_outputs(model, tokens).detach()": "value error: no gradient",
        },
    ),
    2: (
        "check_target",
        "target_by_hand(model, few_shot, i)",
        {
            "...": "not done yet",
            "token, A = target_by_hand(model, few_shot, i)\n"
            "prompt = data.prompt_tokens(tokenizer, few_shot.train, few_shot.train[i].query)\n"
            "return token, attention_outputs(model, prompt)": "value error: off by",
            "return -1, None": "value error: the teacher's answer is",
            "token, A = target_by_hand(model, few_shot, i)\nreturn token, A[None]": "shape error",
        },
    ),
    3: (
        "check_lora",
        "lora_forward(x, W, b, A, B, scale)",
        {
            "...": "not done yet",
            "return x @ W.T + b + (x @ A.T) @ B.T": "value error",
            "return x @ A.T": "shape error",
        },
    ),
    4: (
        "check_loss",
        "ia2_loss(model, batch)",
        {
            "...": "not done yet",
            "return ia2.ia2_loss(model, batch) / len(LAYERS)": "value error: off by",
            "return ia2.ia2_loss(model, batch).detach()": "value error: the loss has no gradient",
            "return ia2.ia2_loss(model, batch)[None]": "shape error",
        },
    ),
    5: (
        "check_loop",
        "loop(model, loss_fn, targets, steps)",
        {
            "...": "not done yet",
            "optimizer = torch.optim.Adam(lora.weights(model).values(), lr=LR)\n"
            "losses = []\n"
            "for _ in range(steps):\n"
            "    loss = loss_fn(model, targets)\n"
            "    loss.backward()\n"
            "    optimizer.step()\n"
            "    losses.append(loss.item())\n"
            "optimizer.zero_grad()\n"
            "return losses": "value error",
            "return [loss_fn(model, targets).item()]": "shape error",
        },
    ),
    6: (
        "check_ece",
        "ece_by_hand(confidence, correct, bins=15)",
        {
            "...": "not done yet",
            "return abs(correct.mean() - confidence.mean())": "value error",
            "groups = metrics.reliability(confidence, correct, bins)\n"
            "gaps = [abs(each.accuracy - each.confidence) for each in groups]\n"
            "return np.mean(gaps)": "value error",
            "return confidence - correct": "shape error",
        },
    ),
    7: (
        "check_mean_target",
        "mean_target_loss(model, batch)",
        {
            "...": "not done yet",
            "return ia2.ia2_loss(model, batch)": "value error",
            "mean = torch.stack([target.A_icl for target in batch]).mean(0)\n"
            "batch = [replace(target, A_icl=mean) for target in batch]\n"
            "return ia2.ia2_loss(model, batch)": "value error",
        },
    ),
    8: (
        "check_wrong_layer",
        "wrong_layer_loss(model, batch)",
        {"...": "not done yet", "return ia2.ia2_loss(model, batch)": "value error"},
    ),
    9: (
        "check_flipped",
        "flipped_set(few_shot)",
        {
            "...": "not done yet",
            "return few_shot": "value error",
            "return replace(few_shot, demos=few_shot.demos[1:])": "shape error",
            "demos = flipped_set(few_shot).demos\n"
            "return replace(few_shot, train=demos, demos=demos)": "value error",
        },
    ),
}
FOLDED_IN_TEXT = (7, 8, 9)  # the lesson does not need their solutions

# Each piece that is built by hand, and a sign of the cell that compares it with the scripts.
BY_HAND = {
    "answers of base and icl": r"evaluation\.answers\[:4\]",
    "the split of attention": r"assert_close\(mixed, heads\.outputs",
    "the first layer's heads": r"assert_close\(to_query, student_first",
    "activations": r"assert_close\(reading\.activations",
    "asim": r"assert_close\(metrics\.asim",
    "ICL pasted everywhere": r"assert_close\(logprobs\[movies\.label_tokens\]",
    "the target": r"assert_close\(target\.A_icl",
    "steering": r"assert_close\(vector, by_script",
    "centred asim": r"assert abs\(by_hand - scores\[\"base\"\]\[\"asim_centred\"\]\)",
    "LoRA": r"assert_close\(wrapped\(x\), expected",
    "LoRA that is off": r"lora\.disable\(model\):\n +torch\.testing\.assert_close\(model\(tokens\)",
    "L_IA2": r"assert_close\(ia2\.ia2_loss\(model, targets\)",
    "L_SFT": r"assert_close\(ia2\.sft_loss\(model, targets\)",
    "the loop": r"assert_close\(torch\.tensor\(script\), torch\.tensor\(mine\)",
    "cosines of all pairs": r"raw\.diagonal\(\)\.mean\(\) - scores\[name\]\[\"asim\"\]",
    "ECE": r"abs\(by_hand - figures\[\"ece\"\]\)",
    "overlap": r"assert_close\(metrics\.subspace_overlap\(B1, B2\), mine",
}


def read():
    return nbformat.read(ROOT / "run.ipynb", 4)


def code_cells(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def printed(notebook):
    """All that cells print or show as text."""
    parts = []
    for output in outputs_of(notebook):
        parts.append(output.get("text", ""))
        for kind in ("text/plain", "text/markdown"):
            parts.append(output.get("data", {}).get(kind, ""))
    return "\n".join(parts)


# ---- pictures ------------------------------------------------------------------------------------


def hidden(figure):
    """What a reader of a figure cannot see whole: markers, bars and points of lines that reach
    beyond their axis and are cut there, and texts that reach beyond the figure.
    """
    FigureCanvasAgg(figure).draw()
    found = []
    for axis in figure.axes:
        frame = axis.get_window_extent()
        room = figure.bbox
        for artist, boxes in drawn(axis, figure.dpi / 72):
            limits = frame if artist.get_clip_on() else room
            for low_x, high_x, low_y, high_y in boxes:
                inside_x = limits.x0 - 1 <= low_x and high_x <= limits.x1 + 1
                inside_y = limits.y0 - 1 <= low_y and high_y <= limits.y1 + 1
                if not (inside_x and inside_y):
                    found.append(f"{type(artist).__name__} {artist.get_label()}")
    for text in written(figure):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            if not holds(figure.bbox, box):
                found.append(f"text {text.get_text()!r}")
    return found


def written(figure):
    """The texts of a figure; of tick labels those within the limits, others are not shown."""
    texts = [*figure.texts]
    legends = list(figure.legends)
    for axis in figure.axes:
        if not axis.axison:
            texts += [axis.title, *axis.texts]
            continue
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
        legends += [axis.get_legend()] if axis.get_legend() else []
        for side in (axis.xaxis, axis.yaxis):
            low, high = sorted(side.get_view_interval())
            for place, label in zip(side.get_ticklocs(), side.get_ticklabels()):
                if low <= place <= high:
                    texts.append(label)
    for legend in legends:
        texts += legend.get_texts()
    return texts


def holds(outer, inner):
    """Whether one box is within another, to a pixel."""
    inside_x = outer.x0 - 1 <= inner.x0 and inner.x1 <= outer.x1 + 1
    return inside_x and outer.y0 - 1 <= inner.y0 and inner.y1 <= outer.y1 + 1


def drawn(axis, pixels):
    """(artist, [(low x, high x, low y, high y) in pixels]) of what an axis shows of its data."""
    for line in axis.lines:
        if line.get_transform() == axis.transData:  # not a line across the whole axis
            marked = line.get_marker() not in ("", "None", None)
            half = pixels * (line.get_markersize() / 2 if marked else 0)
            points = axis.transData.transform(line.get_xydata())
            yield line, [(x - half, x + half, y - half, y + half) for x, y in points]
    for points in axis.collections:
        if not hasattr(points, "get_sizes"):
            continue  # no points: a colour bar
        places = axis.transData.transform(np.asarray(points.get_offsets(), dtype=float))
        halves = pixels * np.sqrt(np.broadcast_to(points.get_sizes(), len(places))) / 2
        boxes = [(x - h, x + h, y - h, y + h) for (x, y), h in zip(places, halves)]
        yield points, [box for box in boxes if np.isfinite(box).all()]
    for bar in axis.patches:
        box = bar.get_window_extent()
        yield bar, [(box.x0, box.x1, box.y0, box.y1)]


def watch_pictures():
    """Runs in the notebook's kernel: notes each figure that a cell shows, and what it hides."""
    seen = []

    def note(result):
        if isinstance(result.result, Figure):
            titles = [axis.get_title() for axis in result.result.axes]
            seen.append({"hidden": hidden(result.result), "titles": titles})

    get_ipython().events.register("post_run_cell", note)  # noqa: F821 the kernel has it
    return seen


def test_a_picture_that_cuts_off_a_point_is_seen():
    figure = Figure(layout="constrained")
    axis = figure.subplots()
    axis.plot([1, 2, 3], [0.9, -0.18, 0.5], "o", label="asim")
    axis.set_ylim(-0.3, 1.0)
    assert hidden(figure) == []
    axis.set_ylim(-0.18, 1.0)  # exactly at the lowest point: half of its marker is cut
    assert hidden(figure) == ["Line2D asim"]
    axis.set_ylim(-0.1, 1.0)
    assert hidden(figure) == ["Line2D asim"]


@pytest.mark.parametrize("kind", ["scatter", "bar", "line", "title"])
def test_other_things_that_are_cut_off_are_seen(kind):
    figure = Figure()
    axis = figure.subplots()
    if kind == "scatter":
        axis.scatter([1, 2], [1, 2], s=200, label="points")
        axis.set_xlim(1, 3)
    elif kind == "bar":
        axis.bar([1, 2], [3, 5])
        axis.set_ylim(0, 4)
    elif kind == "line":
        axis.plot([0, 1], [0, 2])
        axis.set_ylim(0, 1)
    else:
        axis.set_title("a title that is far too long for its picture " * 5)
    assert len(hidden(figure)) == 1


# ---- one run with small settings -----------------------------------------------------------------


def verdict_cell(number, solution=""):
    """A cell that prints what a check says of the solution and of wrong answers."""
    check, signature, wrong_answers = EXERCISES[number]
    arguments = signature[signature.index("(") :]
    lines = ["import json", solution, f"verdicts = [{check}({signature.partition('(')[0]})]"]
    for body in wrong_answers:
        lines.append(f"def wrong_answer{arguments}:\n" + textwrap.indent(body, "    "))
        lines.append(f"verdicts.append({check}(wrong_answer))")
    lines.append(f"print(json.dumps({{'exercise': {number}, 'verdicts': verdicts}}))")
    return nbformat.v4.new_code_cell("\n".join(lines))


def folded_solution(notebook, number):
    """The code blocks of a solution that is folded away in a text: its function is the first."""
    [text] = [text for text in texts(notebook) if f"<summary>Solution {number}</summary>" in text]
    after = text.partition(f"<summary>Solution {number}</summary>")[2].partition("</details>")[0]
    return re.findall(r"```python\n(.*?)```", after, re.DOTALL)


# Runs in the notebook's kernel: `data.load` leaves long texts out, which takes a third of the time.
SHORT_TEXTS = """
import data
from dataclasses import replace
load_whole = data.load
def load_short(*given):
    whole = load_whole(*given)
    return replace(whole, pool=short_ones(whole.pool), test=short_ones(whole.test))
data.load = load_short
"""


def with_checks(notebook):
    """The notebook with cells that try all exercises and watch all pictures."""
    parts = [
        "import numpy as np",
        "from matplotlib.backends.backend_agg import FigureCanvasAgg",
        "from matplotlib.figure import Figure",
        *(inspect.getsource(each) for each in (hidden, written, holds, drawn, watch_pictures)),
        "pictures_seen = watch_pictures()",
        inspect.getsource(short_ones),
        SHORT_TEXTS,
    ]
    cells = [nbformat.v4.new_code_cell("\n\n".join(parts))]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
        cells.append(cell)
        solved = re.match(r"# @title Solution (\d+)", cell.source)
        if solved:
            cells.append(verdict_cell(int(solved[1])))
        for number in FOLDED_IN_TEXT:
            if cell.source.startswith(f"def {EXERCISES[number][0]}("):
                function, *further = folded_solution(notebook, number)
                cells.append(verdict_cell(number, function))
                cells += [nbformat.v4.new_code_cell(block) for block in further]
    dump = "import json\nprint(json.dumps({'pictures': pictures_seen}))"
    notebook.cells = [*cells, nbformat.v4.new_code_cell(dump)]
    return notebook


@pytest.fixture(scope="module")
def small_run():
    """The notebook after a run with IA2_QUICK=1."""
    notebook = with_checks(read())
    resources = {"metadata": {"path": str(ROOT)}}
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IA2_QUICK", "1")
        client.execute()
    return notebook


def noted(notebook, key):
    """What the added cells printed under a key."""
    found = []
    for line in printed(notebook).splitlines():
        if line.startswith(f'{{"{key}":'):
            found.append(json.loads(line))
    return found


def test_it_runs_from_top_to_bottom_with_nothing_filled_in(small_run):
    text = printed(small_run)
    assert text.count("'not done yet'") == len(EXERCISES)
    for method in METHODS:
        assert f"| {method} " in text
    assert "smollm2-135m, torch" in text


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_is_right_and_wrong_answers_are_told_what_is_wrong(small_run, number):
    [verdicts] = [
        each["verdicts"] for each in noted(small_run, "exercise") if each["exercise"] == number
    ]
    expected = ["right", *EXERCISES[number][2].values()]
    assert len(verdicts) == len(expected)
    for said, start in zip(verdicts, expected):
        assert said.startswith(start)


def test_no_picture_hides_anything(small_run):
    [seen] = noted(small_run, "pictures")
    assert len(seen["pictures"]) == PICTURES
    assert [each for each in seen["pictures"] if each["hidden"]] == []


def test_the_last_solution_compares_with_the_flipped_teacher(small_run):
    assert re.search(r"IA2 toward flipped demos answers as the .* in \d+%", printed(small_run))


def test_log_lines_of_training_stay_out(small_run):
    for notebook in (small_run, read()):
        errors = [each for each in outputs_of(notebook) if each.get("name") == "stderr"]
        assert errors == []


# ---- the committed outputs -----------------------------------------------------------------------


def test_the_committed_outputs_are_those_of_one_run_with_its_live_model():
    notebook = read()
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    text = printed(notebook)
    assert "qwen2.5-coder-0.5b, torch" in text
    assert text.count("'not done yet'") == len(EXERCISES)
    assert "This run took " in text
    for method in METHODS:
        assert f"| {method} " in text


def test_the_committed_outputs_are_pictures_and_text_of_a_reasonable_size():
    pictures = []
    for output in outputs_of(read()):
        assert output.output_type in ("stream", "display_data", "execute_result")
        if "image/png" in output.get("data", {}):
            pictures.append(output)
    assert len(pictures) == PICTURES
    assert (ROOT / "run.ipynb").stat().st_size < 3_000_000


def test_the_committed_outputs_name_no_folder_of_a_machine():
    found = re.findall(r"(?<![\w.])/(?:home|root|work|tmp|usr|var|opt|Users)/\S*", printed(read()))
    assert found == []


def readings(notebook):
    """The paragraphs that say what a picture shows in the committed run."""
    paragraphs = re.split(r"\n\s*\n", "\n\n".join(texts(notebook)))
    return [each for each in paragraphs if each.startswith("**Reading.**")]


def is_printed(number, text):
    """Whether a number (`0.42`, `87%`) stands in a text; percentages also as cells of a table."""
    if number.endswith("%"):
        pattern = rf"{re.escape(number)}|\| {number[:-1]}(\.0)? "
    else:
        pattern = rf"{re.escape(number)}\d?\b"
    return re.search(rf"(?<![\d.])(?:{pattern})", text) is not None


def test_the_numbers_of_the_readings_are_printed_in_the_outputs():
    notebook = read()
    found = readings(notebook)
    assert len(found) >= PICTURES
    text = printed(notebook)
    for paragraph in found:
        assert "in this run" in paragraph.lower() or "these rows" in paragraph, paragraph
        numbers = re.findall(r"\d+(?:\.\d+)?%|\d+\.\d+", paragraph)
        unknown = [number for number in numbers if not is_printed(number, text)]
        assert unknown == [], paragraph


# ---- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("piece", BY_HAND)
def test_what_is_built_by_hand_is_compared_with_the_scripts(piece):
    found = [source for source in code_cells(read()) if re.search(BY_HAND[piece], source)]
    assert len(found) == 1


def test_cells_are_short():
    for source in code_cells(read()):
        lines = [line for line in source.splitlines() if line.strip()]
        assert len(lines) <= 30, source


def test_the_table_of_contents_names_every_section():
    notebook = read()
    headings = re.findall(r"^## (\d+\..*)$", "\n".join(texts(notebook)), re.MULTILINE)
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \|(.*)\|(.*)\|$", texts(notebook)[0], re.MULTILINE)
    assert [title for title, *_ in rows] == headings
    for title, anchor, reading, exercise in rows:
        assert anchor == title.replace(" ", "-")
        assert " min" in reading + exercise


@pytest.mark.parametrize("number", EXERCISES)
def test_an_exercise_has_a_stub_a_check_a_hint_and_a_folded_solution(number):
    notebook = read()
    [text] = [text for text in texts(notebook) if f"### Exercise {number}:" in text]
    task = text[text.index(f"### Exercise {number}:") :].partition("### Exercise")[2]
    assert re.search(rf"^ {number}: .+ \((★|★★|★★★)☆*, \d+ minutes\)$", task, re.MULTILINE)
    check = EXERCISES[number][0]
    sources = code_cells(notebook)
    [place] = [i for i, source in enumerate(sources) if source.startswith(f"def {check}(")]
    stub = re.search(r"\n\w+\((my_\w+)\)$", sources[place])[1]
    assert sources[place - 1].startswith(f"def {stub}(")
    assert sources[place - 1].endswith("    ...")
    if number in FOLDED_IN_TEXT:
        assert folded_solution(notebook, number)
        return
    assert "*If you get stuck:*" in task
    assert "usual mistake" in task
    [cell] = [
        cell for cell in notebook.cells if cell.source.startswith(f"# @title Solution {number}")
    ]
    assert cell.metadata["jupyter"]["source_hidden"]
    assert cell.metadata["cellView"] == "form"


def test_a_guess_comes_before_each_result_and_its_answer_is_folded():
    sections = re.split(r"^## ", "\n".join(texts(read())), flags=re.MULTILINE)
    guessed = [section for section in sections if "**Guess first.**" in section]
    assert len(guessed) >= 7
    for section in guessed:
        after = section[section.index("**Guess first.**") :]
        assert "<details><summary>Answer</summary>" in after


def test_a_badge_is_there_as_soon_as_the_project_has_an_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("Repository", "")
    badges = re.findall(r"https://colab\.research\.google\.com/github/([^)\s]+)", texts(read())[0])
    path = address.removeprefix("https://github.com/").removesuffix(".git")
    assert [badge.partition("/blob/")[0] for badge in badges] == ([path] if address else [])
