"""Train a semantic-segmentation network on labelled map imagery, then segment an archive of it, on Ray."""

__version__ = "0.1.0"
