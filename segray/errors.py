"""The errors of segray: each is one sentence that names the file, the value and the fix."""


def one_line(error: BaseException) -> str:
    """The text of an error on one line, cut off at 200 characters."""
    return " ".join(str(error).split())[:200]


class SegrayError(Exception):
    """Bad input that the caller can correct; jobs print its one sentence and end with exit status 2."""


class ImageError(SegrayError):
    """An image cannot be read; in an archive it becomes a `failed` row, in labelled data it ends the job."""


class MismatchError(ImageError):
    """An image does not match the input spec of the model; the sentence names the flag that would allow it."""


class LabelError(SegrayError):
    """A label mask has an id or colour that is not in the legend, or is not the size of its image."""


class ModelError(SegrayError):
    """A model directory is damaged, of a later format version, or not fit for what is asked of it."""


class TornModelError(ModelError):
    """A model directory lacks a file, or its files do not belong together, as a kill between two of them leaves it."""


class OutOfMemoryError(SegrayError):
    """A shard needs more memory than its process or its device has; others may need less."""
