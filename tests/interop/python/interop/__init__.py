"""A client of recalld in Python, with nothing but grpcio and stubs generated from the protos."""
