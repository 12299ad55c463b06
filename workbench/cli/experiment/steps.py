"""The steps of an experiment; localize steps are named as ``tunescope localize`` names its verbs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from workbench.cli.experiment.inline import Labels, Layer, Positions
from workbench.cli.experiment.strict import Strict, refusal

MIN_DRAWS = 10
QUICK = ("head_words",)
"""Probes that take no progress bar."""


class Step(Strict):
    """What every step has."""

    tags: ClassVar[tuple[str, ...]] = ("do",)

    prompts: str | None = None
    """The name of a set of prompts; left out: the first."""
    seed: int | None = None
    """Of splits, draws and intervals; left out: the experiment's."""


class Record(Step):
    """Activations of both models, into the run."""

    do: Literal["record"] = "record"
    sites: list[str] = Field(default=["resid_post"])
    layers: list[Layer] | None = None
    positions: Positions = "last"
    new_tokens: int = Field(default=0, ge=0)


class Weights(Step):
    """Where the weights changed; loads neither model."""

    do: Literal["localize weights"] = "localize weights"
    k: int = Field(default=16, ge=1)


class Activations(Step):
    """``record``: a record step to read; left out, this step records ``sites`` itself, in memory."""

    do: Literal["localize activations"] = "localize activations"
    record: str | None = None
    sites: list[str] = Field(default=["resid_post"])
    positions: Positions = "last"
    components: int = Field(default=4, ge=0)


class Heads(Step):
    """Heads of the tuned model patched into the base, one by one."""

    do: Literal["localize heads"] = "localize heads"
    what: Literal["z", "write"] = "write"
    metric: Literal["logit_diff", "prob", "kl"] = "logit_diff"
    layers: list[Layer] | None = None
    options: dict[str, Any] = Field(default={})
    """Further options of ``probes.patching``: method, positions, inputs, together, …"""


class HeadProbes(Step):
    """A linear probe per head for the prompts' labels."""

    do: Literal["localize head-probe"] = "localize head-probe"
    record: str | None = None
    label: str | None = None
    """The column that holds the class; left out: ``label``."""
    role: Literal["base", "tuned"] = "tuned"
    folds: int = Field(default=5, ge=2)
    positions: Positions = "last"


class Skills(Step):
    """The weights of the tuned model that carry the task."""

    do: Literal["localize skills"] = "localize skills"
    method: Literal["optimised", "adaptive", "movement", "first_order"] = "optimised"
    level: Literal["entries", "rows", "heads", "modules", "ranks"] = "entries"
    sparsity: float = Field(default=1e-3, gt=0, le=1)
    ood: str | None = None
    """A set of prompts out of the distribution."""
    options: dict[str, Any] = Field(default={})
    """Further options of ``probes.graft``: epochs, lr, …"""


class Experts(Step):
    """The experts that one class of prompts uses more."""

    do: Literal["localize experts"] = "localize experts"
    target: str | int | bool | None = None
    label: str | None = None
    """The column that holds the class; left out: ``label``."""
    within: Literal["pair", "base", "tuned"] = "pair"
    """Both models (the tuned one's use minus the base's), or one alone."""
    positions: Literal["all", "last"] = "all"
    """The prompt tokens that count."""
    options: dict[str, Any] = Field(default={})
    """Further options of ``probes.expert_map``: phase, reference, exclude, …"""

    @model_validator(mode="after")
    def _one_choice(self) -> Experts:
        if self.positions == "last" and "exclude" in self.options:
            raise refusal("positions and options.exclude both choose the tokens that count; give one of them.")
        return self


class Switching(Step):
    """How often the tuned model's responses begin with ``begins`` when the first experts of a ranking are switched."""

    do: Literal["localize switching"] = "localize switching"
    begins: str
    """A word or several, as in ``sorry``."""
    ranking: Labels
    """Labels, the first to be switched first; or the first of an experts map."""
    counts: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 2, 4, 8], min_length=1)
    mode: Literal["replace", "drop", "drop_renorm", "force"] = "replace"
    options: dict[str, Any] = Field(default={})
    """Further options of ``probes.switching_curve``: max_new_tokens, controls, draws, …"""

    @field_validator("begins")
    @classmethod
    def _a_word(cls, begins: str) -> str:
        if not begins.strip():
            raise refusal("is empty; give the word that the responses begin with, as in sorry.")
        return begins


