"""The contact sheet: one HTML page that shows a translated photo set."""
