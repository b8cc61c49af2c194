"""`python -m tapline.training`: the command `tapline-train`, for launchers such as `torchrun` that start a module."""

from tapline.training.commands.entry import main

main()
