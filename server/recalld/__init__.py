"""recalld: conversation memory for AI applications, in Postgres, behind gRPC."""
