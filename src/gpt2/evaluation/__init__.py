"""Evaluation as in the paper: tasks as data, log-likelihoods by any engine, figures that can be traced.

    from gpt2 import open_model
    from gpt2.evaluation import evaluate

    result = evaluate(open_model(), "wikitext2", "data/eval")
    print(result.metrics["token_perplexity"])

`tasks` says what there is, `readers` reads the sets, `detokenisers` restores natural spelling, `scoring` asks the
engine, `work` goes from items to requests and back, `statistics` says how sure a figure is, `run` puts it together,
`paper` and `pages` show it, `sets` brings the data. It needs an engine and a codec, and knows nothing of training or of
Keras.
"""

from __future__ import annotations

from gpt2.evaluation.run import Evaluated, Result, compare_runs, differing, evaluate, find_data
from gpt2.evaluation.statistics import Difference, Estimate
from gpt2.evaluation.tasks import TASKS, Metric, Options, Task, task_of

__all__ = [
    "TASKS",
    "Difference",
    "Estimate",
    "Evaluated",
    "Metric",
    "Options",
    "Result",
    "Task",
    "compare_runs",
    "differing",
    "evaluate",
    "find_data",
    "task_of",
]
