package interop;

import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonParser;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Struct;
import com.google.protobuf.util.JsonFormat;
import com.google.rpc.BadRequest;
import com.google.rpc.BadRequest.FieldViolation;
import com.google.rpc.ErrorInfo;
import io.grpc.StatusRuntimeException;
import io.recalld.v1.AddMemoryResponse;
import io.recalld.v1.GetMemoryResponse;
import io.recalld.v1.Message;
import io.recalld.v1.Session;
import io.recalld.v1.User;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;

/** What the tour saw, as JSON: the shapes that README.md of the directory above defines. */
final class Shown {
  private Shown() {}

  /** An object whose members are given in turn, name and value; unlike those of Map.of, a value may be null. */
  static Map<String, Object> object(Object... namesAndValues) {
    Map<String, Object> object = new LinkedHashMap<>();
    for (int index = 0; index < namesAndValues.length; index += 2) {
      object.put((String) namesAndValues[index], namesAndValues[index + 1]);
    }
    return object;
  }

  static Map<String, Object> session(Session seen) {
    return object(
        "session_id", seen.getSessionId(),
        "user_id", seen.getUserId(),
        "metadata", metadata(seen.hasMetadata(), seen.getMetadata()),
        "message_count", Long.toString(seen.getMessageCount()),
        "last_seq", Long.toString(seen.getLastSeq()),
        "has_delete_time", seen.hasDeleteTime(),
        "has_purge_time", seen.hasPurgeTime());
  }

  static Map<String, Object> message(Message seen) {
    return object(
        "session_id", seen.getSessionId(),
        "seq", Long.toString(seen.getSeq()),
        "role", seen.getRole(),
        "content", seen.getContent(),
        "metadata", metadata(seen.hasMetadata(), seen.getMetadata()),
        "token_count", seen.getTokenCount());
  }

  static Map<String, Object> user(User seen) {
    return object(
        "user_id", seen.getUserId(),
        "email", seen.getEmail(),
        "first_name", seen.getFirstName(),
        "last_name", seen.getLastName(),
        "metadata", metadata(seen.hasMetadata(), seen.getMetadata()),
        "has_delete_time", seen.hasDeleteTime());
  }

  static Map<String, Object> added(AddMemoryResponse response) {
    return object(
        "session_created", response.getSessionCreated(),
        "session_undeleted", response.getSessionUndeleted(),
        "seqs", response.getMessagesList().stream().map(each -> Long.toString(each.getSeq())).toList());
  }

  static Map<String, Object> memory(GetMemoryResponse response) {
    return object(
        "session", response.hasSession() ? session(response.getSession()) : null,
        "messages", response.getMessagesList().stream().map(Shown::message).toList());
  }

  static List<String> seqs(List<Message> messages) {
    return messages.stream().map(each -> Long.toString(each.getSeq())).toList();
  }

  static List<String> ids(List<Session> sessions) {
    return sessions.stream().map(Session::getSessionId).toList();
  }

  /** What the call is refused with. */
  static Map<String, Object> failure(Callable<?> call) throws Exception {
    try {
      call.call();
    } catch (StatusRuntimeException error) {
      ErrorDetails details = ErrorDetails.of(error);
      ErrorInfo info = details.errorInfo().orElse(ErrorInfo.getDefaultInstance());
      BadRequest badRequest = details.badRequest().orElse(BadRequest.getDefaultInstance());
      return object(
          "code", error.getStatus().getCode().name(),
          "reason", info.getReason(),
          "domain", info.getDomain(),
          "metadata", info.getMetadataMap(),
          "fields", badRequest.getFieldViolationsList().stream().map(FieldViolation::getField).toList(),
          "resource",
              details
                  .resourceInfo()
                  .map(resource -> object("type", resource.getResourceType(), "name", resource.getResourceName()))
                  .orElse(null));
    }
    throw new IllegalStateException("the call should have failed");
  }

  private static JsonElement metadata(boolean set, Struct value) {
    if (!set) {
      return JsonNull.INSTANCE;
    }
    try {
      return JsonParser.parseString(JsonFormat.printer().print(value));
    } catch (InvalidProtocolBufferException impossible) {
      throw new IllegalArgumentException(impossible); // only an Any of unknown type cannot be printed
    }
  }
}
