package interop;

import static interop.Shown.failure;
import static interop.Shown.ids;
import static interop.Shown.object;
import static interop.Shown.seqs;
import static interop.Values.PAGES;
import static interop.Values.SESSION_ID;
import static interop.Values.USER_ID;
import static interop.Values.struct;

import com.google.common.collect.Comparators;
import com.google.common.collect.ImmutableList;
import com.google.protobuf.Duration;
import com.google.protobuf.FieldMask;
import com.google.protobuf.Timestamp;
import com.google.protobuf.util.Durations;
import com.google.protobuf.util.Timestamps;
import io.grpc.Context;
import io.grpc.Context.CancellableContext;
import io.recalld.v1.AddMemoryRequest;
import io.recalld.v1.AddMemoryResponse;
import io.recalld.v1.AddedMessage;
import io.recalld.v1.CreateSessionRequest;
import io.recalld.v1.CreateUserRequest;
import io.recalld.v1.DeleteSessionRequest;
import io.recalld.v1.GetMemoryRequest;
import io.recalld.v1.GetMemoryResponse;
import io.recalld.v1.GetMessageRequest;
import io.recalld.v1.GetSessionRequest;
import io.recalld.v1.ListSessionsRequest;
import io.recalld.v1.ListSessionsResponse;
import io.recalld.v1.Message;
import io.recalld.v1.PurgeRequest;
import io.recalld.v1.PurgeResponse;
import io.recalld.v1.SearchMemoryRequest;
import io.recalld.v1.SearchResult;
import io.recalld.v1.Session;
import io.recalld.v1.SessionFilter;
import io.recalld.v1.StreamSessionsRequest;
import io.recalld.v1.StreamSessionsResponse;
import io.recalld.v1.UpdateSessionRequest;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;

/** One walk through the API; each step says what it saw. README.md, "The tour", has the steps. */
final class Tour {
  private static final Duration MICROSECOND = Durations.fromMicros(1);

  private final Connection recalld;
  private final Map<String, Object> seen = new LinkedHashMap<>();

  Tour(Connection recalld) {
    this.recalld = recalld;
  }

  /** Every step in its order, by name. */
  Map<String, Object> run() throws Exception {
    writeAndRead();
    userAndMetadata();
    search();
    listAndStream();
    refusals();
    deleteAndRevive();
    purge();
    return seen;
  }

  private void writeAndRead() {
    AddMemoryRequest request =
        AddMemoryRequest.newBuilder()
            .setSessionId(SESSION_ID)
            .addAllMessages(Values.MESSAGES)
            .setMetadata(Values.METADATA)
            .setRequestId(Values.REQUEST_ID)
            .build();
    AddMemoryResponse added = recalld.memory().addMemory(request);
    AddMemoryResponse repeated = recalld.memory().addMemory(request);
    GetMemoryRequest read = GetMemoryRequest.newBuilder().setSessionId(SESSION_ID).build();
    GetMemoryResponse memory = recalld.memory().getMemory(read);
    GetMemoryResponse newest = recalld.memory().getMemory(read.toBuilder().setLastN(2).build());
    List<Message> reread = added.getMessagesList().stream().map(this::message).toList();

    List<Timestamp> times = added.getMessagesList().stream().map(AddedMessage::getCreateTime).toList();
    Map<String, Object> add = Shown.added(added);
    add.put("keeps_message_id", added.getMessages(0).getMessageId().equals(Values.MESSAGE_ID));
    add.put(
        "distinct_message_ids",
        added.getMessagesList().stream().map(AddedMessage::getMessageId).distinct().count());
    add.put("whole_microseconds", times.stream().allMatch(time -> time.getNanos() % 1000 == 0));
    add.put("create_times_in_order", Comparators.isInOrder(times, Timestamps.comparator()));
    seen.put("add", add);
    Map<String, Object> repeat = Shown.added(repeated);
    repeat.put("same_answer", repeated.equals(added));
    seen.put("repeat", repeat);
    seen.put("get_memory", Shown.memory(memory));
    seen.put("newest", object("seqs", seqs(newest.getMessagesList())));
    seen.put(
        "get_message",
        object(
            "same_as_get_memory", reread.equals(memory.getMessagesList()),
            "same_create_times", reread.stream().map(Message::getCreateTime).toList().equals(times),
            "update_time_is_create_time",
                reread.stream().allMatch(each -> each.getUpdateTime().equals(each.getCreateTime()))));
  }

