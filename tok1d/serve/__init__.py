"""A page to try models in a browser: `tok1d serve`."""
