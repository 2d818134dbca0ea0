"""The command `mesa-lm paper`: tables hold what results say, beside what the paper says; figures are drawn."""

import json

import pytest
from command_line import in_process, run
from made_results import report, save

from mesa_lm.lengths import length_name

CHAT = "meta-llama/Llama-2-7b-chat-hf"


def saved(folder, name, method, content, **parameters):
    """Save results of a method of LLaMA2-7B-Chat."""
    arguments = {"pretrained": CHAT, "method": method, **parameters}
    described = {"method": method, "parameters": parameters, "train_length": 4096}
    content["config"] = {"model": "mesa-hf", "model_args": arguments, "mesa_lm": described}
    return save(folder / f"results_{name}.json", content)


def govreport(values):
    """Results of GovReport: metrics by length."""
    lengths = sorted(values)
    content = report(dict.fromkeys(lengths, 0.0), task="govreport_long", metric="rouge1")
    for length in lengths:
        name = length_name("govreport_long", length)
        content["results"][name] |= {f"{metric},none": value for metric, value in values[length].items()}
        content["higher_is_better"][name] = dict.fromkeys(values[length], True)
    return content


@pytest.fixture
def summaries(tmp_path):
    folder = tmp_path / "summaries"
    for method, first in (("origin", 0.25), ("mesa", 0.5)):
        scores = {"rouge1": first, "rouge2": 0.125, "rougeL": 0.1, "bleu": 7.0}
        saved(folder, method, method, govreport({3072: scores, 11264: scores | {"rouge1": first / 2}}))
    return folder


def rows(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_table_1_has_our_numbers_and_says_where_the_papers_are_missing(summaries):
    done = run("paper", "table-1", summaries)
    assert done.exit_code == 0, done.output
    assert rows(done.stdout) == [
        ["model", "method", "", "3k", "11k"],
        ["---"] * 5,
        [CHAT, "origin", "ours", "0.250 / 0.125 / 0.100", "0.125 / 0.125 / 0.100"],
        ["", "", "paper", "not available", "not available"],
        [CHAT, "mesa", "ours", "0.500 / 0.125 / 0.100", "0.250 / 0.125 / 0.100"],
        ["", "", "paper", "not available", "not available"],
    ]
    assert [row[3:] for row in rows(run("paper", "table-2", summaries).stdout)[2::2]] == [["7.000", "7.000"]] * 2


def test_numbers_of_the_paper_stand_beside_ours(summaries, tmp_path):
    theirs = tmp_path / "theirs.csv"
    theirs.write_text(
        "exhibit,model,method,task,length,metric,value,source\n"
        "table-1,,mesa,govreport_long,11264,rouge1,0.4,page 9\n"
        f"table-2,{CHAT},mesa,govreport_long,3072,bleu,5,page 17\n"
        "table-2,other,origin,govreport_long,3072,bleu,6,page 17\n"
    )
    done = run("paper", "table-1", summaries, "--beside", theirs)
    assert rows(done.stdout)[5] == ["", "", "paper", "not available", "0.400 / ? / ?"]
    found = rows(run("paper", "table-2", summaries, "--beside", theirs).stdout)
    assert found[3][3:] == ["not available"] * 2 and found[5][3:] == ["5.000", "not available"]
    theirs.write_text("exhibit,value\n")
    wrong = in_process("paper", "table-1", summaries, "--beside", theirs)
    assert wrong.returncode == 2 and "the columns must be exhibit, model, method" in wrong.stderr


def test_table_3_tells_lengths_apart_by_words(tmp_path):
    content = {"results": {"longbench_qasper": {"score,none": 0.5}}, "configs": {"longbench_qasper": {}}}
    path = saved(tmp_path, "x", "mesa", content)
    samples = path.with_name("samples_longbench_qasper_x.jsonl")
    scored = [(3999, 0.9), (4000, 0.2), (7999, 0.4), (8000, 1.0)]
    samples.write_text("".join(json.dumps({"doc": {"length": n}, "score": s}) + "\n" for n, s in scored))
    found = rows(run("paper", "table-3", tmp_path).stdout)
    assert found[0][3:] == ["qasper 4-8k", "qasper 8k+"] and found[2][3:] == ["0.300", "1.000"]
    samples.unlink()
    assert "table 3 needs the samples" in in_process("paper", "table-3", tmp_path).stderr


def test_figure_10_is_the_mean_over_rulers_tasks_beside_what_the_paper_says(tmp_path):
    for method, scores in {"mesa": {163840: 1.0, 196608: 0.9}, "origin": {163840: 0.0, 196608: 0.1}}.items():
        results = {
            f"niah_single_{i}": {"4096,none": -1, **{f"{n},none": value - i / 100 for n, value in scores.items()}}
            for i in (1, 2, 3)
        }
        saved(tmp_path, method, method, {"results": results, "configs": {name: {} for name in results}})
    found = rows(run("paper", "figure-10", tmp_path).stdout)
    assert found[0][3:] == ["160k", "192k"]
    assert [row[2:] for row in found[2:]] == [
        ["ours", "-0.020", "0.080"],
        ["paper", "0.000", "not available"],
        ["ours", "0.980", "0.880"],
        ["paper", "not available", "1.000"],
    ]


def test_figures_have_a_panel_per_model_and_say_what_is_missing(tmp_path):
    for model in ("org/one", "org/two"):
        for method, right in (("origin", 0.1), ("mesa", 0.9)):
            content = report({1024: 1.0, 2048: 1.0, 4096: right}, task="passkey_long")
            described = {"method": method, "train_length": 2048}
            content["config"] = {
                "model": "mesa-hf",
                "model_args": {"pretrained": model, "method": method},
                "mesa_lm": described,
            }
            save(tmp_path / "in" / f"results_{model[4:]}_{method}.json", content)
    out = tmp_path / "figure.svg"
    done = run("paper", "figure-3", tmp_path / "in", "--out", out)
    assert (done.exit_code, done.stdout.strip()) == (0, str(out)), done.output
    drawn = out.read_text()
    assert drawn.count('id="axes_') == 2
    numbers = tmp_path / "theirs.csv"
    numbers.write_text(
        "exhibit,model,method,task,length,metric,value,source\nfigure-3,,mesa,passkey_long,4096,acc,0.95,read off\n"
    )
    assert run("paper", "figure-3", tmp_path / "in", "--out", out, "--beside", numbers).exit_code == 0
    assert out.read_text() != drawn
    assert in_process("paper", "figure-4", tmp_path / "in").stderr.startswith(
        "error: figure-4 needs nll of task long_ppl"
    )
    assert in_process("paper", "table-1", tmp_path / "in", "--out", out).returncode == 2
