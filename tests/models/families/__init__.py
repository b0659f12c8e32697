"""One file a family of models; each registers its cases with `models.case.case` when imported."""
