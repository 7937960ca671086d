"""One self-contained page that tells what a run, or several side by side, came to."""

from barlow.report.command import report
from barlow.report.gallery import Gallery, make_gallery, read_gallery
from barlow.report.page import write_report

__all__ = ["Gallery", "make_gallery", "read_gallery", "report", "write_report"]
