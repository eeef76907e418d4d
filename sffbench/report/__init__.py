"""Tables and single runs from records on disk: pure functions, no torch.

    from sffbench import report
    records = report.load("results/local")
    print(report.render(records))                  # Markdown; also "csv", "json"
    print(report.show(records, "3f2a"))            # one run by a prefix of its key
    print(report.compare(records, "sff", "full"))  # the effect of one strategy against another

records.py reads; identity.py says what is comparable; build.py makes tables; stats.py, effects.py,
overall.py and comparison.py compute; markdown.py, exports.py and notes.py print.
"""

from sffbench.report.comparison_view import render as compare
from sffbench.report.records import load
from sffbench.report.show import find, show
from sffbench.report.table import FORMATS, render

__all__ = ["FORMATS", "compare", "find", "load", "render", "show"]