class Knob(Step):
    """The direction that decides between two intents."""

    do: Literal["localize knob"] = "localize knob"
    layers: Literal["search", "all"] | list[Layer] = "search"
    rank: int = Field(default=1, ge=1)
    steps: int = Field(default=300, ge=1)
    """Training steps of the direction, per candidate layer."""
    search_pairs: int = Field(default=64, ge=2)
    options: dict[str, Any] = Field(default={})
    """Further options of ``probes.KnobSetup``: draws, held_out, keep_together, …"""


class Concepts(Step):
    """Directions that tuning moved. ``record``: a record step to read; left out, this step records ``layer`` itself."""

    do: Literal["localize concepts"] = "localize concepts"
    record: str | None = None
    layer: Layer = 0.5
    method: Literal["mean", "pca", "pca-uncentred", "labels-mean", "labels-probe", "sae"] = "pca-uncentred"
    k: int = Field(default=20, ge=1)
    dictionary: str | None = None
    """A SAELens folder, for sae."""


class Retrieval(Step):
    """Heads that copy a needle from the context."""

    do: Literal["localize retrieval"] = "localize retrieval"
    haystack: str
    """A text file."""
    needles: list[dict[Literal["question", "text"], str]] = Field(min_length=1)
    lengths: list[int] = Field(default=[256, 512, 1024])
    template: str | None = None
    """What stands behind the haystack, with {question} where the question goes."""


class Probe(Step):
    """Any other probe of (models, prompts), by its name in Python; ``options`` are its keyword arguments."""

    do: Literal["probe"] = "probe"
    call: Literal["circuit", "cmap", "head_selection", "head_words", "logit_lens", "path_patching", "token_shift"]
    within: Literal["pair", "base", "tuned"] = "pair"
    """What the probe is given: both models, or one."""
    options: dict[str, Any] = Field(default={})


class Compared(Step):
    """What steps share that measure behaviour."""

    metrics: list[str] = Field(default=["accuracy", "prob", "kl"], min_length=1)
    """Names of ``workbench.behaviour.METRICS``."""
    neutral: str | None = None
    """A set of prompts whose texts perplexity is measured on."""
    controls: int = Field(default=MIN_DRAWS, ge=0)
    """Random draws matched to every recipe; 0: none."""
    options: dict[str, Any] = Field(default={})
    """Further options of ``behaviour_diff``: max_new_tokens, samples, temperature, continuation, …"""

    @field_validator("controls")
    @classmethod
    def _enough(cls, draws: int) -> int:
        if 0 < draws < MIN_DRAWS:
            raise refusal(f"a control needs at least {MIN_DRAWS} random draws, or 0 for none; got {draws}.")
        return draws


class Generate(Step):
    """Greedy answers of base, tuned, and of one side under each recipe at each strength."""

    do: Literal["generate"] = "generate"
    recipes: list[str] = Field(default=[])
    strengths: list[float] = Field(default=[1.0], min_length=1)
    on: Literal["base", "tuned"] = "tuned"
    max_new_tokens: int = Field(default=32, ge=1)


class Diff(Compared):
    """base | tuned | tuned under each recipe | base under each of ``base_recipes``, with random stand-ins."""

    do: Literal["diff"] = "diff"
    recipes: list[str] = Field(default=[])
    base_recipes: list[str] = Field(default=[])


class Dose(Compared):
    """One recipe at several strengths, beside random stand-ins at the same strengths."""

    do: Literal["dose"] = "dose"
    recipe: str
    strengths: list[float] = Field(min_length=1)
    on: Literal["base", "tuned"] = "tuned"


WITHOUT_PROMPTS = (Weights, Retrieval)
"""Steps that read no prompts."""
AnyStep = Annotated[
    Record
    | Weights
    | Activations
    | Heads
    | HeadProbes
    | Skills
    | Experts
    | Switching
    | Knob
    | Concepts
    | Retrieval
    | Probe
    | Generate
    | Diff
    | Dose,
    Field(discriminator="do"),
]
