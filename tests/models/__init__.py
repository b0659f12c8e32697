"""The model zoo: tiny models of every family, captured, optimised exactly and held to float64."""
