"""Command lines: flags and --config become the settings of a job; errors become a sentence and an exit status."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, fields, replace
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from botocore.exceptions import BotoCoreError

from segray.errors import SegrayError
from segray.storage import exists, read_text
from segray.store_errors import FINAL_ERRORS, NO_ROOM, StoreError, describe
from segray.train_settings import IMAGENET
from segray.uris import absolute, local_path

Settings = TypeVar("Settings")
STORE_FAILURES = (StoreError, BotoCoreError)
PATHS = ("data", "archive", "model", "masks", "output")
SUBMITTED = "/runtime_resources/working_dir_files/"  # the folder that `ray job submit --working-dir` starts a job in
DONE, FAILED, BAD_INPUT, TOO_MANY_FAILED = 0, 1, 2, 3  # exit statuses


def parse(settings_class: type[Settings], argv: Sequence[str], *, about: str | None = None) -> Settings:
    """The settings from flags and --config (flags win); ValueError in one sentence. --print_config prints and exits.

    about: what --help says before it lists the flags.
    """
    shown = {"description": about, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = _Parser(allow_abbrev=False, argument_default=argparse.SUPPRESS, **shown)
    parser.add_argument("--config", help="YAML file (any URI) with settings by the names of the flags")
    parser.add_argument("--print_config", action="store_true", help="print the settings as YAML and exit")
    hints = get_type_hints(settings_class)
    for item in fields(settings_class):
        _add_flag(parser, item, hints[item.name])
    given = vars(parser.parse_args(argv))
    # "" comes from a shell variable that is not set; of the text -- the argparse of Python 3.11 makes an empty list
    if lost := [name for name, value in given.items() if value == [] or (value == "" and name not in PATHS)]:
        raise ValueError(f"--{lost[0]} has no value; give one, or leave it out")
    config, printing = given.pop("config", None), given.pop("print_config", False)
    if config:
        given = {**_read_config(config, settings_class, hints), **given}
    required = [item.name for item in fields(settings_class) if item.default is MISSING]
    if missing := [f"--{name}" for name in required if name not in given]:
        raise ValueError(f"{' and '.join(missing)} must be given; --help lists all settings")
    settings = settings_class(**given)
    if printing:
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()}
        sys.stdout.write(yaml.safe_dump(values, sort_keys=False))
        raise SystemExit(DONE)
    given = {name: path for name in PATHS if (path := getattr(settings, name, None)) is not None}
    # "" or s3://, from a shell variable that is not set
    if empty := [f"--{name}" for name, path in given.items() if re.fullmatch(r"([a-z]\w*:/+)?", path)]:
        raise ValueError(f"{' and '.join(empty)} must name a file or a folder, not be empty")
    if re.match("https?://", settings.output):
        raise ValueError(f"--output {settings.output} cannot be written: the web is only read; give a folder or bucket")
    paths = {name: absolute(path) for name, path in given.items()}
    if "output" in required and SUBMITTED in paths["output"]:
        raise ValueError(
            f"--output {settings.output} would lie in Ray's copy of the working folder, which is not kept; give an "
            "absolute path, or a bucket"
        )
    weights = getattr(settings, "weights", None)
    # a file, though it may be gone when a training continues, or else torchvision's name; imagenet may be a folder too
    if weights and weights != IMAGENET and (exists(weights) or "Weights." not in weights):
        paths["weights"] = absolute(weights)
    return replace(settings, **paths)


def run_job(main: Callable[[Settings], int], settings_class: type[Settings]) -> int:
    """The exit status of a job: parse the command line, run, and report bad input in one sentence on stderr.

    main: a function of the job's script, whose docstring --help shows.
    """
    log = logging.getLogger("segray")
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    try:
        return _run(main, settings_class)
    finally:
        log.removeHandler(handler)


def _run(main: Callable[[Settings], int], settings_class: type[Settings]) -> int:
    try:
        settings = parse(settings_class, sys.argv[1:], about=main.__globals__["__doc__"])
    except (ValueError, SegrayError) as error:
        sys.stderr.write(f"{sys.argv[0]}: {error}\n")
        return BAD_INPUT
    except STORE_FAILURES as error:
        sys.stderr.write(f"{sys.argv[0]}: {_failure(error)}\n")
        return FAILED
    try:
        return main(settings)
    except SegrayError as error:
        sys.stderr.write(f"{sys.argv[0]}: {error}\n")
        return BAD_INPUT
    except STORE_FAILURES as error:
        sys.stderr.write(f"{sys.argv[0]}: {_failure(error)}\n")
        return FAILED
    except (KeyboardInterrupt, SystemExit):  # Ray Train makes a SystemExit of Ctrl-C, with the status of success
        sys.stderr.write(f"{sys.argv[0]}: interrupted; run the same command again: what was written is kept\n")
        return FAILED
    except FINAL_ERRORS as error:
        if (sentence := _refusal(error, settings.output)) is None:
            raise
        sys.stderr.write(f"{sys.argv[0]}: {sentence}\n")
        return BAD_INPUT
    except OSError as error:
        cause = getattr(error, "cause", error)  # of a Ray task
        if cause.errno not in NO_ROOM:
            raise
        advice = "make room, and run the same command again: what was written is kept"
        sys.stderr.write(f"{sys.argv[0]}: {_full(cause, settings.output)} is full: {describe(cause)}; {advice}\n")
        return FAILED


def _failure(error: Exception) -> str:
    """The sentence for a store that fails, whatever it was asked for."""
    said = describe(getattr(error, "cause", error))  # of a Ray task
    said = (said if isinstance(error, StoreError) else f"the object store does not answer: {said}").rstrip(".")
    return f"{said}; once that is fixed, run the same command again: what was written is kept"


def _full(error: OSError, output: str) -> str:
    """Which disk is full: that of a file outside OUTPUT that the error names, that of OUTPUT, or a worker's."""
    path, named = local_path(output), error.filename and str(error.filename)
    if named and not (path and f"{named}/".startswith(f"{path}/")):
        return f"the disk of {named}"
    return f"--output {output}" if path else "a disk of a worker's machine"


