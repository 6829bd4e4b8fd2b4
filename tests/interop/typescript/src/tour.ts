// One walk through the API; each step says what it saw. README.md, "The tour", has every value used here.

import { isDeepStrictEqual } from "node:util";

import { type Recalld, responses, unary } from "./connection.js";
import { added, failure, given, ids, type Json, memory as remembered, message, seqs, session, user } from "./shown.js";
import type { Timestamp } from "./stubs/google/protobuf/timestamp.js";
import { PurgeRequest, type PurgeResponse } from "./stubs/recall/v1/admin.js";
import {
  AddMemoryRequest,
  GetMemoryRequest,
  GetMessageRequest,
  type Message,
  SearchMemoryRequest,
} from "./stubs/recall/v1/memory.js";
import {
  CreateSessionRequest,
  DeleteSessionRequest,
  GetSessionRequest,
  ListSessionsRequest,
  type Session,
  SessionFilter,
  StreamSessionsRequest,
  type StreamSessionsResponse,
  UpdateSessionRequest,
} from "./stubs/recall/v1/session.js";
import { CreateUserRequest } from "./stubs/recall/v1/user.js";

const SESSION_ID = "tour-Zürich-東京";
const USER_ID = "user-łódź";
const REQUEST_ID = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b01";
const MESSAGE_ID = "5f0c6a52-8d1e-4c55-9f57-0d5a3a1f6b02";
const PAGE_IDS = ["page-1", "page-2", "page-3", "page-4", "page-5"];
const PAGES = SessionFilter.create({ metadata: { kind: "page" } });
const CHUNKS = { filter: PAGES, chunkSize: 2 };

const METADATA = {
  string: "Größe",
  empty: "",
  integer: 42,
  negative: -7,
  fraction: 0.1,
  largest: Number.MAX_SAFE_INTEGER,
  yes: true,
  no: false,
  nothing: null,
  nested: { inner: { kept: "yes", gone: "soon" }, empty: {} },
  list: [1, "two", null, false, [3.5], { four: 4 }, []],
};
const PATCH = {
  integer: null,
  nested: { inner: { gone: null, added: 1.5 } },
  list: ["replaced"],
  new: { ключ: "значение" },
};
const MESSAGES = [
  {
    messageId: MESSAGE_ID,
    role: "user",
    content: "Grüße aus Zürich, 東京, 🗼👩\u200d👩\u200d👧, e\u0301, שלום, مرحبا",
    metadata: { languages: ["de", "ja", "he", "ar"] },
    tokenCount: 42,
  },
  { role: "assistant", content: "Take an umbrella.", metadata: { model: { name: "tiny", temperature: 0.25 } } },
  { role: "user" },
  { role: "наблюдатель", content: 'one\ntwo\t"three" \\ four' },
];

/** Every step in its order, by name. */
export async function tour(recalld: Recalld): Promise<Json> {
  return {
    ...(await writeAndRead(recalld)),
    ...(await userAndMetadata(recalld)),
    ...(await search(recalld)),
    ...(await listAndStream(recalld)),
    ...(await refusals(recalld)),
    ...(await deleteAndRevive(recalld)),
    ...(await purge(recalld)),
  };
}

async function writeAndRead({ memory }: Recalld): Promise<Json> {
  const request = AddMemoryRequest.create({
    sessionId: SESSION_ID,
    messages: MESSAGES,
    metadata: METADATA,
    requestId: REQUEST_ID,
  });
  const first = await unary(memory, memory.addMemory, request);
  const repeated = await unary(memory, memory.addMemory, request);
  const whole = await unary(memory, memory.getMemory, GetMemoryRequest.create({ sessionId: SESSION_ID }));
  const newest = await unary(memory, memory.getMemory, GetMemoryRequest.create({ sessionId: SESSION_ID, lastN: 2 }));
  const reread: Message[] = [];
  for (const { messageId } of first.messages) {
    const get = GetMessageRequest.create({ sessionId: SESSION_ID, messageId });
    reread.push(given((await unary(memory, memory.getMessage, get)).message));
  }
  const times = first.messages.map(({ createTime }) => given(createTime));
  return {
    add: {
      ...added(first),
      keeps_message_id: first.messages[0].messageId === MESSAGE_ID,
      distinct_message_ids: new Set(first.messages.map(({ messageId }) => messageId)).size,
      whole_microseconds: times.every(({ nanos }) => nanos % 1000 === 0),
      create_times_in_order: neverFalls(times.map(nanosOf)),
    },
    repeat: { ...added(repeated), same_answer: isDeepStrictEqual(repeated, first) },
    get_memory: remembered(whole),
    newest: { seqs: seqs(newest.messages) },
    get_message: {
      same_as_get_memory: isDeepStrictEqual(reread, whole.messages),
      same_create_times: isDeepStrictEqual(reread.map(({ createTime }) => createTime), times),
      update_time_is_create_time: reread.every((each) => isDeepStrictEqual(each.updateTime, each.createTime)),
    },
  };
}

