package interop;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Struct;
import com.google.protobuf.util.JsonFormat;
import io.recalld.v1.Message;
import io.recalld.v1.SessionFilter;
import java.util.List;

/** What the tour sends. */
final class Values {
  static final String SESSION_ID = "tour-Zürich-東京";
  static final String USER_ID = "user-łódź";
  static final String REQUEST_ID = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b01";
  static final String MESSAGE_ID = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b02";
  static final List<String> PAGE_IDS = List.of("page-1", "page-2", "page-3", "page-4", "page-5");
  static final SessionFilter PAGES = SessionFilter.newBuilder().setMetadata(struct("{\"kind\": \"page\"}")).build();

  static final Struct METADATA =
      struct(
          """
          {
            "string": "Größe",
            "empty": "",
            "integer": 42,
            "negative": -7,
            "fraction": 0.1,
            "largest": 9007199254740991,
            "yes": true,
            "no": false,
            "nothing": null,
            "nested": {"inner": {"kept": "yes", "gone": "soon"}, "empty": {}},
            "list": [1, "two", null, false, [3.5], {"four": 4}, []]
          }
          """);

  static final Struct PATCH =
      struct(
          """
          {
            "integer": null,
            "nested": {"inner": {"gone": null, "added": 1.5}},
            "list": ["replaced"],
            "new": {"ключ": "значение"}
          }
          """);

  static final List<Message> MESSAGES =
      List.of(
          Message.newBuilder()
              .setMessageId(MESSAGE_ID)
              .setRole("user")
              .setContent("Grüße aus Zürich, 東京, 🗼👩\u200d👩\u200d👧, e\u0301, שלום, مرحبا")
              .setMetadata(struct("{\"languages\": [\"de\", \"ja\", \"he\", \"ar\"]}"))
              .setTokenCount(42)
              .build(),
          Message.newBuilder()
              .setRole("assistant")
              .setContent("Take an umbrella.")
              .setMetadata(struct("{\"model\": {\"name\": \"tiny\", \"temperature\": 0.25}}"))
              .build(),
          Message.newBuilder().setRole("user").build(),
          Message.newBuilder().setRole("наблюдатель").setContent("one\ntwo\t\"three\" \\ four").build());

  private Values() {}

  static Struct struct(String json) {
    Struct.Builder struct = Struct.newBuilder();
    try {
      JsonFormat.parser().merge(json, struct);
    } catch (InvalidProtocolBufferException error) {
      throw new IllegalArgumentException(json, error);
    }
    return struct.build();
  }
}
