"""What the server counts, in Prometheus's text form."""

from __future__ import annotations

from tunescope.serve.engine import Engine


def exposition(engine: Engine) -> str:
    """Every number of :class:`tunescope.serve.job.Counts`, and how many requests wait and run now."""
    counts = engine.counts
    totals = {
        "requests": ("Requests that were accepted.", counts.requests),
        "refused": ("Requests that were refused because too many waited.", counts.refused),
        "failed": ("Requests that ended with an error of the engine.", counts.failed),
        "alone": ("Requests that could not share steps with others.", counts.alone),
        "new_tokens": ("New tokens of finished requests.", counts.new_tokens),
        "generation_seconds": ("Seconds in which the engine computed.", f"{counts.seconds:.3f}"),
        "steps": ("Steps that requests shared.", counts.steps),
        "step_rows": ("Rows of those steps; by steps: texts written at once.", counts.step_rows),
    }
    lines = []
    for name, (help_text, value) in totals.items():
        metric = f"tunescope_{name}_total"
        lines += [f"# HELP {metric} {help_text}", f"# TYPE {metric} counter", f"{metric} {value}"]
    for name, help_text, now in (
        ("waiting", "Requests that nothing was computed for yet.", engine.waiting),
        ("running", "Texts that share steps now.", engine.running),
    ):
        lines += [f"# HELP tunescope_{name} {help_text}", f"# TYPE tunescope_{name} gauge", f"tunescope_{name} {now}"]
    first = "tunescope_first_token_seconds"
    lines += [f"# HELP {first} From a request to its first token.", f"# TYPE {first} summary"]
    lines += [f"{first}_sum {counts.first_token_seconds:.4f}", f"{first}_count {counts.first_tokens}"]
    lines.append("# TYPE tunescope_requests_by_model_total counter")
    lines += [f'tunescope_requests_by_model_total{{model="{name}"}} {n}' for name, n in counts.by_model.items()]
    return "\n".join(lines) + "\n"
