"""The steps of an experiment; localize steps are named as ``tunescope localize`` names its verbs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from tunescope.experiments.inline import Labels, Layer, Positions, ResultRef
from tunescope.experiments.inputs import PairSpec
from tunescope.experiments.strict import MOST, MOST_DRAWS, MOST_SEED, Strict, refusal

MIN_DRAWS = 10
QUICK = ("head_words",)
"""Probes that take no progress bar."""
PROMPT_OPTIONS = {"circuit": ("reference",), "head_selection": ("other",), "token_shift": ("base_prompts",)}
"""Probe -> its options that are prompts."""


def _a_word(begins: str) -> str:
    if not begins.strip():
        raise refusal("is empty; give the word that the responses begin with, as in sorry.")
    return begins


Begins = Annotated[str, AfterValidator(_a_word)]


class Step(Strict):
    """What every step has."""

    tags: ClassVar[tuple[str, ...]] = ("do",)

    prompts: str | None = None
    """The name of a set of prompts; left out: the first."""
    seed: int | None = Field(default=None, ge=0, le=MOST_SEED)
    """Of splits, draws and intervals; left out: the experiment's."""
    pair: PairSpec | None = None
    """Other models for this step; left out: the experiment's. Splits are then those of this organism."""


class Record(Step):
    """Activations of both models, into the run."""

    do: Literal["record"] = "record"
    sites: list[str] = Field(default=["resid_post"])
    layers: list[Layer] | None = None
    positions: Positions = "last"
    new_tokens: int = Field(default=0, ge=0, le=MOST)


class Weights(Step):
    """Where the weights changed; loads neither model."""

    do: Literal["localize weights"] = "localize weights"
    k: int = Field(default=16, ge=1, le=MOST)


class Activations(Step):
    """``record``: a record step to read; left out, this step records ``sites`` itself, in memory."""

    do: Literal["localize activations"] = "localize activations"
    record: str | None = None
    sites: list[str] = Field(default=["resid_post"])
    positions: Positions = "last"
    components: int = Field(default=4, ge=0, le=MOST)


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
    folds: int = Field(default=5, ge=2, le=MOST)
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
    begins: Begins
    """A word or several, as in ``sorry``."""
    ranking: Labels
    """Labels, the first to be switched first; or the first of an experts map."""
    counts: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 2, 4, 8], min_length=1)
    mode: Literal["replace", "drop", "drop_renorm", "force"] = "replace"
    options: dict[str, Any] = Field(default={})
    """Further options of ``probes.switching_curve``: max_new_tokens, controls, draws, …"""


class Knob(Step):
    """The direction that decides between two intents."""

    do: Literal["localize knob"] = "localize knob"
    layers: Literal["search", "all"] | list[Layer] = "search"
    rank: int = Field(default=1, ge=1, le=MOST)
    steps: int = Field(default=300, ge=1, le=MOST)
    """Training steps of the direction, per candidate layer."""
    search_pairs: int = Field(default=64, ge=2, le=MOST)
    options: dict[str, Any] = Field(default={})
    """Further options of ``probes.KnobSetup``: draws, held_out, keep_together, …"""


class Concepts(Step):
    """Directions that tuning moved. ``record``: a record step to read; left out, this step records ``layer`` itself."""

    do: Literal["localize concepts"] = "localize concepts"
    record: str | None = None
    layer: Layer = 0.5
    method: Literal["mean", "pca", "pca-uncentred", "labels-mean", "labels-probe", "sae"] = "pca-uncentred"
    k: int = Field(default=20, ge=1, le=MOST)
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


class Components(Step):
    """The heads that carry a variable, one mask per desideratum and model."""

    do: Literal["localize components"] = "localize components"
    desiderata: dict[str, str] = Field(min_length=1)
    """Desideratum -> the name of its set of prompts (prompt, contrast, answer). A list names both alike."""
    position: str | int = "last"
    """Where heads are taken over: last, a number, or a column of the prompts."""
    heads: list[str] | None = None
    """Labels of the heads to choose from; left out: all."""
    penalties: list[float] = Field(default=[0.001, 0.01, 0.1], min_length=1)
    epochs: int = Field(default=2, ge=1, le=MOST)
    options: dict[str, Any] = Field(default={})
    """Further options of ``probes.component_masking``: learning_rate, batch_size, controls, draws, …"""

    @field_validator("desiderata", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, list) and all(isinstance(name, str) for name in given):
            if len(set(given)) < len(given):
                raise refusal("names a set twice; every desideratum needs its own.")
            return {name: name for name in given}
        return given

    @field_validator("prompts")
    @classmethod
    def _several(cls, prompts: str | None) -> str | None:
        if prompts is not None:
            raise refusal("these are several sets: name them under desiderata.")
        return prompts


