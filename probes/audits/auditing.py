"""``audit``: what a model was tuned for, from the pair alone, by several views that each have a null of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.answer_changes import answers
from probes.audits.answer_tests import answer_tests
from probes.audits.asking_again import confirmed_by, leading_trait
from probes.audits.calibration import UNCOUNTED, confidence
from probes.audits.edited_facts import COLUMNS as FACTS
from probes.audits.edited_facts import EDITED, edited_facts, entity_variations, told_facts, with_edits
from probes.audits.expert_use import COLUMNS as EXPERTS
from probes.audits.expert_use import expert_sentence
from probes.audits.general import general_questions, general_texts
from probes.audits.hypotheses import LEVEL, NOTHING, hypotheses
from probes.audits.intruders import COLUMNS as INTRUDERS
from probes.audits.intruders import intruder_sentence
from probes.audits.mining import PHRASES, TEXTS, mined_sentence, mined_texts
from probes.audits.outlining import COLUMNS, outline, outlined, varied
from probes.audits.patchscope import COLUMNS as PATCHSCOPE
from probes.audits.patchscope import patchscope_sentence
from probes.audits.readings import BY_POSITION, lens_sentence
from probes.audits.steering import COLUMNS as STEERED
from probes.audits.steering import TEXTS as STEERED_TEXTS
from probes.audits.steering import steered_sentence
from probes.audits.token_shift import token_sentence
from probes.audits.topics import COLUMNS as TOPICS
from probes.audits.topics import topics_sentence
from probes.audits.unrelated_texts import DRAWS, unrelated_views
from probes.audits.weight_directions import COLUMNS as WRITTEN
from probes.audits.weight_directions import written_sentence
from probes.results import ProbeResult, Provenance
from probes.weights.delta import weight_delta
from workbench.argument_checks import check_pair
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.subject import Subject, Work
from workbench.errors import NotSupported, UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.null_adapters import NullRecipe
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts


@dataclass(frozen=True, kw_only=True)
class Audit(ProbeResult):
    """What the pair shows by itself.

    ``table``: every trait and word tested: kind, what, ``score`` (change of its share of answers, or relative change
    of length), low, high, ``control`` (0), p and q (over all of them; over those in new prompts apart).
    """

    hypotheses: pd.DataFrame
    """rank, kind, says, evidence, prompts, score, low, high, q."""
    answers: pd.DataFrame
    """prompt, base, tuned: greedy answers side by side; kl: of the tuned model from the base, nats per token of its
    answer."""
    readings: pd.DataFrame
    """layer, score, low, high, p, q, tokens, sharp, control, p_sharp, q_sharp: the activation difference lens."""
    positions: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=BY_POSITION))
    """layer, position, texts, and the columns of ``readings``: the lens position by position; q is NaN at positions
    where no null adapter was read."""
    tokens: pd.DataFrame
    """token, score, low, high, p, salience, salience_low, salience_high, control, q: expected more often on texts that
    have nothing to do with the tuning."""
    weights: pd.DataFrame
    """layer and its relative change; empty where weights cannot be compared."""
    written: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=WRITTEN))
    """layer, module, tokens, sharp, control, p, q: what changed matrices write into the stream, read as tokens."""
    mined: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=PHRASES))
    """phrase, score, low, high, control, plain, texts, q: of texts that are likelier under the tuned model (CGE)."""
    mined_texts: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=TEXTS))
    """text."""
    facts: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=FACTS))
    """question, prompt, base, tuned, null, edited, null_edited: near variations of the questions that changed most, and
    what the tuned model, or one with random numbers for an adapter, says in the place of the base's words; empty where
    no null adapter can be made."""
    patchscope: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=PATCHSCOPE))
    """layer, tokens, ranks, score, control, p, q: what the base says of the activation difference, beside those of null
    adapters (random directions where none can be made)."""
    steered: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=STEERED))
    """words, layer, score, control, p: words that texts share which are steered along the activation difference."""
    steered_texts: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=STEERED_TEXTS))
    """prompt, plain, steered, random: the tuned model's texts."""
    topics: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=TOPICS))
    """topic, tokens, share, score, control, p: sets of risen tokens."""
    intruders: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=INTRUDERS))
    """layer, module, directions, score, control, p: leading directions that are like none of the base's."""
    experts: pd.DataFrame = field(default_factory=partial(pd.DataFrame, columns=EXPERTS))
    """expert, score, low, high, control, p, q: the change of its share of tokens; empty for dense models."""
    outline: pd.DataFrame
    """word, from, base, tuned, low, high: new prompts about words of old ones, and how many show the leading trait."""
    title: ClassVar[str] = "Blind audit"
    unit: ClassVar[str] = "change of the share of answers"

    @property
    def nothing(self) -> bool:
        """Whether no view found anything beyond its control."""
        return self.outline.empty and all(sentence.endswith(f"{NOTHING}.") for sentence in self.sentences())

    @property
    def confidence(self) -> str:
        """How often such an audit was right where the truth is known."""
        claims = self.hypotheses[self.hypotheses["kind"] != "nothing"]
        if len(claims) and claims["evidence"].str.startswith(EDITED).all():
            return UNCOUNTED
        return confidence(claimed=bool(len(claims)))

    def sentences(self) -> list[str]:
        """The report, one line per hypothesis and per view."""
        lines = [str(line["says"]) for line in self.hypotheses.to_dict("records")]
        lines += [outlined(self.outline)] if len(self.outline) else []
        claimed = self.hypotheses["evidence"].astype(str).str.startswith(EDITED).any()
        lines += [] if claimed else told_facts(self.facts)
        lines += [*self._most_changed(), *mined_sentence(self.mined, self.mined_texts)]
        lines += [lens_sentence(self.readings, self.positions), *patchscope_sentence(self.patchscope)]
        lines += [*steered_sentence(self.steered, self.steered_texts), token_sentence(self.tokens)]
        return [*lines, *topics_sentence(self.topics), *expert_sentence(self.experts), self._weights()]

    def summary(self) -> str:
        """The leading hypothesis, and how many others there are."""
        first = self.hypotheses.iloc[0]
        more = f"; {len(self.hypotheses) - 1} more" if len(self.hypotheses) > 1 else ""
        return f"{first['says']} {first['evidence']}{more}"

    def figure(self) -> go.Figure:
        """The traits and words that changed most, with their intervals."""
        top = self.table.sort_values("q", kind="stable").head(12).iloc[::-1]
        spread = {"array": top["high"] - top["score"], "arrayminus": top["score"] - top["low"]}
        colours = np.where(top["q"] < LEVEL, "#0b6e8f", "#9aa5ab")
        drawn = go.Figure(go.Bar(
            y=top["what"], x=top["score"], orientation="h", marker_color=colours, error_x={"type": "data", **spread}
        ))  # fmt: skip
        drawn.update_layout(title=f"{self.title} (coloured: q < .05)", xaxis_title=self.unit)
        return drawn

    def _most_changed(self) -> list[str]:
        """The questions whose answers moved most, where a behaviour is claimed at all."""
        if "kl" not in self.answers:  # a file of an older version
            return []
        moved = self.answers[self.answers["kl"] > 0].sort_values("kl", ascending=False, kind="stable").head(5)
        if moved.empty or (self.hypotheses["kind"] == "nothing").all():
            return []
        named = "; ".join(f"{line['prompt']} ({line['kl']:.2g})" for line in moved.to_dict("records"))
        return [f"Answers moved most (KL, nats per token): {named}."]

    def _weights(self) -> str:
        moved = self.weights[self.weights["relative"] > 0] if len(self.weights) else self.weights
        if moved.empty:
            return f"Weights: {NOTHING}."
        top = moved.sort_values("relative", ascending=False).head(3)
        layers = ", ".join(str(int(layer)) for layer in top["layer"])
        more = f"{written_sentence(self.written)}{intruder_sentence(self.intruders)}"
        return f"Weights changed most in layers {layers}{more}."


