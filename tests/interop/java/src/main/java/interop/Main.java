package interop;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import java.io.PrintStream;
import java.util.Map;

/** {@code tour} and {@code load N}; what they do is in README.md of the directory above. */
public final class Main {
  private static final Gson GSON = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();

  public static void main(String[] arguments) throws Exception {
    boolean tour = arguments.length == 1 && arguments[0].equals("tour");
    boolean load = arguments.length == 2 && arguments[0].equals("load") && arguments[1].matches("\\d{1,9}");
    if (!tour && !load) {
      System.err.println("usage: java -jar interop.jar tour | load N");
      System.exit(2);
    }
    try (Connection recalld = Connection.open(System.getenv())) {
      Map<String, ?> seen =
          tour ? new Tour(recalld).run() : Map.of("acknowledged", Load.run(recalld, Integer.parseInt(arguments[1])));
      // The platform's own encoding need not be UTF-8.
      new PrintStream(System.out, true, UTF_8).println(GSON.toJson(seen));
    }
  }
}
