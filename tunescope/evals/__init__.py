"""Hand-over to evaluation harnesses: any task of Inspect or lm-evaluation-harness on base, tuned and tuned + recipe.

The harness builds prompts and scores answers; Tunescope's models answer, and the scores come back paired by sample:
:func:`run_lm_eval`, :func:`run_inspect`.
"""

from tunescope.evals.comparison import EvalComparison as EvalComparison
from tunescope.evals.harness import run_lm_eval as run_lm_eval
from tunescope.evals.inspecting import run_inspect as run_inspect

__all__ = ["EvalComparison", "run_inspect", "run_lm_eval"]
