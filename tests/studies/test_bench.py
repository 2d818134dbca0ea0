"""The benchmark: what it measures, what it writes, and what it says when something cannot be run."""

import json
import sys
from statistics import median

import pytest
import torch
from command_line import run
from tiny_models import tiny_model

import mesa_lm
from mesa_lm.errors import MesaError, MethodError, UsageError
from mesa_lm.harness.sources import package_commit
from mesa_lm.reporting.lm_eval_files import ResultsFile
from mesa_lm.reporting.results import read
from mesa_lm.studies.bench import benchmark
from mesa_lm.studies.bench.bench_results import trial_metrics
from mesa_lm.studies.bench.floor import Attention, measure_floor
from mesa_lm.studies.bench.memory_limit import is_out_of_memory, limited_memory, weight_bytes
from mesa_lm.studies.bench.peak_memory import cpu_memory, kv_bytes
from mesa_lm.studies.bench.shapes import SHAPES, load_config, load_model
from mesa_lm.studies.bench.timing import method_named, random_prompts, run_once
from mesa_lm.studies.bench.trials import Memory, Plan, Trial

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is measured by what Linux says")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    tiny_model().save_pretrained(path)
    return path


def bench(*arguments):
    return run("bench", *arguments)


def test_the_command_measures_and_writes_results_that_plot_reads(folder, tmp_path):
    out = tmp_path / "out"
    chosen = ("--method", "stock", "--method", "mesa,chunk_width=29", "--batches", "1,2", "--lengths", "31,97")
    result = bench("--model", folder, *chosen, "--no-memory", "--steps", 2, "--repeats", 3, "--out", out, "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert len(printed["cells"]) == 2 * 2 * 2 and len(printed["files"]) == 2 * 2
    results = read([out])
    times = results.select("prefill_s", "bench_float32_b2").table
    assert list(times[["method", "length"]].itertuples(index=False, name=None)) == [
        ("mesa (chunk_width=29)", 31),
        ("mesa (chunk_width=29)", 97),
        ("stock", 31),
        ("stock", 97),
    ]
    commits = {file.commit for file in results.files.values()}
    assert commits == {ResultsFile(out, {"config": {"mesa_lm": package_commit()._asdict()}}).commit}
    assert set(times.samples) == {3} and set(times.higher_is_better) == {False} and set(times.train_length) == {41}
    speeds = results.select("prefill_tokens_per_s", "bench_float32_b2").table
    assert list(speeds.value) == pytest.approx(list(2 * times.length / times.value))
    assert bench("--model", folder, "--lengths", "31", "--no-memory", "--out", out).stdout.count("x floor") == 1


def trial(prefill, decode, *, oom=False, memory=None, floors=(), name=None):
    method = None if name is None else mesa_lm.available_methods()[name]()
    return Trial(
        method=method,
        options={},
        dtype="float32",
        batch=3,
        length=7,
        prefill_s=prefill,
        decode_s=decode,
        oom=oom,
        memory=memory,
        floors=list(floors),
    )


def test_ratios_are_medians_of_the_ratios_within_a_round():
    stock, mesa = trial([1.0, 2.0, 40.0], [0.5, 0.5, 0.5]), trial([0.5, 1.0, 80.0], [0.1, 0.2, 0.3], name="mesa")
    found = trial_metrics(mesa, [stock, mesa])
    assert found["prefill_ratio"] == 0.5
    assert found["prefill_s"] == 1.0 and found["prefill_s_min"] == 0.5 and found["prefill_s_max"] == 80.0
    assert found["prefill_tokens_per_s"] == 21 and found["decode_tokens_per_s"] == 15
    assert found["decode_ratio"] == pytest.approx(median([0.2, 0.4, 0.6]))
    assert "prefill_ratio" not in trial_metrics(mesa, [mesa])


def test_the_parts_of_memory_add_up():
    found = trial_metrics(trial([1.0], [1.0], memory=Memory(weights=11, kv=7, rest=5)), [])
    assert (found["peak_bytes"], found["weight_bytes"], found["kv_bytes"], found["rest_bytes"]) == (23, 11, 7, 5)


def test_out_of_memory_is_a_result():
    assert trial_metrics(trial([], [], oom=True), []) == {"oom": 1.0}


@linux
def test_memory_is_told_apart(folder):
    plan = Plan(
        model=str(folder),
        shape="",
        methods=[],
        lengths=[],
        dtypes=[],
        batches=[],
        repeats=1,
        warm_up=0,
        steps=1,
        device="cpu",
        threads=1,
        calls=False,
        memory=True,
        limit_bytes=None,
    )
    found = cpu_memory(plan, Trial(method=mesa_lm.Mesa(), options={}, dtype="float32", batch=3, length=1009))
    model = tiny_model()
    # 2 layers of keys and values, 2 heads of 6 float32; the prompts and two decoded tokens.
    assert found.kv == 2 * 2 * 2 * 6 * 4 * 3 * (1009 + 2)
    held = [*model.parameters(), *model.buffers()]
    assert found.weights == sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert 0 < found.rest < 2**30


@linux
def test_a_limit_makes_a_length_run_out_of_memory(tmp_path):
    result = bench(
        *("--shape", "tiny-6x512", "--method", "stock", "--lengths", "4k", "--repeats", 1, "--warm-up", 0),
        *("--memory-limit", 0.15, "--threads", 1, "--out", tmp_path, "--json"),
    )
    assert [(row["method"], row["oom"]) for row in json.loads(result.stdout)["cells"]] == [("stock", 1.0)]
    assert read([tmp_path]).table[["metric", "value"]].to_numpy().tolist() == [["oom", 1.0]]


@linux
def test_weights_that_do_not_fit_are_named_before_they_are_loaded_and_the_other_shapes_run(
    tmp_path, monkeypatch, caplog
):
    loaded = []
    load = benchmark.load_model
    monkeypatch.setattr(benchmark, "load_model", lambda *given: loaded.append(given[1]) or load(*given))
    result = bench(
        *("--shape", "llama-2-7b,tiny-6x512", "--method", "stock", "--lengths", "31", "--memory-limit", 0.2),
        *("--dtype", "bfloat16", "--repeats", 1, "--warm-up", 0, "--steps", 1, "--out", tmp_path, "--json"),
    )
    assert result.exit_code == 0 and loaded == ["tiny-6x512"]
    cells = json.loads(result.stdout)["cells"]
    assert [(cell["model"], cell["dtype"], cell["oom"]) for cell in cells] == [
        ("llama-2-7b", "bfloat16", 1.0),
        ("tiny-6x512", "bfloat16", 0.0),
    ]
    # 6,738,415,616 weights of two bytes
    needed = "llama-2-7b in bfloat16: the weights need 12.6 GiB, 0.2 GiB are free"
    assert f"{needed} on cpu: out of memory" in caplog.text
    assert needed in result.stderr and result.stderr.splitlines()[0].endswith("starting")


def test_what_weights_need_is_what_they_take():
    plan = Plan(
        **dict.fromkeys(("methods", "lengths", "dtypes", "batches"), ()),
        **{"repeats": 1, "warm_up": 0, "steps": 1, "threads": 1, "device": "cpu", "memory": False, "calls": False},
        **{"model": None, "shape": "tiny-6x512", "limit_bytes": None},
    )
    model = load_model(None, "tiny-6x512", "bfloat16", "cpu")
    assert weight_bytes(plan, "bfloat16") == 2 * sum(weight.numel() for weight in model.parameters())


@linux
def test_memory_above_a_limit_cannot_be_taken():
    with pytest.raises(RuntimeError) as raised, limited_memory(2**26):
        torch.empty(2**28)
    assert is_out_of_memory(raised.value)
    assert torch.empty(2**20).numel() == 2**20


def test_a_folder_of_results_is_never_hidden(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    arguments = ("--lengths", "31", "--no-memory", "--method", "stock", "--repeats", 1, "--steps", 1, "--out", "out")
    bench("--model", f"./{folder.name}", *arguments)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    assert set(read([tmp_path / "out"]).table.model) == {"model"}


@pytest.mark.parametrize("name", ["stock", "origin", "mesa"])
def test_bytes_of_the_cache_count_tokens_only(name, llama):
    taken = run_once(llama, method_named(name, {}), random_prompts(llama, 3, 97), steps=5)
    assert kv_bytes(taken.cache) == 2 * 2 * 2 * 6 * 4 * 3 * (97 + 5)
    assert taken.prefill_s > 0 and taken.decode_s > 0


def test_the_floor_has_the_work_of_the_layout(llama):
    method = mesa_lm.Mesa(first_chunk=3, chunk_width=31, last_chunk=13).bind(llama.config)
    floor = measure_floor(llama, method, batch=2, length=97)
    weights = sum(layer.weight.numel() for layer in llama.model.modules() if isinstance(layer, torch.nn.Linear))
    assert floor.linear_macs == 2 * 97 * weights
    layout = method.layout(97)
    queries = [(index, layout) for index in range(97)]
    assert floor.attention_macs == 2 * 2 * 2 * 4 * 6 * sum(seen(*query) for query in queries)
    assert floor.seconds > 0
    assert measure_floor(llama, method, batch=2, length=41) is None


def seen(index, layout):
    """Keys that a query of a prompt sees under Mesa."""
    if index < layout.first or index >= layout.last_start:
        return index + 1
    into = (index - layout.first) % layout.width if index < layout.first + layout.width * layout.middle else None
    into = index - (layout.last_start - layout.narrow) if into is None else into
    return layout.first + into + 1


def test_causal_calls_need_half_of_a_square():
    assert Attention(3, 5, 5, True).pairs == 3 * 15
    assert Attention(3, 5, 7, False).pairs == 3 * 35


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_shapes_are_those_of_the_published_models(shape):
    config = load_config(None, shape)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in type(tiny_model())(config).parameters())
    assert count == {"tiny-6x512": 27_662_848, "llama-2-7b": 6_738_415_616, "llama-3-8b": 8_030_261_248}[shape]


def test_random_weights_are_the_same_every_time():
    one, other = (load_model(None, "tiny-6x512", "bfloat16", "cpu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "messa"), "did you mean 'mesa'"),
        (("--method", "mesa,chunk_widht=3"), "did you mean 'chunk_width'"),
        (("--shape", "llama-9"), "allowed: llama-2-7b, llama-3-8b, tiny-6x512"),
        (("--lengths", "4x"), "--lengths must be positive integers.*'4x'"),
        (("--lengths", "0"), "--lengths must be positive integers.*'0'"),
        (("--batches", ","), "--batches needs at least one value"),
        (("--lengths", "4k,4k"), "--lengths has '4k' 2 times"),
        (("--method", "mesa", "--method", "mesa"), "--method has 'mesa' 2 times"),
        (("--shape", "a,b"), "unknown shape 'a'"),
        (("--memory-limit", "-1"), "--memory-limit must be a number of GiB above 0, found -1.0"),
        (("--memory-limit", "nan"), "--memory-limit must be a number of GiB above 0, found nan"),
        (("--model", "x", "--shape", "llama-2-7b"), "give --model or --shape, found both: x and llama-2-7b"),
        (("--dtypes", "float8"), "unknown dtype 'float8'"),
        (("--device", "cuda:99"), "device 'cuda:99' cannot be used"),
        (("--model", "./missing"), "no model at './missing'"),
    ],
)
def test_wrong_input_is_refused(arguments, message, tmp_path):
    with pytest.raises(MesaError, match=message):
        bench(*arguments, "--out", tmp_path)


def test_stock_has_no_parameters():
    assert method_named("stock", {}) is None
    with pytest.raises(MethodError, match="no parameters, found window"):
        method_named("stock", {"window": 3})


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be created"):
        bench("--out", tmp_path / "file" / "below")
