package interop;

import static java.util.Objects.requireNonNull;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.TlsChannelCredentials;
import io.recalld.v1.AdminServiceGrpc;
import io.recalld.v1.AdminServiceGrpc.AdminServiceBlockingStub;
import io.recalld.v1.MemoryServiceGrpc;
import io.recalld.v1.MemoryServiceGrpc.MemoryServiceBlockingStub;
import io.recalld.v1.SessionServiceGrpc;
import io.recalld.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import io.recalld.v1.UserServiceGrpc;
import io.recalld.v1.UserServiceGrpc.UserServiceBlockingStub;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;

/**
 * The four services on one channel, as an application would open it: credential, TLS, retries, and a deadline for every
 * call. Safe for use by many threads.
 */
record Connection(
    ManagedChannel channel,
    SessionServiceBlockingStub sessions,
    MemoryServiceBlockingStub memory,
    UserServiceBlockingStub users,
    AdminServiceBlockingStub admin)
    implements AutoCloseable {

  private static final Duration DEADLINE = Duration.ofSeconds(10);

  /** The connection that the environment describes; it is made with the first call. */
  static Connection open(Map<String, String> environment) throws IOException {
    String target = requireNonNull(environment.get("RECALLD_TARGET"), "RECALLD_TARGET is not set");
    String policy = requireNonNull(environment.get("RECALLD_SERVICE_CONFIG"), "RECALLD_SERVICE_CONFIG is not set");
    String caFile = environment.get("RECALLD_CA_FILE");
    ChannelCredentials trust =
        caFile == null
            ? InsecureChannelCredentials.create()
            : TlsChannelCredentials.newBuilder().trustManager(new File(caFile)).build();
    ManagedChannel channel =
        Grpc.newChannelBuilder(target, trust)
            .defaultServiceConfig(serviceConfig(Path.of(policy)))
            .intercept(new EveryCall(environment.get("RECALLD_API_KEY")))
            .build();
    return new Connection(
        channel,
        SessionServiceGrpc.newBlockingStub(channel),
        MemoryServiceGrpc.newBlockingStub(channel),
        UserServiceGrpc.newBlockingStub(channel),
        AdminServiceGrpc.newBlockingStub(channel));
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }

  /** The channel takes the config as parsed JSON with every number a double, which is what Gson makes of it. */
  private static Map<String, ?> serviceConfig(Path file) throws IOException {
    return new Gson().fromJson(Files.readString(file), new TypeToken<Map<String, Object>>() {});
  }

  /** Sends the credential with every call, and sees to it that every call has a deadline. */
  private record EveryCall(String apiKey) implements ClientInterceptor {
    private static final Metadata.Key<String> AUTHORIZATION =
        Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

    @Override
    public <Q, R> ClientCall<Q, R> interceptCall(MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
      CallOptions limited = options.getDeadline() == null ? options.withDeadlineAfter(DEADLINE) : options;
      return new SimpleForwardingClientCall<>(next.newCall(method, limited)) {
        @Override
        public void start(Listener<R> listener, Metadata headers) {
          if (apiKey != null) {
            headers.put(AUTHORIZATION, "Bearer " + apiKey);
          }
          super.start(listener, headers);
        }
      };
    }
  }
}
