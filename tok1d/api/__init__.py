"""`tok1d.train`, `tok1d.evaluate` and `tok1d.analyze` as functions; the commands call the same code."""
