"""Reports: self-contained HTML pages with pictures, as bytes, from numbers that others computed.

A page is one file that makes no outside requests and has no script but the viewer of whole scenes (its
Content-Security-Policy forbids all else), so it can be mailed, or opened from disk. Nothing here writes a file or
computes a metric.
"""

from segray.report.overview import Overview
from segray.report.pages import evaluation_page, segmentation_page, training_page
from segray.report.pictures import Picture, for_eyes
from segray.report.sections import stage_shares

__all__ = ["Overview", "Picture", "evaluation_page", "for_eyes", "segmentation_page", "stage_shares", "training_page"]
