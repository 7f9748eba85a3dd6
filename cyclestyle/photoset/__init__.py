"""Translation of photo sets: search for inputs, plan, journal, workers and contact sheet."""
