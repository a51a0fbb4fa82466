"""What predict.py needs around the pipeline: inputs within limits, and a server that ends or recovers."""
