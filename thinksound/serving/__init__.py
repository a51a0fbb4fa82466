"""What predict.py needs around the pipeline: limits for inputs, and a server that recovers or ends."""