def _refusal(error: OSError, output: str) -> str | None:
    """The sentence if OUTPUT cannot be written; None if the error is about another file.

    Object stores name no file in their errors: these are taken to be about OUTPUT, since failing to read is a
    SegrayError.
    """
    error = getattr(error, "cause", error)  # of a Ray task
    path, named = local_path(output), error.filename and str(error.filename)
    if path is None and named is None:
        return f"--output {output} cannot be used: {describe(error)}; correct it, or the rights on it"
    if path and named and (f"{named}/".startswith(f"{path}/") or f"{path}/".startswith(f"{named}/")):
        return f"--output {output} cannot be written: {describe(error)}; give another folder"
    return None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """One sentence, which `run_job` prints; argparse would print the usage too."""
        message = message.replace("ignored explicit argument", "takes no value, but has")
        if match := re.fullmatch("argument (--\\w+): expected one argument", message):
            message += f" (one that begins with - as in {match[1]}=-1)"
        raise ValueError(f"{message}; --help lists all settings")


def _add_flag(parser: argparse.ArgumentParser, item: Field, hint: Any) -> None:
    kind, default = _plain(hint), item.default
    note = "required" if default is MISSING else None if default is None else f"default: {default}"
    text = item.metadata["help"] + (f" ({note})" if note else "")
    text = text.replace("%", "%%")
    if kind is bool:
        parser.add_argument(f"--{item.name}", action=argparse.BooleanOptionalAction, help=text)
        return
    kind = CONVERTERS.get(kind, kind)
    choices = item.metadata["choices"] or None
    parser.add_argument(f"--{item.name}", type=kind, choices=choices, help=text)


def _plain(hint: Any) -> Any:
    """X of X | None."""
    return next(a for a in get_args(hint) if a is not type(None)) if isinstance(hint, types.UnionType) else hint


def _integers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} should be integers, as in 0,1,2")
    return tuple(int(part) for part in parts)


def _bands(text: str) -> tuple[int | str, ...]:
    """Numbers where the text is a number, names elsewhere; ArgumentTypeError on negative or empty ones."""
    parts = [part.strip() for part in text.split(",")]
    if any(re.fullmatch(r"-\d+|", part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} should be integers or names, as in 0,1,2 or red,green")
    return tuple(int(part) if re.fullmatch(r"\d+", part) else part for part in parts)


CONVERTERS: dict[Any, Callable[[str], tuple]] = {tuple[int, ...]: _integers, tuple[int | str, ...]: _bands}


class _Loader(yaml.BaseLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """As YAML has it: a key given twice is an error; PyYAML would take the last one."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"it sets {key.value} twice")
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _read_config(uri: str, settings_class: type, hints: dict[str, Any]) -> dict[str, Any]:
    try:
        # As text, converted like flags: YAML's own types would make 1:8 the number 68 and 1e-3 a text.
        values = yaml.load(read_text(uri), Loader=_Loader) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{uri} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{uri} should hold settings as NAME: VALUE lines")
    if unknown := set(values) - {item.name for item in fields(settings_class)}:
        raise ValueError(f"{uri} holds the unknown setting {sorted(unknown)[0]}; --help lists all settings")
    return {
        item.name: _typed(uri, item, hints[item.name], values[item.name])
        for item in fields(settings_class)
        if item.name in values
    }


def _typed(uri: str, item: Field, hint: Any, value: Any) -> Any:
    kind, choices = _plain(hint), item.metadata["choices"]
    if value in ("", "~", "null") and kind is not hint:
        return None
    try:
        typed = _converted(kind, value)
    except (KeyError, ValueError, TypeError, argparse.ArgumentTypeError):
        wanted = f"of type {kind.__name__}" if kind in (str, int, float, bool) else "a list, as in [0, 1, 2]"
        raise ValueError(f"{uri} sets {item.name} to {value!r}, which should be {wanted}") from None
    if choices and typed not in choices:
        raise ValueError(f"{uri} sets {item.name} to {value!r}, which should be one of {', '.join(choices)}")
    return typed


def _converted(kind: Any, value: Any) -> Any:
    scalar = kind in (str, int, float, bool)
    if isinstance(value, list) and not scalar:
        value = ",".join(value)
    if not isinstance(value, str):
        raise TypeError
    booleans = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    return booleans[value.lower()] if kind is bool else kind(value) if scalar else CONVERTERS[kind](value)
