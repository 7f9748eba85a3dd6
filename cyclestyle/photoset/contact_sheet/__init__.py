"""The contact sheet: one HTML page that shows the photos of a set beside their translations."""
