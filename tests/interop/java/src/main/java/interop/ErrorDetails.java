package interop;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.ResourceInfo;
import com.google.rpc.RetryInfo;
import com.google.rpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.Optional;

/** The google.rpc details of a failed call. There are none when it failed before it reached the server. */
record ErrorDetails(
    Optional<ErrorInfo> errorInfo,
    Optional<BadRequest> badRequest,
    Optional<ResourceInfo> resourceInfo,
    Optional<RetryInfo> retryInfo) {

  static ErrorDetails of(StatusRuntimeException error) throws InvalidProtocolBufferException {
    Status status = StatusProto.fromThrowable(error);
    return new ErrorDetails(
        first(status, ErrorInfo.class),
        first(status, BadRequest.class),
        first(status, ResourceInfo.class),
        first(status, RetryInfo.class));
  }

  private static <T extends Message> Optional<T> first(Status status, Class<T> type)
      throws InvalidProtocolBufferException {
    for (Any detail : status.getDetailsList()) {
      if (detail.is(type)) {
        return Optional.of(detail.unpack(type));
      }
    }
    return Optional.empty();
  }
}
