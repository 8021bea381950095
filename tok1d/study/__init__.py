"""The perception test of Semanticist (arXiv 2503.08685, appendix D.1) for any tokenizer: build, serve and score it."""
