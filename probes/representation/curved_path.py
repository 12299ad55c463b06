"""curved_path: steering that follows the state against one straight vector: what each gains and what it loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import nn

from probes.call_settings import of_recording
from probes.representation.cells import PromptRows, cells_of, n_readings
from probes.representation.classifier import FEWEST, classes_of
from probes.resampling import units_of
from probes.results import ProbeResult
from probes.scored import bracketed, paired_p, scored, with_q
from workbench.argument_checks import check_recording
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.method_options import As
from workbench.methods import Needs, Recorded, method
from workbench.progress import Progress, Silent, tracked
from workbench.recording.recording import Recording
from workbench.typing import Bool, Float, Int, Tensor

HIDDEN, AXES, TRAINED = 32, 32, 300
THIN = 0.05
"""Axes along which states spread less than this share of the widest are left out: a path would leave the states."""
PATHS = ("curved", "straight", "random")


@dataclass(frozen=True, kw_only=True)
class CurvedPath(ProbeResult):
    """One row per cell, in the tuned model.

    ``score``: how much more of what should stay (``keep``) the curved path leaves than the straight one where both have
    gone as far as the attribute asks: share of moved states whose identity the judge still tells, curved - straight,
    with its interval over prompts; ``control``: the same of random straight paths of the curved one's lengths; ``q`` of
    the score; ``kept_curved``, ``kept_straight``; ``gain_curved``, ``gain_straight``, ``gain_random``: the attribute's
    probability by the judge, after - before; ``length_curved``, ``length_straight``: way gone, in the distance of the
    class means; ``bend``: 1 - the mean cosine of a path's first and last step (0: the field is one vector).
    ``field``: cell, path, step, attribute (the judge's), kept: the mean along the way.
    """

    field: pd.DataFrame
    positive: str
    resampled: str

    title: ClassVar[str] = "Curved against straight steering"
    unit: ClassVar[str] = "identity kept, curved - straight"

    def figure(self) -> go.Figure:
        """The difference by cell, the control as a cross."""
        names = self.table["site"] + " " + self.table["layer"].astype(int).astype(str)
        return labelled_points(self.table.assign(cell=names), "cell", title=self.title, unit=self.unit)

    def summary(self) -> str:
        row = self.table.sort_values("score", kind="stable").iloc[-1]
        return (
            f"Towards {self.positive!r} at {row['site']} of layer {row['layer']:.0f}: the curved path keeps "
            f"{row['kept_curved']:.2f} of identities, the straight one {row['kept_straight']:.2f} ({row['score']:+.2f}"
            f"{bracketed(row['low'], row['high'], '+.2f')}); attribute {row['gain_curved']:+.2f} and "
            f"{row['gain_straight']:+.2f} (random {row['gain_random']:+.2f}); bend {row['bend']:.2f}; over "
            f"{self.resampled}. Control: {self.control}."
        )


@method(
    "curved-path",
    group="representation",
    question="Does steering that follows the state keep more of what should stay than one straight vector?",
    papers=("Talk-to-Edit: Fine-Grained Facial Editing via Dialog",),
    records=Recorded(sites=("resid_post",)),
    needs=Needs(columns=("label",), per_class=FEWEST),
    cost="one forward pass of each model; three small networks per cell",
    example="--keep language",
)
def curved_path(
    recording: Recording,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    keep: Annotated[Sequence[Any] | None, As("column")] = None,
    steps: int = 20,
    reach: float = 2.0,
    target: float = 0.9,
    seed: int = 0,
    progress: Progress | None = None,
) -> CurvedPath:
    """Move states of one class towards another, along the gradient of a scorer or along the difference of means.

    Talk-to-Edit learns a field over an image model's latent space, whose direction depends on where one is, so that the
    way to an attribute bends around what should not change. Carried over are the field (the gradient of a small
    network that scores the attribute, made orthogonal to that of the identity, and turned back along it in doubt) and
    the two checks, attribute and identity; its dialogue is not. Fields are fitted on one third of the prompts (whole
    groups), judges on another, and paths start from the last. Each path stops where the field's own scorer reaches
    ``target``, or at ``reach``.

    Args:
        recording: Both models on labelled prompts; paths are told in the tuned model's states.
        labels: The attribute, two classes; by default the column label. Paths lead to the last in sorted order.
        keep: What should stay (a person, a topic): two classes or more.
        steps: Steps of a path.
        reach: The longest path, in distances of the class means.
        target: Probability of the attribute at which a path stops.
        seed: Of thirds, networks, random paths and resampling.

    Returns:
        A :class:`CurvedPath`.

    Raises:
        UserError: No column to keep, one class, or groups that do not part in three with all classes.
    """
    check_recording(recording)
    if keep is None:
        raise UserError("Name what should stay: keep= a column such as topic, with two classes or more.")
    rows = PromptRows.of(recording)
    y, names = classes_of(rows.labels(labels))
    identity, _ = classes_of(rows.labels(keep))
    positive = y == len(names) - 1
    thirds = _thirds(rows.clusters, positive, identity, seed)
    bar = progress or Silent()
    bar.start("paths", n_readings(recording, rows))
    lines, fields = [], []
    for own, sides in tracked(cells_of(recording, rows), bar):
        for number, cell in enumerate(own):
            walked = _Walk(sides["tuned"][number], positive, identity, thirds, (steps, reach, target, seed))
            lines.append({**cell, **walked.line(rows.clusters, seed)})
            fields += [{**cell, **line} for line in walked.field()]
    bar.finish()
    if not lines:
        raise UserError("The recording has no site of a layer: record resid_post, z, mlp_out or another one.")
    return CurvedPath(
        table=with_q(lines),
        control="random straight paths, as long as each curved one, in place of it",
        provenance=of_recording("curved_path", recording, ("base", "tuned"), seed),
        field=pd.DataFrame(fields),
        positive=names[-1],
        resampled=units_of(rows.clusters),
    )  # fmt: skip


class Scorer:
    """A network with one hidden layer of tanh units on standardised leading axes; its classes' log-probabilities."""

    def __init__(self, states: Float[Tensor, "row d"], y: Int[np.ndarray, " row"], seed: int) -> None:
        self.middle = states.mean(0)
        _, sizes, right = torch.linalg.svd(states - self.middle, full_matrices=False)
        axes = right[:AXES][sizes[:AXES] > THIN * sizes[0]]
        self.scale = ((states - self.middle) @ axes.T).std(0).clamp_min(1e-6)
        self.axes = axes
        random = torch.Generator().manual_seed(seed)
        classes = int(y.max()) + 1
        shapes = [(len(axes), HIDDEN), (1, HIDDEN), (HIDDEN, classes), (1, classes)]
        self.weights = [
            nn.Parameter(torch.randn(shape, generator=random) * shape[0] ** -0.5 * (shape[0] > 1)) for shape in shapes
        ]
        optimiser = torch.optim.Adam(self.weights, lr=0.02, weight_decay=1e-3)
        wanted = torch.from_numpy(y)
        with torch.enable_grad():
            for _ in range(TRAINED):
                loss = nn.functional.cross_entropy(self.logits(states), wanted)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    def logits(self, states: Float[Tensor, "row d"]) -> Float[Tensor, "row class"]:
        read = (states - self.middle) @ self.axes.T / self.scale
        return torch.tanh(read @ self.weights[0] + self.weights[1]) @ self.weights[2] + self.weights[3]

    def slope(self, states: Float[Tensor, "row d"], y: Int[Tensor, " row"]) -> Float[Tensor, "row d"]:
        """Gradient of each row's class's logit less the mean of the others'; it does not fade where that is sure."""
        with torch.enable_grad():
            at = states.detach().clone().requires_grad_()
            logits = self.logits(at)
            own = logits.gather(1, y[:, None])[:, 0]
            margin = own - (logits.sum(1) - own) / (logits.shape[1] - 1)
            return torch.autograd.grad(margin.sum(), at)[0]

    def sure(self, states: Float[Tensor, "row d"], y: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Probability of each row's class."""
        return self.logits(states).softmax(-1).gather(1, y[:, None])[:, 0].detach()


class _Walk:
    """Paths of one cell, with what the judges say along them."""

    def __init__(
        self, states: Tensor, positive: np.ndarray, identity: np.ndarray, thirds: np.ndarray,
        settings: tuple[int, float, float, int],
    ) -> None:  # fmt: skip
        self.steps, reach, self.target, seed = settings
        states = states.float()
        y = positive.astype(np.int64)
        fit, judge = (thirds == third for third in (0, 1))
        self.rows = np.flatnonzero((thirds == 2) & ~positive)
        self.guide = Scorer(states[fit], y[fit], seed)
        self.guard = Scorer(states[fit], identity[fit], seed + 1)
        self.judge = Scorer(states[judge], y[judge], seed + 2)
        self.knows = Scorer(states[judge], identity[judge], seed + 3)
        self.identity = torch.from_numpy(identity[self.rows])
        contrast = states[fit][positive[fit]].mean(0) - states[fit][~positive[fit]].mean(0)
        self.unit = float(contrast.norm()) or 1.0
        self.stride = reach * self.unit / self.steps
        start = states[torch.from_numpy(self.rows)]
        random = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
        straight = nn.functional.normalize(contrast, dim=-1).expand(start.shape)
        self.paths = {"curved": self._walked(start, None), "straight": self._walked(start, straight)}
        self.lengths = {name: self._length(path) for name, path in self.paths.items()}
        away = nn.functional.normalize(random, dim=-1)
        shares = torch.linspace(0, 1, self.steps + 1)[:, None, None]
        self.paths["random"] = start + shares * away * self.lengths["curved"][:, None]

    def _walked(self, start: Tensor, straight: Tensor | None) -> Float[Tensor, "step row d"]:
        """Rows stop where the guide is convinced."""
        at, states = start, [start]
        ones = torch.ones(len(start), dtype=torch.long)
        for _ in range(self.steps):
            going = self.guide.sure(at, ones) < self.target
            step = self._field(at, ones) if straight is None else straight
            at = (at + going[:, None] * self.stride * step).detach()
            states.append(at)
        return torch.stack(states)

    def _field(self, at: Tensor, ones: Tensor) -> Float[Tensor, "row d"]:
        """The guide's gradient without its part along the identity's, and back along that where it is in doubt."""
        up = self.guide.slope(at, ones)
        hold = nn.functional.normalize(self.guard.slope(at, self.identity), dim=-1)
        beside = nn.functional.normalize(up - (up * hold).sum(-1, keepdim=True) * hold, dim=-1)
        doubt = (1 - self.guard.sure(at, self.identity))[:, None]
        return nn.functional.normalize(beside + 2 * doubt * hold, dim=-1)

    @staticmethod
    def _length(path: Float[Tensor, "step row d"]) -> Float[Tensor, " row"]:
        return (path[1:] - path[:-1]).norm(dim=-1).sum(0)

    def _kept(self, states: Tensor) -> Bool[np.ndarray, " row"]:
        said = self.knows.logits(states).argmax(-1)
        return (said == self.identity).numpy()

    def _attribute(self, states: Tensor) -> Float[np.ndarray, " row"]:
        return self.judge.logits(states).softmax(-1)[:, 1].detach().double().numpy()

    def line(self, clusters: np.ndarray, seed: int) -> dict[str, float]:
        stays = {name: self._kept(path[-1]).astype(float) for name, path in self.paths.items()}
        gain = {name: self._attribute(path[-1]) - self._attribute(path[0]) for name, path in self.paths.items()}
        own = clusters[self.rows]
        apart = stays["curved"] - stays["straight"]
        ends = self._ends()
        return {
            **scored(apart, seed=seed, clusters=own), "control": float((stays["random"] - stays["straight"]).mean()),
            "p": paired_p(apart, own, seed=seed),
            **{f"kept_{name}": float(stays[name].mean()) for name in PATHS},
            **{f"gain_{name}": float(gain[name].mean()) for name in PATHS},
            **{f"length_{name}": float(length.mean()) / self.unit for name, length in self.lengths.items()},
            "bend": float(1 - ends.mean()) if len(ends) else 0.0, "n": len(self.rows),
        }  # fmt: skip

    def _ends(self) -> Float[np.ndarray, " row"]:
        """Cosine of the first and the last step of every curved path that made two."""
        taken = self.paths["curved"][1:] - self.paths["curved"][:-1]
        went = taken.norm(dim=-1) > 0
        count = went.sum(0)
        last = taken[(count - 1).clamp_min(0), torch.arange(taken.shape[1])]
        return nn.functional.cosine_similarity(taken[0], last, dim=-1)[count > 1].numpy()

    def field(self) -> list[dict[str, Any]]:
        """Attribute and identity along every path."""
        return [
            {"path": name, "step": step, "attribute": float(self._attribute(states).mean()),
             "kept": float(self._kept(states).mean())}
            for name, path in self.paths.items() for step, states in enumerate(path)
        ]  # fmt: skip


def _thirds(clusters: np.ndarray, positive: np.ndarray, identity: np.ndarray, seed: int) -> Int[np.ndarray, " row"]:
    """0: fields, 1: judges, 2: paths; whole groups, with all classes in the first two and starts in the last."""
    groups = np.unique(clusters)
    classes = len(np.unique(identity))
    for draw in range(100):
        order = np.random.default_rng(seed + draw).permutation(groups)
        of = dict(zip(order.tolist(), (np.arange(len(order)) * 3 // max(1, len(order))).tolist(), strict=True))
        thirds = np.array([of[int(cluster)] for cluster in clusters])
        fine = all(
            len(np.unique(positive[thirds == part])) == 2 and len(np.unique(identity[thirds == part])) == classes
            for part in (0, 1)
        )
        if fine and (~positive[thirds == 2]).sum() >= 2:
            return thirds
    raise UserError("The groups do not part in three with all classes in each: give more groups of every class.")
