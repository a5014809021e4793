"""Training in processes of its own, which outlives crashes of itself and of whoever ordered it.

    records.py      what is known of jobs, their events and uploaded files: SQLite, in `HOME/jobs.sqlite3`
    process.py      what a job's process does
    supervisor.py   starts the next job, and again one that was interrupted

One job runs at a time. A job's run (see `gpt2.runs`) is `HOME/runs/NAME`, so each of its checkpoints is a model,
`NAME@STEP`, as soon as it is there; its result becomes the model NAME of the store.
"""
