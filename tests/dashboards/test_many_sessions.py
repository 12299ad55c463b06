"""Twenty tabs on one server: none sees what another selected, and the server grows little; many runs make no page dear.

Time is the server's own processor time, which others at work on the machine do not lengthen.
"""

from __future__ import annotations

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.dashboards.sample_runs import lab_run, save_pair
from tests.dashboards.served import served
from tests.dashboards.socket_session import Session

pytestmark = pytest.mark.slow
TABS, RUNS = 20, 200
MOST_GROWTH = 50e6
"""Bytes of a tab."""
MOST_TIMES, SLACK = 3.0, 0.3
"""What a page may cost among many runs: so many times what it costs beside one, and so many seconds."""
PAGES = ("heads", "tokens", "skills", "runs", "look")


def test_twenty_tabs_do_not_mix_and_grow_little(tmp_path: Path) -> None:
    lab_run(tmp_path / "runs", *save_pair(tmp_path))
    with served(tmp_path / "runs") as (address, process):
        server = psutil.Process(process)
        with Session(address) as first:
            first.page("heads", "run=lab")
        before = server.memory_info().rss
        tabs = [Session(address).__enter__() for _ in range(TABS)]
        try:
            with ThreadPoolExecutor(4) as pool:
                own = [f"L{number % 3}H{number % 4}" for number in range(TABS)]
                for _ in range(2):
                    assert list(pool.map(_heads, tabs, own)) == [{f"Head {name}"} for name in own]
            grown = (server.memory_info().rss - before) / TABS
        finally:
            for tab in tabs:
                tab.__exit__(None, None, None)
    assert grown < MOST_GROWTH, f"{grown / 1e6:.0f} MB"


def _heads(tab: Session, own: str) -> set[str]:
    """The headings of heads on the page that a tab opens."""
    return set(re.findall(r"Head L\d+H\d+", tab.page("heads", f"run=lab&layer={own[1]}&head={own[3]}")))


def test_a_page_costs_no_more_for_many_runs_in_the_workspace(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    lab = lab_run(home, *save_pair(tmp_path))
    with served(home) as (address, process), Session(address) as tab:
        server = psutil.Process(process)
        alone = _costs(server, tab)
        for number in range(RUNS - 1):
            shutil.copytree(lab, home / f"copy-{number:03}")
        among = _costs(server, tab)
    assert all(among[page] <= MOST_TIMES * alone[page] + SLACK for page in PAGES), (alone, among)


def _costs(server: psutil.Process, tab: Session) -> dict[str, float]:
    """Processor seconds of every page, once it has been seen: the first look at every run is no switch of pages."""
    for page in PAGES:
        tab.page(page, "run=lab")
    time.sleep(2)
    return {page: min(_cost(server, tab, page) for _ in range(2)) for page in PAGES}


def _cost(server: psutil.Process, tab: Session, page: str) -> float:
    before = sum(server.cpu_times()[:2])
    tab.page(page, "run=lab")
    return sum(server.cpu_times()[:2]) - before
