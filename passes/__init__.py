"""Graph -> Graph: passes, their pipeline and the linear-complexity recipes. Never imports torch."""
