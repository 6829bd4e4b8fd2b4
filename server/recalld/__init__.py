"""recalld: conversation memory for AI applications, in Postgres, behind gRPC."""

__version__ = "0.1.0"
