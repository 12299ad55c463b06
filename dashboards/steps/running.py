"""Steps as jobs of the desk: each goes on with the same run, so that what it found is seen at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dashboards import jobs, models
from dashboards.job_journal import Order
from dashboards.steps.subject import Subject
from tunescope.look.notes import CHANGED, KEEP, STEPS, TURN, LookNotes, notes_of
from workbench import runs
from workbench.runs.places import PROMPTS, whole_path

if TYPE_CHECKING:
    from workbench.progress import Progress
    from workbench.prompts import Prompts


@dataclass(frozen=True)
class LookRequest:
    """A look to begin or to go on with."""

    base: str
    tuned: str
    prompts: Prompts | None
    """None: those of the run where ``of_run``, else the shipped set."""
    of_run: bool = False
    limit: int = 60
    seed: int = 0
    device: str = "auto"


def steps_before(subject: Subject, step: str) -> list[str]:
    """``step`` with those that it needs and that are not done."""
    needed = [CHANGED] if step != CHANGED else []
    if step == KEEP:
        needed = [CHANGED, TURN]
    return [name for name in needed if subject.notes.state(name) == "not run"] + [step]


def begin(subject: Subject, steps: Sequence[str], request: LookRequest) -> None:
    """Put the steps into the queue."""

    def task(progress: Progress) -> str:
        return _done(subject, steps, request, progress)

    named = steps[-1] if len(steps) == 1 else "The four steps"
    run = str(subject.run.path) if request.of_run and subject.run is not None else None
    job = jobs.desk().begin(named, task, subject.key, page="look", order=_order(steps, request, run))
    job.stage = job.stage or steps[0]


def begin_again(options: dict[str, Any]) -> None:
    """The steps of a look that were ordered, on the run that has those before them. Raises :class:`UserError` where
    that run is gone."""
    from workbench.prompts import Prompts

    run = None if options["run"] is None else runs.open(options["run"])
    rows = None if options["prompts"] is None else Prompts.of(options["prompts"])
    subject = Subject(options["base"], options["tuned"], run, LookNotes() if run is None else notes_of(run))
    request = LookRequest(
        subject.base, subject.tuned, rows, run is not None, options["limit"], options["seed"], options["device"]
    )
    begin(subject, options["steps"], request)


def _order(steps: Sequence[str], request: LookRequest, run: str | None) -> Order:
    """``run``: the one that the steps go on with."""
    rows = None if request.prompts is None or run is not None else [row.as_dict() for row in request.prompts]
    return Order("look", {
        "base": request.base, "tuned": request.tuned, "steps": list(steps), "prompts": rows, "limit": request.limit,
        "seed": request.seed, "device": request.device, "run": run,
    })  # fmt: skip


def _done(subject: Subject, steps: Sequence[str], request: LookRequest, progress: Any) -> str:
    models.warm().wait("look")
    from tunescope.look.keep import extend
    from tunescope.look.steps import Look
    from workbench.prompts import Prompts

    run = subject.run if request.of_run else None
    if run is not None:
        config, prompts, out = run.config, Prompts.load(run.file(PROMPTS)), run.path
    else:
        prompts = _sampled(request)
        config, out = _config(request, prompts), None
    dtype = str(config.get("dtype", models.quick_dtype(request.base, request.device)))
    pair = models.pair(request.base, request.tuned, request.device, dtype)
    for number, step in enumerate(steps):
        progress.stage = step
        look = Look(pair, prompts, request.base, request.tuned, int(config.get("seed", 0)))
        made = extend(look, config, step, progress, out)
        config, out = made.config, made.path
        if rest := steps[number + 1 :]:
            jobs.desk().goes_on_with(progress, _order(rest, request, str(out)))
    return str(out)


def begin_dose(subject: Subject, candidate: str) -> None:
    """Put the sweep of a candidate's strength into the queue."""
    assert subject.run is not None
    run = subject.run

    def task(progress: Progress) -> str:
        models.warm().wait("look")
        from tunescope.look.keep import extend_by_dose
        from tunescope.look.steps import Look
        from workbench.prompts import Prompts

        config = run.config
        pair = models.pair(
            subject.base, subject.tuned, str(config.get("device", "auto")), str(config.get("dtype", "auto"))
        )
        rows = Prompts.load(run.file(PROMPTS))
        look = Look(pair, rows, subject.base, subject.tuned, int(config.get("seed", 0)))
        return str(extend_by_dose(look, config, candidate, progress, run.path).path)

    order = Order("dose", {
        "base": subject.base, "tuned": subject.tuned, "run": str(run.path), "candidate": candidate
    })  # fmt: skip
    key = ("dose", str(run.path), candidate)
    job = jobs.desk().begin(f"Dose of {candidate}", task, subject.key, key=key, page="look", order=order)
    job.stage = TURN


def begin_dose_again(options: dict[str, Any]) -> None:
    """As it was ordered. Raises :class:`UserError` where the run is gone."""
    run = runs.open(options["run"])
    begin_dose(Subject(options["base"], options["tuned"], run, notes_of(run)), str(options["candidate"]))


def _sampled(request: LookRequest) -> Prompts:
    from tunescope.experiments.requirements import sample
    from tunescope.look.questions import general_questions

    rows = general_questions() if request.prompts is None else request.prompts
    return sample(rows, request.limit, request.seed)


def _config(request: LookRequest, prompts: Prompts) -> dict[str, Any]:
    """As that of ``tunescope look``; prompts that lie in no file are told by their hash."""
    base, tuned = models.places(request.base, request.tuned)
    return {
        "verb": "look", "base": whole_path(base), "tuned": whole_path(tuned), "prompts": prompts.hash,
        "limit": request.limit, "seed": request.seed, "device": request.device,
        "dtype": models.quick_dtype(base, request.device),
    }  # fmt: skip


def job_of(subject: Subject) -> jobs.Job | None:
    """The last task that runs steps of this pair."""
    own = [job for job in jobs.desk().jobs if job.about == subject.key and job.stage in STEPS]
    return own[-1] if own else None
