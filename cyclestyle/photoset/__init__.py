"""Photo sets: inputs, plan, journal, workers, contact sheet."""
