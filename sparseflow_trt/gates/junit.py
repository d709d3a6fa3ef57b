"""A gate's checks, or why there are none, as JUnit XML, which CI systems show as tests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from sparseflow_trt.gates.regressions import Gate

_SUITE = "sparseflow-trt check"
# What XML 1.0 has no characters for, not even escaped (https://www.w3.org/TR/xml/#charsets).
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_from_gate(gate: Gate) -> str:
    """One suite with a test case for each check; its class names the kind."""
    failures = sum(not check.passed for check in gate.checks)
    root, suite = _suite(gate.artifact, len(gate.checks), failures, 0)
    for check in gate.checks:
        name = f"{check.name} ({check.of})" if check.of else check.name
        about = {"classname": f"sparseflow-trt.{check.kind}", "name": _printable(name), "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", about)
        said = _printable(f"was {check.was}, now {check.now}; {check.limit}")
        if check.passed:
            ElementTree.SubElement(case, "system-out").text = said
        else:
            failure = ElementTree.SubElement(case, "failure", {"message": _printable(check.reason)})
            failure.text = said
    return _text(root)


def junit_from_error(artifact: str, message: str, hint: str) -> str:
    """One suite with one test case, which ended with an error: nothing could be held to the baseline."""
    root, suite = _suite(artifact, 1, 0, 1)
    about = {"classname": "sparseflow-trt.check", "name": "held to the baseline", "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", about)
    ElementTree.SubElement(case, "error", {"message": _printable(message)}).text = _printable(hint)
    return _text(root)


def _suite(
    artifact: str, tests: int, failures: int, errors: int
) -> tuple[ElementTree.Element, ElementTree.Element]:
    counts = {"tests": str(tests), "failures": str(failures), "errors": str(errors), "skipped": "0"}
    root = ElementTree.Element("testsuites", {"name": _SUITE, **counts})
    return root, ElementTree.SubElement(root, "testsuite", {"name": _printable(artifact), **counts})


def _text(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _printable(text: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
