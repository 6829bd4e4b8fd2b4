"""recalld: conversation memory for AI applications, in Postgres, behind gRPC."""

__version__ = "0.2.0"
