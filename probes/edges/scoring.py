"""Scores of all edges of one model, prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from probes.edges.gradients import mean_gradients
from probes.edges.graph import Graph
from probes.edges.sending import EdgeRun, sent
from probes.patches.metrics import Metric
from probes.patches.task import Task
from workbench.progress import Progress
from workbench.prompts.encode import batches
from workbench.typing import Float, Tensor


@dataclass(frozen=True)
class EdgeScores:
    """``by_prompt`` [prompt, sender, receiver]: the metric that each edge carries; ``control`` its mean [sender,
    receiver] with what senders wrote on other prompts; ``gap`` [prompt]: the metric on the prompt less its contrast."""

    by_prompt: Float[np.ndarray, "prompt sender receiver"]
    control: Float[np.ndarray, "sender receiver"]
    gap: Float[np.ndarray, " prompt"]
    passes: int
    backward: int

    @property
    def mean(self) -> Float[np.ndarray, "sender receiver"]:
        """Over prompts."""
        return self.by_prompt.mean(0)


def metric_of(task: Task, members: list[int]) -> Metric:
    """Answer minus distractor of some prompts."""
    assert task.answers is not None and task.distractors is not None
    return Metric("logit_diff", task.answers[members], task.distractors[members])


def edge_scores(graph: Graph, task: Task, steps: int, batch_size: int, bar: Progress) -> EdgeScores:
    """(clean - corrupted) . mean gradient at the receiver, summed over tokens."""
    n, shape = len(task.target_ids), graph.possible.shape
    scores, control, gap = np.zeros((n, *shape), np.float32), np.zeros(shape), np.zeros(n)
    passes = backward = 0
    for members in batches(task.lengths, batch_size):
        corrupted, clean = task.batch(members)
        metric = metric_of(task, members)
        (there, clean_logits), (other, corrupted_logits) = sent(graph, clean), sent(graph, corrupted)
        gap[members] = (metric(clean_logits[:, None]) - metric(corrupted_logits[:, None]))[:, 0].double().cpu().numpy()
        gradients = mean_gradients(graph, clean, (other[0], there[0]), metric, steps)
        difference = there - other
        products = torch.einsum("sbpm,rbpm->bsr", difference.float(), gradients.float()).cpu().numpy()
        scores[members] = products * graph.possible
        dealt = torch.roll(difference, 1, dims=1)
        control += torch.einsum("sbpm,rbpm->sr", dealt.float(), gradients.float()).double().cpu().numpy()
        passes, backward = passes + 2 + steps, backward + steps
        bar.advance(len(members))
    return EdgeScores(scores, control * graph.possible / n, gap, passes, backward)


def exact_scores(graph: Graph, task: Task, batch_size: int, bar: Progress) -> EdgeScores:
    """What the metric loses when one edge alone carries what its sender writes on the contrast, edge by edge.

    ``control``: what senders write on the contrast of another prompt.
    """
    n, shape = len(task.target_ids), graph.possible.shape
    scores, control, gap, passes = np.zeros((n, *shape), np.float32), np.zeros(shape), np.zeros(n), 0
    for members in batches(task.lengths, batch_size):
        corrupted, clean = task.batch(members)
        metric = metric_of(task, members)
        other, corrupted_logits = sent(graph, corrupted)
        run, dealt = EdgeRun(graph, other), EdgeRun(graph, torch.roll(other, 1, dims=1))
        whole = _read(metric, run(clean, None))
        gap[members] = whole - _read(metric, corrupted_logits)
        for sender, receiver in np.argwhere(graph.possible):
            alone = np.zeros(shape, dtype=bool)
            alone[sender, receiver] = True
            scores[members, sender, receiver] = whole - _read(metric, run(clean, alone))
            control[sender, receiver] += (whole - _read(metric, dealt(clean, alone))).sum()
        passes += 2 + 2 * int(graph.possible.sum())
        bar.advance(len(members))
    return EdgeScores(scores, control / n, gap, passes, 0)


def _read(metric: Metric, logits: Float[Tensor, "prompt vocab"]) -> Float[np.ndarray, " prompt"]:
    values: np.ndarray = metric(logits[:, None])[:, 0].double().cpu().numpy()
    return values
