"""Flags and --config: the same names and types, flags win, every mistake is one sentence and exit status 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

import pytest
import yaml
from botocore.exceptions import NoCredentialsError
from conftest import GUEST
from ray.exceptions import RayTaskError

from segray.command_line import BAD_INPUT, DONE, FAILED, TOO_MANY_FAILED, parse, run_job
from segray.datasets import open_dataset
from segray.errors import SegrayError
from segray.settings import EvaluateSettings, ExportSettings, SegmentSettings, TrainSettings
from segray.storage import publish
from segray.store_errors import StoreError
from segray.uris import join

SEGMENT = ["--model", "/m", "--archive", "s3://b/a/", "--output", "out"]
TRAIN = ["--data", "/d", "--output", "/o"]
EXPORT = ["--masks", "/m", "--output", "/o"]
CONFIG = "memory://settings/config.yaml"


def config(text: str) -> list[str]:
    publish(CONFIG, text.encode())
    return ["--config", CONFIG]


def ends(outcome: int | BaseException) -> Callable[[TrainSettings], int]:
    """The main function of a job, which returns an exit status or raises an error."""

    def main(settings: TrainSettings) -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return main


def test_flags_defaults_and_absolute_paths():
    settings = parse(SegmentSettings, [*SEGMENT, "--window", "512", "--bands", "3, 0,1", "--shard_mpx", "1e-3"])
    assert (settings.window, settings.bands, settings.shard_mpx) == (512, (3, 0, 1), 0.001)
    assert (settings.blend, settings.precision, settings.overwrite) == ("crop", None, False)
    assert (settings.model, settings.archive, settings.output) == ("/m", "s3://b/a", os.path.abspath("out"))
    assert parse(SegmentSettings, [*SEGMENT, "--overwrite"]).overwrite
    assert not parse(SegmentSettings, [*SEGMENT, "--overwrite", "--no-overwrite"]).overwrite


def test_weights_that_are_gone_are_named_as_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for there in (False, True):
        for name in ("b.pth", "a/model"):
            if there:
                publish(str(tmp_path / name), b"weights")
            assert parse(TrainSettings, [*TRAIN, "--weights", name]).weights == str(tmp_path / name)
    for name in ("ResNet18_Weights.DEFAULT", "ResNet18_QuantizedWeights.DEFAULT", "imagenet"):
        assert parse(TrainSettings, [*TRAIN, "--weights", name]).weights == name
    publish(str(tmp_path / "imagenet" / "train" / "a.jpg"), b"image")
    assert parse(TrainSettings, [*TRAIN, "--weights", "imagenet"]).weights == "imagenet"


@pytest.mark.parametrize(
    ("text", "formats"),
    [("parquet", ["parquet"]), ("png", ["png"]), ("parquet,png", ["png", "parquet"]), (" png, png ", ["png"])],
)
def test_parquet_is_written_last_since_it_is_the_commit(text, formats):
    assert list(parse(SegmentSettings, [*SEGMENT, "--format", text]).formats) == formats


@pytest.mark.parametrize(("text", "expected"), [("2", (2, 2)), ("1:8", (1, 8)), (None, None)])
def test_actors(text, expected):
    assert parse(SegmentSettings, [*SEGMENT, *(["--actors", text] if text else [])]).actor_range == expected


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--window", "0"], "--window must be positive, not 0"),
        (["--window", "-3"], "--window must be positive"),
        (["--window", "32768"], "--window is at most 32767 pixels, the side of the largest mask, not 32768"),
        (["--window", "big"], "--window: invalid int value: 'big'"),
        (["--window", "1.5"], "invalid int value"),
        (["--shard_mpx", "nan"], "--shard_mpx must be positive"),
        (["--shard_mpx", "1e-7"], "--shard_mpx is 1e-6 (a pixel) to 1e6, not 1e-07"),
        (["--shard_mpx", "inf"], "--shard_mpx must be positive"),
        (["--scale", "0"], "--scale must be positive"),
        (["--tile", "0"], "--tile must be positive"),
        (["--tile", "99999"], "--tile is at most 32767 pixels, not 99999"),
        (["--zoom", "-1"], "--zoom must not be negative, but is -1"),
        (["--batch_size", "0"], "--batch_size must be positive"),
        (["--blend", "max"], "--blend: invalid choice: 'max'"),
        (["--precision", "fp16"], "--precision: invalid choice"),
        (["--format", "tiff"], "--format is parquet, png or parquet,png, not tiff"),
        (["--format", ","], "--format is parquet"),
        (["--actors", "0"], "--actors is MIN or MIN:MAX"),
        (["--actors", "3:2"], "MIN above its MAX"),
        (["--actors", "2:"], "--actors is MIN or MIN:MAX"),
        (["--max_failed", "1.1"], "--max_failed is a share of 0 to 1"),
        (["--max_failed", "nan"], "--max_failed is a share"),
        (["--bands", "0,x"], "numbers or names, not both as in 0,x"),
        (["--bands", ""], "should be integers or names, as in 0,1,2 or red,green"),
        (["--bands=-1,2"], "should be integers"),
        (["--win", "5"], "unrecognized arguments: --win"),
        (["--window"], "--window: expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
        (["--window=--"], "--window"),
        (["--bands", "-1,2"], "--bands: expected one argument (one that begins with - as in --bands=-1); --help"),
        (["--overwrite=true"], "takes no value, but has 'true'"),
        (["--column", ""], "--column has no value; give one, or leave it out"),
        (["--config="], "--config has no value"),
        (["--output", "https://host/x"], "--output https://host/x cannot be written: the web is only read"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, sentence):
    with pytest.raises(ValueError) as caught:
        parse(SegmentSettings, [*SEGMENT, *flags])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--data and --output must be given; --help lists all settings"),
        (["--data", "d"], "--output must be given"),
        (["--data", "", "--output", ""], "--data and --output must name a file or a folder, not be empty"),
        (
            ["--data", "s3://", "--output", "memory:///"],
            "--data and --output must name a file or a folder, not be empty",
        ),
        ([*TRAIN, "--epochs", "0"], "--epochs must be positive"),
        ([*TRAIN, "--weights", ""], "--weights has no value"),
        ([*TRAIN, "--mlflow="], "--mlflow has no value"),
        ([*TRAIN, "--balance", "1.5"], "--balance is 0 to 1, not 1.5"),
        ([*TRAIN, "--lr", "-1"], "--lr must be positive"),
        (
            [*TRAIN, "--batch_size", "6", "--num_workers", "1:7"],
            "--num_workers 1:7 is more than the 6 crops of --batch_size",
        ),
        ([*TRAIN, "--num_workers", "1:2", "--validators", "1"], "give one number of workers"),
        ([*TRAIN, "--validators", "-1"], "--validators must not be negative, but is -1"),
        ([*TRAIN, "--num_workers", "0"], "--num_workers is MIN or MIN:MAX, as in 2 or 1:8, not 0"),
        ([*TRAIN, "--num_workers", "3:2"], "--num_workers 3:2 has a MIN above its MAX"),
        ([*TRAIN, "--keep", "0"], "--keep must be positive"),
        ([*TRAIN, "--save_minutes", "0"], "--save_minutes must be positive"),
        (
            [*TRAIN, "--mlflow", "http://me:secret@host"],
            "--mlflow holds a password; give it in MLFLOW_TRACKING_PASSWORD",
        ),
        ([*TRAIN, "--augment", "wild"], "invalid choice: 'wild'"),
        ([*TRAIN, "--loss", "mse"], "--loss is one of cross_entropy, focal, ohem, dice, lovasz, or a sum"),
        ([*TRAIN, "--loss", "dice", "--class_weights", "inverse_log"], "has no effect on --loss dice"),
        ([*TRAIN, "--optimizer", "lion"], "invalid choice: 'lion'"),
        ([*TRAIN, "--optimizer", "adam", "--weight_decay", "0.1"], "--weight_decay 0.1 has no effect on adam"),
        ([*TRAIN, "--momentum", "0.8"], "--momentum 0.8 has no effect on adamw; leave it out, or use sgd"),
        ([*TRAIN, "--optimizer", "adam", "--momentum", "0"], "--momentum 0 has no effect on adam; leave it out"),
        ([*TRAIN, "--schedule", "step"], "invalid choice: 'step'"),
        ([*TRAIN, "--warm_up", "1.5"], "--warm_up is 0 to 1, not 1.5"),
        ([*TRAIN, "--momentum", "1"], "--momentum is at least 0 and below 1, not 1.0"),
        ([*TRAIN, "--ema", "-0.1"], "--ema is at least 0 and below 1, not -0.1"),
        ([*TRAIN, "--photometric", "nan"], "--photometric is 0 to 1, not nan"),
        ([*TRAIN, "--seed", "9223372036854775808"], "--seed must be below 2\\*\\*63, but is 9223372036854775808"),
        ([*TRAIN, "--clip", "-1"], "--clip must not be negative, but is -1.0"),
        ([*TRAIN, "--aux_weight", "inf"], "--aux_weight must not be negative, but is inf"),
        ([*TRAIN, "--accumulate", "0"], "--accumulate must be positive"),
        ([*TRAIN, "--batch_size", "8", "--num_workers", "2", "--accumulate", "5"], "--accumulate 5 is more than"),
        ([*TRAIN, "--scale_range", "2"], "--scale_range is MIN:MAX, two positive numbers as in 0.5:2, not 2"),
        ([*TRAIN, "--scale_range", "2:1"], "not 2:1"),
        ([*TRAIN, "--scale_range", "0:1"], "not 0:1"),
        (
            [*TRAIN, "--scale_range", "0.0001:1"],
            "--crop 256 at the MIN of --scale_range 0.0001:1 shows more than 32767",
        ),
        ([*TRAIN, "--crop", "9" * 400], "shows more than 32767 pixels a side, .*; lower --crop, or raise MIN"),
    ],
)
def test_wrong_training_flags(flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(TrainSettings, flags)


def test_evaluation_settings():
    flags = ["--model", "m", "--data", "d", "--output", "o"]
    settings = parse(EvaluateSettings, flags)
    assert (settings.split, settings.boundary, settings.calibrate) == ("test", 0.02, False)
    assert parse(EvaluateSettings, [*flags, "--calibrate", "--boundary", "0.005"]).calibrate
    for share in ("0", "1", "-0.1", "nan"):
        with pytest.raises(ValueError, match="--boundary is a share of the diagonal, above 0 and below 1, not"):
            parse(EvaluateSettings, [*flags, "--boundary", share])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"lr": 1e-3, "weight_decay": 0.01, "warm_up": 0.05, "photometric": 0.3, "scales": (0.5, 2.0)}),
        (["--optimizer", "sgd", "--schedule", "one_cycle"], {"lr": 0.02, "weight_decay": 1e-4, "warm_up": 0.3}),
        (["--optimizer", "sgd", "--lr", "0.1", "--weight_decay", "0"], {"lr": 0.1, "weight_decay": 0.0}),
        (["--optimizer", "sgd"], {"momentum": 0.9}),
        (["--optimizer", "sgd", "--momentum", "0"], {"momentum": 0.0}),
        (["--augment", "none"], {"photometric": 0.0, "scales": (1.0, 1.0)}),
        (
            ["--augment", "none", "--photometric", "0.1", "--scale_range", ".8:1.25"],
            {"photometric": 0.1, "scales": (0.8, 1.25)},
        ),
        (["--loss", "dice+2*focal"], {"loss_terms": ((1.0, "dice"), (2.0, "focal"))}),
    ],
)
def test_training_defaults_follow_from_other_settings(flags, expected):
    settings = parse(TrainSettings, [*TRAIN, *flags])
    assert {name: getattr(settings, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--masks and --output must be given"),
        (
            [*EXPORT, "--format", "shapefile"],
            "--format is a list of cog, png, polygons, pmtiles, confidence, not shapefile",
        ),
        ([*EXPORT, "--format", ","], "--format is a list of cog"),
        ([*EXPORT, "--min_area", "-1"], "--min_area must be positive, not -1.0"),
        ([*EXPORT, "--simplify", "nan"], "--simplify must be positive, not nan"),
        ([*EXPORT, "--min_area", "5"], "--min_area has no effect on --format cog; leave it out, or add polygons"),
        ([*EXPORT, "--format", "png", "--simplify", "1"], "--simplify has no effect on --format png"),
        ([*EXPORT, "--format", "polygons", "--max_zoom", "9"], "--max_zoom has no effect .* or add pmtiles"),
        ([*EXPORT, "--max_zoom", "23"], "--max_zoom is 0 to 22, not 23"),
        ([*EXPORT, "--max_failed", "2"], "--max_failed is a share of 0 to 1, not 2.0"),
    ],
)
def test_wrong_export_flags(flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(ExportSettings, flags)


def test_export_formats_are_a_set_and_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse(ExportSettings, ["--masks", "m", "--output", "s3://b/o/", "--format", "png, cog,png"])
    assert settings.formats == ("cog", "png")
    assert (settings.masks, settings.output) == (str(tmp_path / "m"), "s3://b/o")


def test_config_gives_settings_and_flags_win():
    text = """
