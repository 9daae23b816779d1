"""The benchmark job on tiny imagery: the shape of its report, and that its figures fit each other; never a time."""

from __future__ import annotations

import json
import runpy
import sys

import pytest
from running import ROOT, run

from segray.benchmark import WHAT, aligned, lines
from segray.command_line import BAD_INPUT, DONE, parse
from segray.settings import MEASUREMENTS, BenchmarkSettings


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[str, dict]:
    """(what the job printed, benchmark.json) of the stages and the plain loop."""
    output = tmp_path_factory.mktemp("benchmark")
    options = {"size": 700, "network": "encoder_decoder?width=4", "tile": 128, "overlap": 16, "runs": 1}
    status, out, err = run(
        "benchmark", output=output, shard_mpx=0.1, precision="bf16", blend="taper", peer=True, **options
    )
    assert status == DONE, err
    return out, json.loads((output / "benchmark.json").read_text())


def test_what_is_measured_where_and_how(measured):
    out, report = measured
    assert set(report) == {"date", "machine", "settings", "tables"}
    assert report["machine"]["cores"] >= 1 and report["machine"]["cpu"]
    assert set(report["machine"]["versions"]) == {"python", "segray", "torch", "torchvision", "ray"}
    assert report["settings"]["size"] == 700
    assert out.endswith(f"benchmark.json is in {report['settings']['output']}\n")
    assert "\n".join(lines(report)) in out


def test_stages_make_up_the_ideal(measured):
    table = measured[1]["tables"]["stages"]
    rows = {row["stage"]: row for row in table["rows"]}
    assert list(rows) == ["listing", "reading", "decoding", "network", "writing"]
    assert all(row["mpx_per_s"] > 0 and row["cpu_s_per_mpx"] >= 0 for row in rows.values())
    counted = [row for row in rows.values() if row["share"] is not None]
    assert [row["stage"] for row in counted] == ["decoding", "network", "writing"]
    assert table["limit"] == max(counted, key=lambda row: row["share"])["stage"]
    if not measured[1]["machine"]["gpus"]:
        assert sum(row["share"] for row in counted) == pytest.approx(1)
        assert table["ideal_mpx_per_s"] <= min(2**10 / row["cpu_s_per_mpx"] for row in counted)


def test_the_whole_job_is_held_against_the_ideal(measured):
    table = measured[1]["tables"]["stages"]
    assert table["mpx"] == pytest.approx(0.49)
    rates = [row["mpx_per_s"] for row in table["whole_job"]]
    assert rates == sorted(rates, reverse=True)  # a span that counts more is slower
    for row in table["whole_job"]:
        assert row["ratio"] == pytest.approx(row["mpx_per_s"] / table["ideal_mpx_per_s"])
    job = table["jobs"][0]
    assert job["call_seconds"] > job["seconds"] > job["start_up_seconds"] > 0
    assert {"reading", "segmenting", "writing"} <= job["stage_seconds"].keys()
    tiles = table["tiles"]
    assert tiles["needed"] == 7**2  # 128 + 6 * 112 >= 700
    assert tiles["computed_twice"] > 0
    assert tiles["share"] == pytest.approx(tiles["computed_twice"] / tiles["needed"])


def test_the_plain_loop_gives_the_same_mask(measured):
    loop = measured[1]["tables"]["stages"]["plain_loop"]
    assert loop["agreement"].keys() == {"bf16", "fp32"}
    assert loop["agreement"]["fp32"] > 0.9999
    assert 0.5 < loop["agreement"]["bf16"] <= 1
    assert all(times > 0 for times in loop["times_as_fast"].values())
    assert loop["mpx_per_s"] > 0 and loop["peak_memory"] > 0


def test_everything_that_can_be_asked_for_is_measured():
    assert tuple(WHAT) == MEASUREMENTS


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--what", "speed"], "--what is a list of stages, memory"),
        (["--what", ","], "--what is a list of"),
        (["--what", "lattice"], "give --data and --model"),
        (["--what", "loading"], "give --data"),
        (["--what", "loading", "--data", "/d", "--bands", "red,nir"], "takes --bands as numbers, not red,nir"),
        (["--runs", "0"], "--runs must be positive"),
        (["--size", "-1"], "--size must be positive"),
        (["--model", "m", "--network", "nano"], "--network .* no effect with --model; leave one out"),
        (["--archive", "a", "--size", "5"], "--size .* no effect with --archive; leave one out"),
        (["--image", "tiles", "--size", "5"], "--size .* no effect with --image tiles"),
        (["--what", "memory", "--peer"], "--peer has no effect on --what memory; leave it out, or add stages"),
        (["--image", "png"], "--image: invalid choice"),
    ],
)
def test_bad_settings(flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(BenchmarkSettings, flags)


def test_settings_are_those_of_the_job(tmp_path):
    settings = parse(BenchmarkSettings, ["--output", str(tmp_path), "--what", "growth, memory,growth", "--tile", "64"])
    assert settings.measurements == ("growth", "memory")
    assert (settings.archive, settings.model, settings.output) == (None, None, str(tmp_path))
    job = settings.job(archive="/a", model="/m", output="/o")
    assert (job.archive, job.model, job.output, job.tile, job.overlap) == ("/a", "/m", "/o", 64, None)


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    flags = [f"--output={tmp_path}", "--what=growth", f"--archive={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "benchmark.py"), run_name="__main__")
    assert ended.value.code == BAD_INPUT
    err = capsys.readouterr().err
    assert "leave --archive out" in err and len(err.splitlines()) == 1


def test_rows_are_aligned():
    rows = [{"name": "a", "value": 1234.5, "share": None}, {"name": "bcd", "value": 0.00123, "share": 0.5}]
    assert aligned(rows) == ["name    value  share", "a       1,234      -", "bcd   0.00123    0.5"]
    assert aligned([]) == []