  private void userAndMetadata() throws Exception {
    CreateUserRequest ada =
        CreateUserRequest.newBuilder()
            .setUserId(USER_ID)
            .setEmail("ada@example.com")
            .setFirstName("Ada")
            .setLastName("Łódzka")
            .setMetadata(struct("{\"plan\": \"pro\"}"))
            .build();
    seen.put("create_user", Shown.user(recalld.users().createUser(ada).getUser()));
    Session attached = update(UpdateSessionRequest.newBuilder().setUserId(USER_ID));
    seen.put("attach", Shown.session(attached));
    Session merged = update(UpdateSessionRequest.newBuilder().setMetadata(Values.PATCH));
    boolean changed = !merged.getEtag().equals(attached.getEtag());
    seen.put("merge", object("session", Shown.session(merged), "etag_changed", changed));
    UpdateSessionRequest.Builder late =
        UpdateSessionRequest.newBuilder().setMetadata(struct("{\"late\": true}")).setEtag(attached.getEtag());
    seen.put("etag_mismatch", failure(() -> update(late)));
  }

  private void search() {
    SearchMemoryRequest umbrella = SearchMemoryRequest.newBuilder().setQuery("umbrella").build();
    SearchMemoryRequest ofUser = umbrella.toBuilder().setUserId(USER_ID).build();
    SearchMemoryRequest ofRole = umbrella.toBuilder().setSessionId(SESSION_ID).addRoles("user").build();
    List<SearchResult> everywhere = recalld.memory().searchMemory(umbrella).getResultsList();
    seen.put(
        "search",
        object(
            "everywhere", everywhere.stream().map(result -> Shown.message(result.getMessage())).toList(),
            "scores_positive", everywhere.stream().allMatch(result -> result.getScore() > 0),
            "of_user", seqs(found(ofUser)),
            "of_role", seqs(found(ofRole))));
    FieldMask mask = FieldMask.newBuilder().addPaths("user_id").build();
    Session detached = update(UpdateSessionRequest.newBuilder().setUpdateMask(mask));
    seen.put("detach", object("session", Shown.session(detached), "of_user", seqs(found(ofUser))));
  }

  private void listAndStream() throws Exception {
    List<Session> created = new ArrayList<>();
    for (String id : Values.PAGE_IDS) {
      String metadata = "{\"kind\": \"page\", \"number\": %d}".formatted(created.size() + 1);
      CreateSessionRequest request =
          CreateSessionRequest.newBuilder().setSessionId(id).setMetadata(struct(metadata)).build();
      created.add(recalld.sessions().createSession(request).getSession());
    }
    seen.put("list_sessions", object("pages", pages()));
    seen.put("create_time_filter", createTimeFilter(created.get(2).getCreateTime()));
    seen.put("stream_sessions", object("chunks", chunks("")));
    seen.put("resume_stream", resumeStream());
  }

  private List<List<String>> pages() {
    List<List<String>> pages = new ArrayList<>();
    ListSessionsRequest.Builder request = ListSessionsRequest.newBuilder().setFilter(PAGES).setPageSize(2);
    do {
      ListSessionsResponse page = recalld.sessions().listSessions(request.build());
      pages.add(ids(page.getSessionsList()));
      request.setPageToken(page.getNextPageToken());
    } while (!request.getPageToken().isEmpty());
    return pages;
  }

  /** Times to the microsecond, there and back: half-open ranges that begin or end at the third page, and just past. */
  private Map<String, Object> createTimeFilter(Timestamp third) {
    Timestamp later = Timestamps.add(third, MICROSECOND);
    return object(
        "from_third", listed(PAGES.toBuilder().setCreateTimeFrom(third)),
        "from_a_microsecond_later", listed(PAGES.toBuilder().setCreateTimeFrom(later)),
        "to_third", listed(PAGES.toBuilder().setCreateTimeTo(third)),
        "to_a_microsecond_later", listed(PAGES.toBuilder().setCreateTimeTo(later)));
  }

  private List<List<String>> chunks(String resumeToken) {
    StreamSessionsRequest request = streamOfPages().setResumeToken(resumeToken).build();
    List<List<String>> chunks = new ArrayList<>();
    recalld.sessions().streamSessions(request).forEachRemaining(chunk -> chunks.add(ids(chunk.getSessionsList())));
    return chunks;
  }

  private Map<String, Object> resumeStream() throws Exception {
    // A blocking stub has no way to end a stream; the context that the call is made in has.
    CancellableContext context = Context.current().withCancellation();
    Callable<StreamSessionsResponse> read = () -> recalld.sessions().streamSessions(streamOfPages().build()).next();
    StreamSessionsResponse first;
    try {
      first = context.call(read);
    } finally {
      context.cancel(null);
    }
    return object("before", ids(first.getSessionsList()), "after", chunks(first.getResumeToken()));
  }

