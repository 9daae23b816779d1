"""The errors of segray: each is one sentence that names the file, the value and the fix."""


class SegrayError(Exception):
    """Bad input that the caller can mend; jobs print its one sentence and end with exit status 2."""


class ImageError(SegrayError):
    """An image cannot be read; in an archive it becomes a `failed` row, in labelled data it ends the job."""


class MismatchError(ImageError):
    """An image does not match the input spec of the model; the sentence names the flag that would allow it."""


class LabelError(SegrayError):
    """A label mask holds an id or a colour that is in no legend, or has another size than its image."""


class ModelError(SegrayError):
    """A model directory is damaged, of a later format version, or does not fit what is asked of it."""


class OutOfMemoryError(SegrayError):
    """A shard takes more memory than its process or its device has; others may take less."""
