"""torch -> IR: capture, and the module that stands in for the original."""
