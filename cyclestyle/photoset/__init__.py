"""Translation of photo sets: the search for photos, the plan, the journal, the workers and the contact sheet."""
