"""Twenty tabs on one server: none sees what another selected, and the server grows little; many runs cost no second.

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
MOST_SECONDS = 1.0
"""Of a page."""
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


def test_a_page_of_a_workspace_with_many_runs_costs_no_second(tmp_path: Path) -> None:
    home = tmp_path / "runs"
    lab = lab_run(home, *save_pair(tmp_path))
    for number in range(RUNS - 1):
        shutil.copytree(lab, home / f"copy-{number:03}")
    with served(home) as (address, process), Session(address) as tab:
        server = psutil.Process(process)
        for page in PAGES:  # what the first look at every run costs is the server's start, not a switch
            tab.page(page, "run=lab")
        time.sleep(2)
        costs = {page: _cost(server, tab, page) for page in (*PAGES, *PAGES)}
    assert max(costs.values()) < MOST_SECONDS, costs


def _cost(server: psutil.Process, tab: Session, page: str) -> float:
    before = sum(server.cpu_times()[:2])
    tab.page(page, "run=lab")
    return sum(server.cpu_times()[:2]) - before