class Probe(Step):
    """Any other probe of (models, prompts), by its name in Python; ``options`` are its keyword arguments."""

    do: Literal["probe"] = "probe"
    call: Literal["circuit", "cmap", "head_selection", "head_words", "logit_lens", "path_patching", "token_shift"]
    within: Literal["pair", "base", "tuned"] = "pair"
    """What the probe is given: both models, or one."""
    options: dict[str, Any] = Field(default={})
    sets: dict[str, str] = Field(default={})
    """Options that are prompts (``reference`` of circuit, ``other`` of head_selection, ``base_prompts`` of
    token_shift) -> the name of the set."""


class Compare(Step):
    """Two results of the same kind, cell by cell, and how far they agree; loads no model."""

    do: Literal["compare"] = "compare"
    first: ResultRef
    second: ResultRef


def _enough(draws: int) -> int:
    if 0 < draws < MIN_DRAWS:
        raise refusal(f"a control needs at least {MIN_DRAWS} random draws, or 0 for none; got {draws}.")
    return draws


Draws = Annotated[int, Field(ge=0, le=MOST_DRAWS), AfterValidator(_enough)]
"""Random draws matched to every recipe; 0: none."""


class Compared(Step):
    """What steps share that measure behaviour."""

    metrics: list[str] = Field(default=["accuracy", "prob", "kl"], min_length=1)
    """Names of ``workbench.behaviour.METRICS``."""
    neutral: str | None = None
    """A set of prompts whose texts perplexity is measured on."""
    controls: Draws = MIN_DRAWS
    options: dict[str, Any] = Field(default={})
    """Further options of ``behaviour_diff``: max_new_tokens, samples, temperature, continuation, batch_size, …"""


class Generate(Step):
    """Greedy answers of base, tuned, and of one side under each recipe at each strength."""

    do: Literal["generate"] = "generate"
    recipes: list[str] = Field(default=[])
    strengths: list[float] = Field(default=[1.0], min_length=1)
    on: Literal["base", "tuned"] = "tuned"
    max_new_tokens: int = Field(default=32, ge=1, le=MOST)
    begins: Begins | None = None
    """Also the share of answers that begin with this text, signs and spaces included."""


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
    outside: str | None = None
    """A set of prompts that should not change: how far the recipe moves them, as ``kl out of scope``."""


class Scope(Step):
    """How often recipes change behaviour in scope (``prompts``), near it and beyond it."""

    do: Literal["scope"] = "scope"
    recipes: list[str] = Field(min_length=1)
    on: Literal["base", "tuned"] = "tuned"
    near: str | None = None
    """A set of prompts near the recipes' scope."""
    outside: str
    """A set of prompts out of scope."""
    changed: Literal["next_token", "text", "refusal"] = "next_token"
    """What a change is: another next token, another greedy text, or a refusal where there was none (or none now)."""
    controls: Draws = MIN_DRAWS
    max_new_tokens: int = Field(default=32, ge=1, le=MOST)


class Parts(Step):
    """Behaviour on what the base knows and does not, or on what the tuned model is sure of and is not."""

    do: Literal["parts"] = "parts"
    by: Literal["known", "sure"]
    recipes: list[str] = Field(default=[])
    """Applied to the tuned model."""
    metrics: list[str] | None = Field(default=None, min_length=1)
    """Names of ``workbench.behaviour.METRICS``; left out: those of ``known_unknown`` or ``sure_unsure``."""
    options: dict[str, Any] = Field(default={})
    """Further options of these two: knows (of known), threshold (of sure), max_new_tokens, batch_size, …"""


WITHOUT_PROMPTS = (Weights, Retrieval, Components, Compare)
"""Steps that read no prompts of their own."""
WITHOUT_MODELS = (Compare,)
"""Steps that load no model."""
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
    | Components
    | Probe
    | Generate
    | Diff
    | Dose
    | Scope
    | Parts
    | Compare,
    Field(discriminator="do"),
]
