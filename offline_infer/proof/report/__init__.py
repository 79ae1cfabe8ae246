"""A report for people: one self-contained HTML file made from the JSON that the other commands write."""

from __future__ import annotations

from offline_infer.proof.report.page import ReportResult, write_report

__all__ = ["ReportResult", "write_report"]
