"""EleutherAI's `lm-eval --model local-completions` against a real server: the log-likelihoods are those of `logits`.

lm-eval needs `datasets`, which needs a newer pyarrow than TensorFlow 2.17's NumPy allows. So it lives in a virtual
environment of its own, which `make test-slow` makes; `GPT2_LM_EVAL` names its Python.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gpt2 import open_model
from servers import serving

TASK = """
task: tales
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
DOCUMENTS = [
    {"prompt": "Once upon a time there was a king who had a", "choices": [" daughter", " computer"], "answer": 0},
    {"prompt": "Once upon a", "choices": [" time", " the", "🦊"], "answer": 0},
    {"prompt": "The fox said to the wolf:", "choices": [' "Come with me."', " 1234 5678", "\n\n"], "answer": 0},
    {"prompt": "He went into the", "choices": [" forest, and there he found a little house.", " of of"], "answer": 0},
    {"prompt": "A word " * 200, "choices": ["word", " and then nothing"], "answer": 0},
]


@pytest.mark.slow
def test_lm_eval_scores_a_task_as_logits_do(tmp_path: Path) -> None:
    python = os.environ.get("GPT2_LM_EVAL")
    if not python:
        pytest.skip("needs lm-eval in an environment of its own, and GPT2_LM_EVAL to name its Python: make test-slow")
    data = tmp_path / "tales.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS), encoding="utf-8")
    (tmp_path / "tales.yaml").write_text(TASK % data)
    own = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "no_proxy": "127.0.0.1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
    with serving(tmp_path / "home") as server:
        arguments = f"model=bundled,base_url={server.url}/v1/completions,tokenizer_backend=remote,max_length=512"
        options = [
            "--model",
            "local-completions",
            "--model_args",
            arguments + ",num_concurrent=1,tokenized_requests=True",
        ]
        options += ["--tasks", "tales", "--include_path", str(tmp_path), "--log_samples"]
        options += ["--output_path", str(tmp_path / "out")]
        done = subprocess.run(
            [python, "-m", "lm_eval", "run", *options],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("samples_tales_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(samples) == len(DOCUMENTS)
    model = open_model()
    greedy = 0
    for sample in samples:
        document = sample["doc"]
        for choice, (given, is_greedy) in zip(document["choices"], sample["filtered_resps"], strict=True):
            kept = document["prompt"].rstrip()  # lm-eval counts blanks at the end to what follows
            start = len(model.codec.encode(kept))
            tokens = model.codec.encode(document["prompt"] + choice)
            logits = model.logits([tokens])[0].astype(np.float64)
            own_values = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            wanted = sum(own_values[n - 1, tokens[n]] for n in range(start, len(tokens)))
            assert abs(float(given) - wanted) < 1e-3, (choice, given, wanted)
            best = all(int(own_values[n - 1].argmax()) == tokens[n] for n in range(start, len(tokens)))
            assert (str(is_greedy) == "True") == best, choice
            greedy += best
    assert greedy >= 1  # else that part would show nothing
