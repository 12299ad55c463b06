"""A checked contract for machines: JUnit XML and a badge."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from tunescope.contracts.checking import Checked
from tunescope.contracts.decisions import FAILS, HOLDS, UNDECIDED, Finding, Verdict
from workbench.cards import visible

_COLOURS: dict[Verdict, str] = {HOLDS: "#2e7d32", FAILS: "#b3261e", UNDECIDED: "#8a6d00"}
_SIGN = 6.6
"""Width of a sign of the badge's text."""


def sentence(finding: Finding, confidence: float) -> str:
    """One line: verdict, estimate, interval, n and what would decide."""
    verdict: str = finding.verdict
    if finding.estimate == finding.estimate:
        interval = f"[{finding.low:.3g}, {finding.high:.3g}]"
        verdict += f": {finding.estimate:.3g}, one-sided {confidence:.0%} bounds {interval}, n = {finding.n}"
    if finding.needed is not None:
        verdict += f"; about {finding.needed} would decide"
    return visible(f"{verdict}. {finding.detail}" if finding.detail else verdict)


def junit(checked: Checked) -> str:
    """JUnit XML: a failed claim is a failure, an undecided one an error."""
    verdicts = [finding.verdict for _, finding in checked.findings]
    suite = Xml.Element(
        "testsuite", name="contract", tests=str(len(verdicts)), failures=str(verdicts.count(FAILS)),
        errors=str(verdicts.count(UNDECIDED)),
    )  # fmt: skip
    for claim, finding in checked.findings:
        case = Xml.SubElement(suite, "testcase", classname=claim.kind, name=visible(claim.title))
        message = sentence(finding, checked.contract.confidence)
        if finding.verdict == HOLDS:
            Xml.SubElement(case, "system-out").text = message
        else:
            Xml.SubElement(
                case, "failure" if finding.verdict == FAILS else "error", message=message, type=finding.verdict
            )
    return Xml.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def badge(checked: Checked) -> str:
    """An SVG of two fields: *contract*, and the verdict with the number of claims that hold."""
    held = sum(finding.verdict == HOLDS for _, finding in checked.findings)
    right = f"{checked.verdict} {held}/{len(checked.findings)}"
    left_width, right_width = (round(_SIGN * len(text) + 14) for text in ("contract", right))
    width = str(left_width + right_width)
    svg = Xml.Element("svg", xmlns="http://www.w3.org/2000/svg", width=width, height="20", role="img")
    Xml.SubElement(svg, "title").text = f"contract: {right}"
    Xml.SubElement(svg, "rect", width=width, height="20", rx="3", fill="#444")
    Xml.SubElement(
        svg, "rect", x=str(left_width), width=str(right_width), height="20", rx="3", fill=_COLOURS[checked.verdict]
    )
    for x, text in ((left_width / 2, "contract"), (left_width + right_width / 2, right)):
        Xml.SubElement(
            svg, "text", {"x": f"{x:g}", "y": "14", "fill": "#fff", "text-anchor": "middle", "font-size": "11",
                          "font-family": "Verdana,sans-serif"},
        ).text = text  # fmt: skip
    return Xml.tostring(svg, encoding="unicode") + "\n"