  private void refusals() throws Exception {
    seen.put("seq_mismatch", failure(() -> appendAfter(3)));
    seen.put("seq_mismatch_at_zero", failure(() -> appendAfter(0)));
    seen.put("seq_match", Shown.added(appendAfter(4)));
    AddMemoryRequest nameless =
        AddMemoryRequest.newBuilder()
            .setSessionId(SESSION_ID)
            .addMessages(Message.newBuilder().setRole("user"))
            .addMessages(Message.newBuilder().setContent("Who?"))
            .build();
    seen.put("invalid_field", failure(() -> recalld.memory().addMemory(nameless)));
  }

  private void deleteAndRevive() throws Exception {
    GetSessionRequest get = GetSessionRequest.newBuilder().setSessionId(SESSION_ID).build();
    GetMemoryRequest read = GetMemoryRequest.newBuilder().setSessionId(SESSION_ID).build();
    AddMemoryRequest back =
        AddMemoryRequest.newBuilder()
            .setSessionId(SESSION_ID)
            .addMessages(Message.newBuilder().setRole("user").setContent("I am back."))
            .build();
    seen.put("delete_session", Shown.session(delete(SESSION_ID)));
    seen.put("not_found", failure(() -> recalld.sessions().getSession(get)));
    seen.put("memory_of_deleted", Shown.memory(recalld.memory().getMemory(read)));
    seen.put("revive", Shown.added(recalld.memory().addMemory(back)));
    seen.put("memory_of_revived", Shown.memory(recalld.memory().getMemory(read)));
  }

  /** Removes the last of the pages, and the messages that the revived session had before. */
  private void purge() throws Exception {
    String lastPage = Values.PAGE_IDS.get(4);
    GetSessionRequest get = GetSessionRequest.newBuilder().setSessionId(lastPage).setShowDeleted(true).build();
    delete(lastPage);
    seen.put("show_deleted", Shown.session(recalld.sessions().getSession(get).getSession()));

    PurgeRequest everything =
        PurgeRequest.newBuilder().setOlderThan(Durations.ZERO).setBatchSize(2).build();
    List<PurgeResponse> progress = ImmutableList.copyOf(recalld.admin().purge(everything));
    PurgeResponse end = progress.get(progress.size() - 1);
    List<Long> removed =
        progress.stream().map(each -> each.getSessions() + each.getMessages() + each.getUsers()).toList();
    seen.put(
        "purge",
        object(
            "sessions", Long.toString(end.getSessions()),
            "messages", Long.toString(end.getMessages()),
            "users", Long.toString(end.getUsers()),
            "several_responses", progress.size() > 1,
            "never_goes_back", Comparators.isInOrder(removed, Comparator.<Long>naturalOrder()),
            "only_the_last_is_done", end.getDone() && progress.stream().filter(PurgeResponse::getDone).count() == 1));
    seen.put("purged", failure(() -> recalld.sessions().getSession(get)));
  }

  private Message message(AddedMessage added) {
    GetMessageRequest request =
        GetMessageRequest.newBuilder().setSessionId(SESSION_ID).setMessageId(added.getMessageId()).build();
    return recalld.memory().getMessage(request).getMessage();
  }

  private Session update(UpdateSessionRequest.Builder change) {
    return recalld.sessions().updateSession(change.setSessionId(SESSION_ID).build()).getSession();
  }

  private Session delete(String id) {
    return recalld.sessions().deleteSession(DeleteSessionRequest.newBuilder().setSessionId(id).build()).getSession();
  }

  private List<Message> found(SearchMemoryRequest request) {
    return recalld.memory().searchMemory(request).getResultsList().stream().map(SearchResult::getMessage).toList();
  }

  private List<String> listed(SessionFilter.Builder filter) {
    ListSessionsRequest request = ListSessionsRequest.newBuilder().setFilter(filter).build();
    return ids(recalld.sessions().listSessions(request).getSessionsList());
  }

  private static StreamSessionsRequest.Builder streamOfPages() {
    return StreamSessionsRequest.newBuilder().setFilter(PAGES).setChunkSize(2);
  }

  private AddMemoryResponse appendAfter(long expectedLastSeq) {
    Message message = Message.newBuilder().setRole("user").setContent("Only if nobody else wrote.").build();
    return recalld
        .memory()
        .addMemory(
            AddMemoryRequest.newBuilder()
                .setSessionId(SESSION_ID)
                .addMessages(message)
                .setExpectedLastSeq(expectedLastSeq)
                .build());
  }
}
