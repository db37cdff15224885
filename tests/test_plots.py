"""pytest tests/test_plots.py: the figures show the numbers that they are given, and the titles say what holds."""
import numpy as np
import pytest
from samples import row

import plots
import sweep


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def rows(n=(2, 4), sets=(0, 1)):
    """Rows of three methods with everything that the figures need."""
    found = []
    for number in n:
        for place in sets:
            for k, method in enumerate(("base", "sft", "ia2", "ia2-sft")):
                for task in ("d", "o"):
                    found.append(row(method=method, n=number, set=place, eval_dataset=task, lr=1e-3 if k else None, dev_loss=1.0,
                                     accuracy=0.5 + 0.05 * k + 0.01 * place, ece=0.4 - 0.1 * k - 0.01 * place, asim=0.3 + 0.1 * k,
                                     asim_layers=[0.2, 0.4 + 0.1 * k], run=f"{method}{number}{place}",
                                     reliability=[[6, 0.6, 0.5], [4, 0.9, 1.0]],
                                     **({"overlap": {"sft": {"q": [0.5, 0.7]}}, "overlap_chance": {"q": 0.1}} if method == "ia2" else {})))
    return found


def test_reliability_has_a_panel_a_method_and_its_points():
    figure = plots.reliability({"icl": [(8, 0.6, 0.5), (2, 0.9, 1.0)], "sft": [(10, 0.7, 0.7)]})
    assert len(figure.axes) == 2 and "Best calibrated: sft" in texts(figure)
    np.testing.assert_allclose(figure.axes[0].collections[-1].get_offsets(), [[0.6, 0.5], [0.9, 1.0]])
    assert "icl: accuracy 60%, ECE 0.100" in texts(figure)  # 0.8 * 0.1 + 0.2 * 0.1


def test_titles_follow_the_data():
    down = [("ia2", 0.1 * k, 0.9 - 0.1 * k) for k in range(8)]
    assert "better calibrated" in texts(plots.asim_against_ece(down))
    assert "worse calibrated" in texts(plots.asim_against_ece([(m, a, 1 - e) for m, a, e in down]))
    assert "no clear relation" in texts(plots.asim_against_ece([("ia2", a, e) for a, e in ((1, 1), (2, 3), (3, 1), (4, 2))]))
    assert "Inside, ia2 is closest" in texts(plots.asim_by_layer({"sft": [0.1, 0.2], "ia2": [0.5, 0.1]}))
    assert "lowers the loss in 1 of 2 layers" in texts(plots.loss_by_layer([2.0, 1.0], [1.0, 1.5]))
    assert "in layer 2 (mean asim 0.25)" in texts(plots.asim_heat([[0.9, 0.8], [0.2, 0.3]]))
    assert "with 4 examples sft is the most accurate (70%)" in texts(plots.accuracy_against_n({"sft": {4: [0.6, 0.8]}, "ia2": {4: [0.5]}}))
    assert "cost 10 times" in texts(plots.cost({"4 demos": 200, "adapter": 20}))
    assert "ia2, ia2-sft (60%" in texts(plots.overlap({"sft, ia2": {"q": [0.1, 0.1]}, "ia2, ia2-sft": {"q": [0.5, 0.7]}}, {"q": 0.05}))


def test_bins_of_several_sets_are_pooled_by_their_counts():
    found = plots.pooled([row(bins=10, reliability=[[1, 0.55, 1.0], [9, 0.95, 1.0]]), row(bins=10, reliability=[[3, 0.51, 0.0]])])
    assert found[0] == (4, pytest.approx((0.55 + 3 * 0.51) / 4), 0.25) and found[1] == (9, pytest.approx(0.95), 1.0)


def test_a_results_file_becomes_every_figure_none_of_them_empty(tmp_path):
    paths = plots.save_all(rows(), tmp_path / "figures")
    names = {path.stem for path in paths}
    assert {"asim-against-ece", "asim-by-layer-d-n2", "asim-by-layer-d-n4", "overlap-d-n4", "reliability-d-n2-d", "reliability-d-n2-o",
            "accuracy-against-n-d-d", "accuracy-against-n-d-o"} <= names
    for figure in plots.all_figures(rows()).values():
        assert any(axis.has_data() for axis in figure.axes) and all(axis.get_xlabel() for axis in figure.axes)
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000 for path in paths)


def test_the_command_line_saves_them(call, tmp_path, capsys):
    call("--sets", 2, "--eval", "sst2", "poems", "--plots", tmp_path / "run")
    assert len(list((tmp_path / "run").glob("*.png"))) >= 7
    assert sweep.main(["--report", str(tmp_path / "out" / "results.jsonl"), "--plots", str(tmp_path / "report")]) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in (tmp_path / "report").iterdir()}
    call("--dataset", "gsm8k", "--max-tokens", 4, "--methods", "base", "sft", "--plots", tmp_path / "text")
    assert list((tmp_path / "text").glob("accuracy*.png")) and not list((tmp_path / "text").glob("reliability*.png"))