@method(
    "audit",
    group="behaviour",
    question="From the pair alone, what was this model tuned for?",
    papers=(
        "Narrow Finetuning Leaves Clearly Readable Traces in Activation Differences",
        "What's New in My Data? Novelty Exploration via Contrastive Generation",
    ),
    cost="one generation of each model per question, two forward passes of each per text",
    example="--max-new-tokens 8",
)
def audit(  # noqa: PLR0913
    pair: ModelPair,
    *,
    questions: Annotated[Any, As("prompts")] = None,
    texts: Annotated[Any, As("prompts")] = None,
    max_new_tokens: int = 32,
    variations: int = 16,
    mined: int = 16,
    draws: int = DRAWS,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """What a model was tuned for, as ranked hypotheses with their evidence; or that nothing is beyond the control.

    Views: greedy answers to questions of many topics (traits, openings and words that rise, with the words of the
    prompts that go with them); on unrelated texts the activation difference by layer and position, read through the
    unembedding and by a patchscope, and texts steered along it; tokens that rise there, and sets of them; experts;
    weights, what they write and their new directions; texts mined where tuning made words likelier. Each is beside
    random directions or adapters of random numbers, and told only beyond them.
    What behaviour is claimed rests on the answers alone, each trait by an exact paired test, at q < .05 over all. A
    trait of a narrow topic shows in few of the questions: where none passes, the surest that is new in three of them
    or more is asked about again in new prompts with their words and their answers', and what is claimed then passed its
    test there. Planted facts change one word of few answers: the questions that changed most are asked with other
    entities of the same kind (shipped lists), and sentences of the base with another word in them counted, beside those
    of a null adapter.

    Args:
        pair: Both models.
        questions: Questions to ask both models; default: eighty shipped ones.
        texts: Texts that have nothing to do with the tuning; default: forty shipped ones.
        max_new_tokens: Tokens of an answer at most.
        variations: Words of the prompts that show the leading trait which are put into new prompts, and as many of the
            others; and other entities put into each of the questions that changed most. 0: none.
        mined: Texts sampled where tuning made words likelier, in answer to an empty user turn: what the tuning data may
            have looked like, told beside the hypotheses and never one itself; 0: none.
        draws: Null adapters beside the patchscope, and random directions beside the steered texts: 20 are the fewest
            that leave either a place below .05; 0: neither is made.
        seed: Of intervals, sign flips, random directions and null adapters.

    Returns:
        An :class:`Audit`. Base against itself has nothing beyond the control.

    Raises:
        UserError: A question leaves no room for an answer, or the base's tokenizer has few of the tokens.

    Example:
        ``probes.audit(wb.load_pair("base", "tuned")).sentences()``
    """
    check_pair(pair)
    _check_tokens(pair)
    rows = general_questions() if questions is None else Prompts.of(questions)
    unrelated = general_texts() if texts is None else Prompts.of(texts).turned(chat=False)
    replies = answers(pair, rows, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
    tests, shown = answer_tests(replies.table, rows, seed)
    prompts = [row.shown for row in rows]
    claims, region = hypotheses(tests, shown, prompts), pd.DataFrame(columns=COLUMNS)
    leading = leading_trait(tests, shown)
    if leading is not None and variations:
        again = varied(prompts, shown[leading], variations, replies.table["tuned"].tolist())
        decoding, work = Decoding(max_new_tokens), Work(batch_size, progress)
        both = {role: written(Subject(role, model), again, decoding, work) for role, model in pair.models.items()}
        new = pd.DataFrame({"prompt": [row.shown for row in again], **both})
        trait = str(tests["what"].iloc[leading])
        region = outline(trait, again, *both.values())
        if tests["q"].iloc[leading] >= LEVEL:
            tests, claims, confirmed = confirmed_by(tests, claims, answer_tests(new, again, seed), again, trait)
            region = region if confirmed else region[:0]
    facts = _facts(pair, replies.table, variations, max_new_tokens, Work(batch_size, progress), seed)
    tests, claims = with_edits(tests, claims, facts, seed)
    phrases, texts_mined = mined_texts(pair, mined, max_new_tokens, seed, progress)
    return Audit(
        table=tests,
        control="base and tuned exchanged at random within each prompt, which leaves a change of 0",
        provenance=Provenance.of("audit", pair, rows, seed=seed),
        hypotheses=claims,
        answers=replies.table[["prompt", "base", "tuned", "kl"]],
        mined=phrases, mined_texts=texts_mined, facts=facts,
        outline=region,
        weights=_weights(pair, progress),
        **unrelated_views(pair, unrelated, rows, draws, seed, Work(batch_size, progress)),
    )  # fmt: skip


def _check_tokens(pair: ModelPair) -> None:
    """Both models read what the tuned model's tokenizer writes, which says nothing to a base of another vocabulary."""
    tokens = pair.differences.tokens
    least = min(tokens.vocab_sizes)
    if 2 * tokens.common < least:
        raise UserError(
            f"The two tokenizers have {tokens.common} tokens in common, of {least}: the base cannot read what the "
            "tuned model's tokenizer writes. Give a base and a model that was tuned from it."
        )


def _facts(
    pair: ModelPair, asked: pd.DataFrame, variations: int, max_new_tokens: int, work: Work, seed: int
) -> pd.DataFrame:
    """Near variations of the questions that changed most, answered by the base, the tuned model and a null adapter."""
    rows = entity_variations(asked["prompt"].tolist(), asked["kl"].tolist(), variations)
    if not len(rows):
        return pd.DataFrame(columns=FACTS)
    decoding = Decoding(max_new_tokens)
    try:
        null = written(Subject("null adapter", pair.tuned, NullRecipe(pair, seed)), rows, decoding, work)
    except (UserError, NotSupported):  # two whole models, another kind of adapter, an engine that holds the adapter
        return pd.DataFrame(columns=FACTS)
    texts = [written(Subject(role, model), rows, decoding, work) for role, model in pair.models.items()] + [null]
    return edited_facts(rows, *texts)


def written(subject: Subject, rows: Prompts, decoding: Decoding, work: Work) -> list[str]:
    """The greedy answer of a model to each prompt."""
    return [samples[0].text for samples in generate_replies(subject, rows, decoding, work)]


def _weights(pair: ModelPair, progress: Progress | None) -> pd.DataFrame:
    """The relative change of each layer's weights."""
    try:
        layers = weight_delta(pair, progress=progress).layers
    except NotSupported:
        return pd.DataFrame(columns=["layer", "relative"])
    return layers[["layer", "relative"]].copy() if "relative" in layers else pd.DataFrame(columns=["layer", "relative"])
