"""The run-time type checker of the test suite: beartype, taking an int where a float is asked for, as Python does."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
