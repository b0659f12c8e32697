"""`python -m tests.models`: the command line of the zoo, see command.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the zoo is called `models`, as it is under pytest

from models.command import main

main()