async function userAndMetadata(recalld: Recalld): Promise<Json> {
  const { users, sessions } = recalld;
  const ada = CreateUserRequest.create({
    userId: USER_ID,
    email: "ada@example.com",
    firstName: "Ada",
    lastName: "Łódzka",
    metadata: { plan: "pro" },
  });
  const created = given((await unary(users, users.createUser, ada)).user);
  const attached = await update(recalld, UpdateSessionRequest.create({ sessionId: SESSION_ID, userId: USER_ID }));
  const merged = await update(recalld, UpdateSessionRequest.create({ sessionId: SESSION_ID, metadata: PATCH }));
  const late = { sessionId: SESSION_ID, metadata: { late: true }, etag: attached.etag };
  return {
    create_user: user(created),
    attach: session(attached),
    merge: { session: session(merged), etag_changed: merged.etag !== attached.etag },
    etag_mismatch: await failure(unary(sessions, sessions.updateSession, UpdateSessionRequest.create(late))),
  };
}

async function search(recalld: Recalld): Promise<Json> {
  const find = async (request: SearchMemoryRequest) =>
    (await unary(recalld.memory, recalld.memory.searchMemory, request)).results;
  const seqsOf = async (request: SearchMemoryRequest) =>
    seqs((await find(request)).map((result) => given(result.message)));

  const ofUser = SearchMemoryRequest.create({ query: "umbrella", userId: USER_ID });
  const ofRole = SearchMemoryRequest.create({ query: "umbrella", sessionId: SESSION_ID, roles: ["user"] });
  const everywhere = await find(SearchMemoryRequest.create({ query: "umbrella" }));
  const found = {
    everywhere: everywhere.map((result) => message(given(result.message))),
    scores_positive: everywhere.every(({ score }) => score > 0),
    of_user: await seqsOf(ofUser),
    of_role: await seqsOf(ofRole),
  };
  const detach = UpdateSessionRequest.create({ sessionId: SESSION_ID, updateMask: ["user_id"] });
  const detached = await update(recalld, detach);
  return { search: found, detach: { session: session(detached), of_user: await seqsOf(ofUser) } };
}

async function listAndStream(recalld: Recalld): Promise<Json> {
  const { sessions } = recalld;
  const created: Session[] = [];
  for (const [index, sessionId] of PAGE_IDS.entries()) {
    const request = CreateSessionRequest.create({ sessionId, metadata: { kind: "page", number: index + 1 } });
    created.push(given((await unary(sessions, sessions.createSession, request)).session));
  }
  return {
    list_sessions: { pages: await pages(recalld) },
    create_time_filter: await createTimeFilter(recalld, given(created[2].createTime)),
    stream_sessions: { chunks: await chunks(recalld) },
    resume_stream: await resumeStream(recalld),
  };
}

async function pages({ sessions }: Recalld): Promise<string[][]> {
  const seen: string[][] = [];
  const request = ListSessionsRequest.create({ filter: PAGES, pageSize: 2 });
  do {
    const page = await unary(sessions, sessions.listSessions, request);
    seen.push(ids(page.sessions));
    request.pageToken = page.nextPageToken;
  } while (request.pageToken);
  return seen;
}

/** Times to the microsecond, there and back: half-open ranges that begin or end at the third page, and just past. */
async function createTimeFilter({ sessions }: Recalld, third: Timestamp): Promise<Json> {
  const listed = async (range: Partial<SessionFilter>) => {
    const request = ListSessionsRequest.create({ filter: { ...PAGES, ...range } });
    return ids((await unary(sessions, sessions.listSessions, request)).sessions);
  };
  const nanos = nanosOf(third) + 1_000n;
  const later = { seconds: nanos / 1_000_000_000n, nanos: Number(nanos % 1_000_000_000n) };
  return {
    from_third: await listed({ createTimeFrom: third }),
    from_a_microsecond_later: await listed({ createTimeFrom: later }),
    to_third: await listed({ createTimeTo: third }),
    to_a_microsecond_later: await listed({ createTimeTo: later }),
  };
}

