"""`python -m gpt2` is `gpt2`."""

import sys

from gpt2 import processes

sys.path[:] = processes.search_path()  # without the current folder, which `python -m` puts first

from gpt2.cli import main  # noqa: E402

main()
