package interop;

import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import io.recalld.v1.AddMemoryRequest;
import io.recalld.v1.MemoryServiceGrpc.MemoryServiceBlockingStub;
import io.recalld.v1.Message;
import java.time.Duration;
import java.util.EnumSet;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.ThreadLocalRandom;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/** Many AddMemory calls, each repeated under its request_id until it is known to have succeeded. */
final class Load {
  private static final int CONCURRENCY = 16;
  private static final int SESSIONS = 10;
  private static final Duration GIVE_UP = Duration.ofSeconds(60);
  private static final long FIRST_PAUSE_MILLIS = 50;
  private static final long LONGEST_PAUSE_MILLIS = 1000;

  /** After these the outcome is unknown, or the server asks to come again. */
  private static final Set<Code> REPEAT =
      EnumSet.of(Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED, Code.DEADLINE_EXCEEDED);

  private Load() {}

  /** Makes the calls and returns how many the server acknowledged; throws what no repetition mends. */
  static int run(Connection recalld, int calls) throws InterruptedException, ExecutionException {
    ExecutorService threads = Executors.newFixedThreadPool(CONCURRENCY);
    try {
      Stream<Callable<Boolean>> work =
          IntStream.range(0, calls).mapToObj(number -> () -> add(recalld.memory(), request(number)));
      int acknowledged = 0;
      for (Future<Boolean> call : work.map(threads::submit).toList()) {
        acknowledged += call.get() ? 1 : 0;
      }
      return acknowledged;
    } finally {
      threads.shutdownNow();
    }
  }

  private static AddMemoryRequest request(int number) {
    return AddMemoryRequest.newBuilder()
        .setSessionId("load-" + number % SESSIONS)
        .addMessages(Message.newBuilder().setRole("user").setContent("question " + number))
        .addMessages(Message.newBuilder().setRole("assistant").setContent("answer " + number))
        .setRequestId(UUID.randomUUID().toString())
        .build();
  }

  /** Whether the server acknowledged the request in time. */
  private static boolean add(MemoryServiceBlockingStub memory, AddMemoryRequest request) throws InterruptedException {
    long start = System.nanoTime();
    for (long pause = FIRST_PAUSE_MILLIS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MILLIS)) {
      try {
        memory.addMemory(request);
        return true;
      } catch (StatusRuntimeException error) {
        if (!REPEAT.contains(error.getStatus().getCode())) {
          throw error;
        }
      }
      if (System.nanoTime() - start + Duration.ofMillis(pause).toNanos() > GIVE_UP.toNanos()) {
        return false;
      }
      // Spread out, so that refused callers do not come back all at once.
      Thread.sleep(ThreadLocalRandom.current().nextLong(pause));
    }
  }
}
