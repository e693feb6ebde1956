"""`python -m batchnorm`: the command, for torchrun."""

from .cli.main import main

main()
