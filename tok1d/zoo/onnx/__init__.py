"""Export of tokenizers to ONNX: their parts as graphs, the file that describes them, and the writing of both."""
