"""What the model zoo says at the end of a run, and what `--accept` does with its results."""

from .page import accepted
from .run import Result
from .summary import text


def pytest_terminal_summary(terminalreporter, config):
    """The summary by family; with --accept the table is rewritten."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    found = [
        Result.from_json(value)
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == "zoo"
    ]
    if not found:
        return
    if config.getoption("--accept"):
        accepted(found)
    terminalreporter.section("model zoo")
    terminalreporter.write_line(text(found))