model: /m            # a comment
archive: s3://b/a
output: /from/config
window: 256
shard_mpx: 1e-3
scale: 1
max_failed: 0
bands: [2, 1, 0]
actors: 1:8
batch_size: 4
overwrite: yes
precision: null
tile: ~
"""
    settings = parse(SegmentSettings, [*config(text), "--output", "/flag", "--window", "128"])
    assert (settings.output, settings.window, settings.model) == ("/flag", 128, "/m")
    assert (settings.shard_mpx, settings.scale, settings.max_failed) == (0.001, 1.0, 0.0)
    assert (type(settings.scale), type(settings.batch_size)) == (float, int)
    assert (settings.bands, settings.actors, settings.overwrite) == ((2, 1, 0), "1:8", True)
    assert (settings.precision, settings.tile) == (None, None)
    assert not parse(SegmentSettings, [*config(text), "--no-overwrite"]).overwrite


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("actors: 2", "actors", "2"), ("actors: '1:2'", "actors", "1:2"), ("actors: 1:2", "actors", "1:2"),
        ("bands: 0,1,2", "bands", (0, 1, 2)), ("bands: 3", "bands", (3,)), ("bands: null", "bands", None),
        ("bands:\n  - 4\n  - 5", "bands", (4, 5)), ("scale: 1.5e-5", "scale", 1.5e-5), ("scale: .5", "scale", 0.5),
        ("output: /2024-01-01", "output", "/2024-01-01"), ("model: 2024-01-01", "model", os.path.abspath("2024-01-01")),
        ("overwrite: True", "overwrite", True), ("overwrite: off", "overwrite", False), ("tile: 064", "tile", 64),
    ],
)  # fmt: skip
def test_types_in_config_are_those_of_the_flags(line, name, value):
    given = {SEGMENT[i]: SEGMENT[i + 1] for i in range(0, 6, 2) if SEGMENT[i] != f"--{name}"}
    flags = [text for pair in given.items() for text in pair]
    assert getattr(parse(SegmentSettings, [*flags, *config(line)]), name) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("windw: 5", "holds the unknown setting windw"),
        ("1: 5\nwindw: 5", "holds the unknown setting 1"),
        ("- window", "should hold settings as NAME: VALUE lines"),
        ("just text", "should hold settings as NAME: VALUE lines"),
        ("window: [", "is not YAML"),
        ("window: 5\nwindow: 6", "is not YAML: it sets window twice"),
        ("[" * 2000, "is not YAML"),
        ("window: !!python/object/apply:os.system ['x']", "of type int"),
        ("window: big", "sets window to 'big', which should be of type int"),
        ("window: 1.5", "of type int"),
        ("window: null", "of type int"),
        ("scale: [1]", "of type float"),
        ("overwrite: perhaps", "of type bool"),
        ("model: {a: 1}", "of type str"),
        ("bands: [0, x]", "--bands are numbers or names, not both as in 0,x"),
        ("bands: [0, -1]", "should be a list, as in [0, 1, 2]"),
        ("bands: [[0], 1]", "should be a list"),
        ("bands: {a: 1}", "should be a list"),
        ("blend: max", "should be one of taper, crop"),
        ("window: 0", "--window must be positive"),
    ],
)
def test_wrong_configs_are_one_sentence_that_names_the_file(text, sentence):
    with pytest.raises(ValueError) as caught:
        parse(SegmentSettings, [*SEGMENT, *config(text)])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sentence.startswith("--") or CONFIG in str(caught.value)


def test_missing_and_empty_configs():
    with pytest.raises(SegrayError, match="none.yaml does not exist"):
        parse(SegmentSettings, [*SEGMENT, "--config", "memory://none.yaml"])
    assert parse(SegmentSettings, [*SEGMENT, *config("# nothing yet\n")]) == parse(SegmentSettings, SEGMENT)


@pytest.mark.parametrize(
    ("settings_class", "flags"),
    [
        (SegmentSettings, [*SEGMENT, "--actors", "1:8", "--bands", "0,1,2", "--scale", "1e-9", "--overwrite"]),
        (SegmentSettings, SEGMENT),
        (TrainSettings, [*TRAIN, "--network", "unet?width=32", "--lr", "1e-3", "--weights", "null.pth"]),
        (
            TrainSettings,
            [*TRAIN, "--optimizer", "sgd", "--scale_range", "1:2", "--loss", "dice+.5*focal", "--clip", "0"],
        ),
    ],
)
def test_printed_settings_are_a_config(capsys, settings_class, flags):
    with pytest.raises(SystemExit) as ended:
        parse(settings_class, [*flags, "--print_config"])
    assert ended.value.code == DONE
    printed = capsys.readouterr().out
    assert set(yaml.safe_load(printed)) >= {"output", "precision"}
    assert parse(settings_class, config(printed)) == parse(settings_class, flags)


@pytest.mark.parametrize(
    ("flags", "outcome", "status"),
    [
        (TRAIN, DONE, DONE),
        (TRAIN, TOO_MANY_FAILED, TOO_MANY_FAILED),
        (TRAIN, SegrayError("the archive is empty"), BAD_INPUT),
        ([], DONE, BAD_INPUT),
        ([*TRAIN, "--config", "memory://none.yaml"], DONE, BAD_INPUT),
        ([*TRAIN, "--config", "nosuch://none.yaml"], DONE, BAD_INPUT),
    ],
)
def test_exit_statuses(monkeypatch, capsys, flags, outcome, status):
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", *flags])
    assert run_job(ends(outcome), TrainSettings) == status
    said = capsys.readouterr().err
    assert said.count("\n") == (status == BAD_INPUT)
    assert said == "" or said.startswith("jobs/train.py: ")


def test_an_output_that_cannot_be_written_is_bad_input(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    output = str(tmp_path / "file" / "out")
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--data", "labelled", "--output", output])
    assert (
        run_job(lambda settings: publish(join(settings.output, "state", "run.json"), b""), TrainSettings) == BAD_INPUT
    )
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"--output {output} cannot be written: " in said
    with pytest.raises(FileNotFoundError):
        run_job(ends(FileNotFoundError(2, "No such file or directory", "/elsewhere")), TrainSettings)


def test_a_store_that_refuses_the_output_is_bad_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--data", "labelled", "--output", "s3://bucket/x"])
    assert run_job(ends(PermissionError("Access Denied")), TrainSettings) == BAD_INPUT  # s3fs names no object
    assert "--output s3://bucket/x cannot be used: Access Denied; correct it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            StoreError("the store refuses the credentials: no such key"),
            "train.py: the store refuses the credentials: no",
        ),
        (NoCredentialsError(), "the object store does not answer: Unable to locate credentials; once that is fixed"),
    ],
)
@pytest.mark.parametrize("in_task", [False, True])
def test_a_store_that_fails_fails_the_job_with_one_sentence(monkeypatch, capsys, error, said, in_task):
    error = RayTaskError("read", "Traceback", error).as_instanceof_cause() if in_task else error
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", *TRAIN])
    assert run_job(ends(error), TrainSettings) == FAILED
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert said in told


@pytest.mark.parametrize("output", ["/out", "s3://segray-test/open/out"])
def test_an_input_that_may_not_be_looked_at_is_bad_input(become, monkeypatch, capsys, output):
    become("AWS_ACCESS_KEY_ID", GUEST)
    private = "s3://segray-test/private"
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--data", private, "--output", output])
    assert run_job(lambda settings: open_dataset(settings.data), TrainSettings) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"jobs/train.py: {private}") and "cannot be looked at: " in said


@pytest.mark.parametrize("flag", ["weights", "config"])
@pytest.mark.parametrize("access", [GUEST, "AKIANOBODY"])
def test_a_file_that_may_not_be_read_is_one_sentence(become, monkeypatch, capsys, flag, access):
    become("AWS_ACCESS_KEY_ID", access)
    monkeypatch.setattr("segray.storage.time.sleep", lambda seconds: None)
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", *TRAIN, f"--{flag}", "s3://segray-test/private.yaml"])
    wrong_key = flag == "config" and access != GUEST  # of weights only the existence is checked this early
    assert run_job(lambda settings: DONE, TrainSettings) == (FAILED if wrong_key else BAD_INPUT)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "s3://segray-test/private.yaml cannot be " in said


@pytest.mark.parametrize("flag", ["weights", "config"])
def test_no_credentials_for_a_file_of_the_command_line_are_one_sentence(no_credentials, monkeypatch, capsys, flag):
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", *TRAIN, f"--{flag}", "s3://bucket/x.yaml"])
    assert run_job(lambda settings: DONE, TrainSettings) == FAILED
    assert "train.py: the object store does not answer: Unable to locate credentials" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "refused"), [("out", True), ("./a/out", True), ("/out", False), ("s3://b/out", False)]
)
def test_results_do_not_go_into_the_copy_of_a_working_folder(tmp_path, monkeypatch, output, refused):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    argv = ["--data", "labelled", "--output", output]
    if not refused:
        assert parse(TrainSettings, argv).output == output
        return
    with pytest.raises(ValueError, match=f"^--output {output} would lie in Ray's copy .* give an absolute path, or a"):
        parse(TrainSettings, argv)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(0)])
def test_an_interrupted_job_has_failed_and_says_that_it_continues(monkeypatch, capsys, error):
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", *TRAIN])
    assert run_job(ends(error), TrainSettings) == FAILED
    said = "jobs/train.py: interrupted; run the same command again: what was written is kept\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_fails_the_job_with_one_sentence(monkeypatch, capsys, code):
    full = ends(OSError(code, os.strerror(code)))
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", *TRAIN])
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            run_job(full, TrainSettings)
        return
    assert run_job(full, TrainSettings) == FAILED
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--output /o is full: [Errno 28] No space left on device; make room, and run the same command" in said


@pytest.mark.parametrize(
    ("output", "named", "full"),
    [
        ("/o", "/tmp/segray-1/copy", "the disk of /tmp/segray-1/copy"),
        ("/o", "/o/masks/x.tmp", "--output /o"),
        ("/o", "/other", "the disk of /other"),
        ("s3://b/o", "/tmp/segray-1/copy", "the disk of /tmp/segray-1/copy"),
        ("s3://b/o", None, "a disk of a worker's machine"),
    ],
)
def test_a_full_disk_is_named(monkeypatch, capsys, output, named, full):
    error = OSError(errno.ENOSPC, "No space left on device", named)
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--data", "/d", "--output", output])
    assert run_job(ends(error), TrainSettings) == FAILED
    assert capsys.readouterr().err.startswith(f"jobs/train.py: {full} is full: [Errno 28] No space left on device")


def test_a_fault_of_the_program_is_no_bad_input(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", *TRAIN])
    with pytest.raises(ZeroDivisionError):
        run_job(ends(ZeroDivisionError()), TrainSettings)
