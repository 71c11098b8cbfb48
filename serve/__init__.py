"""The HTTP service: wiring only; every decision is a function of racing_core.serving."""
