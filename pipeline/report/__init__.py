"""The report of a run: one self-contained HTML page."""

from pipeline.report.heads import check_selection, read_rows
from pipeline.report.page import render_report, report_place, save_report
from pipeline.report.pictures import draw_pictures
from pipeline.report.reproduction import Reproduction, run_again
from pipeline.report.words import about_weights

__all__ = [
    "Reproduction",
    "about_weights",
    "check_selection",
    "draw_pictures",
    "read_rows",
    "render_report",
    "report_place",
    "run_again",
    "save_report",
]
