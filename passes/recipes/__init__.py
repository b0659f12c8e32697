"""One file per family of linear-complexity mixers."""
