"""Results as one HTML file that anyone can open: what to do, then the figures."""

from tracin.report.write import WrittenReport as WrittenReport
from tracin.report.write import write_report as write_report
