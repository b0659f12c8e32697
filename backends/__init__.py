"""IR -> something that runs: eager torch, Inductor, MLIR."""
