"""Conformance of a strategy: what a fair comparison needs of it, tried on a small model, on a CPU.

    findings = check("anchored", plugins=("anchored.py",))       # strategy by name, on ttm:tiny
    failed = [finding for finding in findings if finding.verdict == "failed"]

Every rule trains the strategy for a few steps on a synthetic twin, changes one thing, and compares
bits. `UNPROVEN` says what no run of it can show.
"""

from __future__ import annotations

from sffbench.conformance.rules import UNPROVEN, Finding, check

__all__ = ["UNPROVEN", "Finding", "check"]
