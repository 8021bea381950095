"""Pictures as HTML, with one style sheet."""
