"""What a training leaves in OUTPUT to continue from: state/run.json, which says what is trained, and its states.

The state of an epoch is published after metrics.jsonl: its existence is the commit. Only the model, if that epoch is
the best, comes later: the state holds its weights, so whoever continues from it can publish a model that is due.
Long epochs also have states within: epoch-0002-step-000480 is the one after two epochs and 480 steps of the third.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import asdict

import torch

from segray.errors import SegrayError, TornModelError
from segray.listing import files_if_any
from segray.model_dir import GARBLED, WEIGHTS, read_description
from segray.places import TRAINING, lies_in
from segray.settings import TrainSettings
from segray.storage import exists, publish, read_bytes, read_text, remove
from segray.uris import filesystem, join

# settings that change no step of the training
NOT_COMPARED = {
    "output", "device", "num_workers", "validators", "keep", "save_minutes", "max_failures", "mlflow", "wandb",
    "overwrite",
}  # fmt: skip
OWN = ("state", "model", "tensorboard", "metrics.jsonl", "report.html")
STATE_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{6,}))?\.pt")
OWN_FILES = re.compile(  # what lies below one of OWN, "" for OWN's files
    rf"|/(run|tracking)\.json|/{STATE_NAME.pattern}|/model\.json|/{re.escape(WEIGHTS)}|/events\.out\.tfevents.*"
)
BROKEN = (FileNotFoundError, *GARBLED)

Position = tuple[int, int]  # epochs done, and steps of the next one


def compared(settings: TrainSettings) -> dict:
    """The settings that decide what is trained, as JSON values."""
    values = {name: value for name, value in asdict(settings).items() if name not in NOT_COMPARED}
    return json.loads(json.dumps(values))


def read_run(settings: TrainSettings, data: str) -> dict | None:
    """The run.json of OUTPUT; None when there is none or it is to be overwritten.

    SegrayError naming what differs when OUTPUT holds another training, or what --overwrite must not discard. data: the
    fingerprint of the data.
    """
    source = join(settings.output, TRAINING)
    if settings.overwrite:
        _check_overwrite(settings)
    if settings.overwrite or not exists(source):
        return None
    try:
        run = json.loads(read_text(source))
        then = {**run["settings"], "contents of the data": run["data"]}
    except (ValueError, KeyError, TypeError) as error:
        raise SegrayError(f"{source} is damaged; start afresh with --overwrite, or choose another --output") from error
    now = {**compared(settings), "contents of the data": data}
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if changed:
        raise SegrayError(
            f"{settings.output} holds another training: {'; '.join(_difference(name, then, now) for name in changed)}; "
            "start afresh with --overwrite, or choose another --output"
        )
    return run


def _check_overwrite(settings: TrainSettings) -> None:
    """SegrayError when what a training discards holds the weights to start from, or files that no training wrote."""
    for name in OWN:
        place = join(settings.output, name)
        if settings.weights and lies_in(settings.weights, place):
            raise SegrayError(f"--overwrite would discard --weights {settings.weights}; give another --output")
        for file in files_if_any(place):
            if not OWN_FILES.fullmatch(file.uri.partition(filesystem(place)[1])[2]):
                raise SegrayError(f"{file.uri} is of no training, so nothing is overwritten; give another --output")


def write_run(settings: TrainSettings, data: str, inspection: dict) -> None:
    """Begin a training: write run.json, with --overwrite after discarding what an earlier one left in OUTPUT.

    SegrayError when OUTPUT holds results of a training but not its run.json.
    """
    # a training killed while it wrote run.json leaves its folder, with a temporary file at most, which is hidden
    left = [name for name in OWN if any(True for _ in files_if_any(join(settings.output, name)))]
    if left and not settings.overwrite:
        raise SegrayError(
            f"{join(settings.output, left[0])} exists, but not the state of its training; "
            "choose another --output, or discard it with --overwrite"
        )
    for name in left:
        remove(join(settings.output, name))
    run = {"settings": compared(settings), "data": data, "inspection": inspection}
    publish(join(settings.output, TRAINING), json.dumps(run, indent=1).encode())


def finished(settings: TrainSettings) -> bool:
    """Whether the last epoch is committed, and its model there if it is the best."""
    output = settings.output
    if (settings.epochs, 0) not in _positions(output):
        return False
    history = read_history(output)
    return bool(history) and not model_due(output, history)


def improved(history: Sequence[dict]) -> bool:
    """Whether the last epoch is the best by validation mIoU; without a labelled pixel each one is."""
    miou = history[-1]["val_miou"]
    return miou is None or all(row["val_miou"] is None or miou > row["val_miou"] for row in history[:-1])


def model_due(output: str, history: Sequence[dict]) -> bool:
    """Whether the last epoch is the best, but the model of OUTPUT is another's, torn or not there."""
    if not improved(history):
        return False
    try:
        return read_description(join(output, "model")).training.get("epoch") != history[-1]["epoch"]
    except TornModelError:
        return True


def save_state(output: str, state: dict, *, keep: int) -> None:
    """Commit the state of (state["epoch"], state["step"]) in one atomic put, then keep only the last `keep` up to it.

    States beyond it are removed: they are damaged, or the training would have continued from them.
    """
    here, buffer = (state["epoch"], state["step"]), io.BytesIO()
    torch.save(state, buffer)
    publish(_state_uri(output, here), buffer.getvalue())
    positions = _positions(output)
    kept = [position for position in positions if position <= here][-keep:]
    for position in positions:
        if position not in kept:
            remove(_state_uri(output, position))


def newest_state(output: str) -> Position:
    """The position of the last state that can be read; (0, 0) when there is none."""
    return next((position for position in reversed(_positions(output)) if _loads(output, position)), (0, 0))


def load_state(output: str, epoch: int, step: int = 0) -> dict:
    """The state at a position, its tensors on the CPU. Nothing in the file is executed."""
    data = read_bytes(_state_uri(output, (epoch, step)))
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def write_history(output: str, history: Sequence[dict]) -> None:
    """Write metrics.jsonl, one line per epoch; the whole file in one atomic step."""
    publish(join(output, "metrics.jsonl"), "".join(json.dumps(row) + "\n" for row in history).encode())


def read_history(output: str) -> list[dict]:
    """The rows of metrics.jsonl; none before the first epoch is done. SegrayError when it is damaged."""
    source = join(output, "metrics.jsonl")
    if not exists(source):
        return []
    try:
        return [json.loads(line) for line in read_text(source).splitlines()]
    except ValueError as error:
        raise SegrayError(f"{source} is damaged: {error}; remove it, and run the same command again") from error


def _state_uri(output: str, position: Position) -> str:
    epoch, step = position
    return join(output, "state", f"epoch-{epoch:04d}-step-{step:06d}.pt" if step else f"epoch-{epoch:04d}.pt")


def _positions(output: str) -> list[Position]:
    """The positions of the states, the newest last."""
    names = (posixpath.basename(file.uri) for file in files_if_any(join(output, "state")))
    matches = filter(None, map(STATE_NAME.fullmatch, names))
    return sorted((int(match[1]), int(match[2] or 0)) for match in matches)


def _loads(output: str, position: Position) -> bool:
    try:
        state = load_state(output, *position)
        return (state["epoch"], state["step"]) == position
    except BROKEN:
        return False


def _difference(name: str, then: dict, now: dict) -> str:
    if name == "contents of the data":
        return "the data have changed (names, sizes or times of their files, or the legend)"
    return f"--{name} was {then.get(name)} and is {now.get(name)}"
