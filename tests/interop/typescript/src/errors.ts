// What a failed call tells: its status, and the google.rpc details that come with it.

import { type ServiceError, status } from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, ResourceInfo, RetryInfo } from "./stubs/google/rpc/error_details.js";
import { Status } from "./stubs/google/rpc/status.js";

export interface Details {
  errorInfo?: ErrorInfo;
  badRequest?: BadRequest;
  resourceInfo?: ResourceInfo;
  retryInfo?: RetryInfo;
}

/** Whether a caught value is a failed call, and not something else that went wrong. */
export function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}

/** The name of the call's status code, such as NOT_FOUND. */
export function codeOf(error: ServiceError): string {
  return status[error.code];
}

/** The details; empty when the call failed before it reached the server. */
export function detailsOf(error: ServiceError): Details {
  const details: Details = {};
  const [serialized] = error.metadata.get("grpc-status-details-bin");
  if (!(serialized instanceof Uint8Array)) {
    return details;
  }
  for (const { typeUrl, value } of Status.decode(serialized).details) {
    switch (typeUrl.slice(typeUrl.lastIndexOf("/") + 1)) {
      case "google.rpc.ErrorInfo":
        details.errorInfo = ErrorInfo.decode(value);
        break;
      case "google.rpc.BadRequest":
        details.badRequest = BadRequest.decode(value);
        break;
      case "google.rpc.ResourceInfo":
        details.resourceInfo = ResourceInfo.decode(value);
        break;
      case "google.rpc.RetryInfo":
        details.retryInfo = RetryInfo.decode(value);
        break;
    }
  }
  return details;
}
