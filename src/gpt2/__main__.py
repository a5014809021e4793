"""`python -m gpt2` is `gpt2`."""

from gpt2.cli import main

main()
