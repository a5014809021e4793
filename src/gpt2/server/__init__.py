"""Serving over HTTP: OpenAI's `/v1` and the versioned `/v2`, behind keys, limits and an allow-list of hosts.

    settings.py     what can be set
    keys.py         API keys with scopes
    problems.py     errors as OpenAI's clients know them
    metrics.py      figures for Prometheus
    service.py      what the routes share
    gate.py         what every request passes before any route: host, origin, key, scope, rate, size, log
    document.py     the OpenAPI document
    objects.py      OpenAI's objects, for it
    bodies.py       JSON from strangers, checked against a type
    writing.py      from the scheduler's thread to the event loop
    sse.py          server-sent events
    completions.py  /v1/completions
    fine_tuning.py  /v1/files and /v1/fine_tuning/jobs
    versions.py     /v2 and later ones, from their contracts
    playground.py   the page at /, whose files lie in page/
    app.py          the routes, put together
    run.py          the process: socket, signals, slow connections

Run by `gpt2 serve`. Nothing outside this package and the command line knows of HTTP.
"""