async function chunks({ sessions }: Recalld, resumeToken = ""): Promise<string[][]> {
  const seen: string[][] = [];
  const request = StreamSessionsRequest.create({ ...CHUNKS, resumeToken });
  for await (const chunk of responses(sessions.streamSessions(request))) {
    seen.push(ids(chunk.sessions));
  }
  return seen;
}

async function resumeStream(recalld: Recalld): Promise<Json> {
  let first: StreamSessionsResponse | undefined;
  for await (first of responses(recalld.sessions.streamSessions(StreamSessionsRequest.create(CHUNKS)))) {
    break;
  }
  const { sessions, resumeToken } = given(first);
  return { before: ids(sessions), after: await chunks(recalld, resumeToken) };
}

async function refusals({ memory }: Recalld): Promise<Json> {
  const append = (expectedLastSeq: bigint) => {
    const messages = [{ role: "user", content: "Only if nobody else wrote." }];
    const request = AddMemoryRequest.create({ sessionId: SESSION_ID, messages, expectedLastSeq });
    return unary(memory, memory.addMemory, request);
  };
  const messages = [{ role: "user" }, { content: "Who?" }];
  const nameless = AddMemoryRequest.create({ sessionId: SESSION_ID, messages });
  return {
    seq_mismatch: await failure(append(3n)),
    seq_mismatch_at_zero: await failure(append(0n)),
    seq_match: added(await append(4n)),
    invalid_field: await failure(unary(memory, memory.addMemory, nameless)),
  };
}

async function deleteAndRevive({ sessions, memory }: Recalld): Promise<Json> {
  const get = GetSessionRequest.create({ sessionId: SESSION_ID });
  const read = GetMemoryRequest.create({ sessionId: SESSION_ID });
  const back = AddMemoryRequest.create({ sessionId: SESSION_ID, messages: [{ role: "user", content: "I am back." }] });
  const remove = DeleteSessionRequest.create({ sessionId: SESSION_ID });
  return {
    delete_session: session(given((await unary(sessions, sessions.deleteSession, remove)).session)),
    not_found: await failure(unary(sessions, sessions.getSession, get)),
    memory_of_deleted: remembered(await unary(memory, memory.getMemory, read)),
    revive: added(await unary(memory, memory.addMemory, back)),
    memory_of_revived: remembered(await unary(memory, memory.getMemory, read)),
  };
}

/** Removes the last of the pages, and the messages that the revived session had before. */
async function purge({ sessions, admin }: Recalld): Promise<Json> {
  const sessionId = PAGE_IDS[4];
  const get = GetSessionRequest.create({ sessionId, showDeleted: true });
  await unary(sessions, sessions.deleteSession, DeleteSessionRequest.create({ sessionId }));
  const kept = given((await unary(sessions, sessions.getSession, get)).session);

  const progress: PurgeResponse[] = [];
  const everything = PurgeRequest.create({ olderThan: { seconds: 0n, nanos: 0 }, batchSize: 2 });
  for await (const response of responses(admin.purge(everything))) {
    progress.push(response);
  }
  const end = given(progress.at(-1));
  return {
    show_deleted: session(kept),
    purge: {
      sessions: String(end.sessions),
      messages: String(end.messages),
      users: String(end.users),
      several_responses: progress.length > 1,
      never_goes_back: neverFalls(progress.map((each) => each.sessions + each.messages + each.users)),
      only_the_last_is_done: progress.every((each) => each.done === (each === end)),
    },
    purged: await failure(unary(sessions, sessions.getSession, get)),
  };
}

async function update({ sessions }: Recalld, request: UpdateSessionRequest): Promise<Session> {
  return given((await unary(sessions, sessions.updateSession, request)).session);
}

function nanosOf({ seconds, nanos }: Timestamp): bigint {
  return seconds * 1_000_000_000n + BigInt(nanos);
}

function neverFalls(values: bigint[]): boolean {
  return values.every((value, index) => index === 0 || values[index - 1] <= value);
}
