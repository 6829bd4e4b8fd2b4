// What the tour saw, as JSON: the shapes that README.md defines.

import { codeOf, detailsOf, isServiceError } from "./errors.js";
import type { AddMemoryResponse, GetMemoryResponse, Message } from "./stubs/recall/v1/memory.js";
import type { Session } from "./stubs/recall/v1/session.js";
import type { User } from "./stubs/recall/v1/user.js";

export type Json = Record<string, unknown>;

/** A response's message field, which the generated types leave optional though the server always sets it. */
export function given<Value>(value: Value | undefined): Value {
  if (value === undefined) {
    throw new Error("the response lacks a field that is always set");
  }
  return value;
}

export function session(seen: Session): Json {
  return {
    session_id: seen.sessionId,
    user_id: seen.userId,
    metadata: seen.metadata ?? null,
    message_count: String(seen.messageCount),
    last_seq: String(seen.lastSeq),
    has_delete_time: seen.deleteTime !== undefined,
    has_purge_time: seen.purgeTime !== undefined,
  };
}

export function message(seen: Message): Json {
  return {
    session_id: seen.sessionId,
    seq: String(seen.seq),
    role: seen.role,
    content: seen.content,
    metadata: seen.metadata ?? null,
    token_count: seen.tokenCount,
  };
}

export function user(seen: User): Json {
  return {
    user_id: seen.userId,
    email: seen.email,
    first_name: seen.firstName,
    last_name: seen.lastName,
    metadata: seen.metadata ?? null,
    has_delete_time: seen.deleteTime !== undefined,
  };
}

export function added(response: AddMemoryResponse): Json {
  return {
    session_created: response.sessionCreated,
    session_undeleted: response.sessionUndeleted,
    seqs: seqs(response.messages),
  };
}

export function memory(response: GetMemoryResponse): Json {
  return {
    session: response.session ? session(response.session) : null,
    messages: response.messages.map(message),
  };
}

export function seqs(messages: { seq: bigint }[]): string[] {
  return messages.map(({ seq }) => String(seq));
}

export function ids(sessions: Session[]): string[] {
  return sessions.map(({ sessionId }) => sessionId);
}

/** What the call is refused with. */
export async function failure(call: Promise<unknown>): Promise<Json> {
  try {
    await call;
  } catch (error) {
    if (!isServiceError(error)) {
      throw error;
    }
    const { errorInfo, badRequest, resourceInfo } = detailsOf(error);
    return {
      code: codeOf(error),
      reason: errorInfo?.reason ?? "",
      domain: errorInfo?.domain ?? "",
      metadata: errorInfo?.metadata ?? {},
      fields: badRequest?.fieldViolations.map(({ field }) => field) ?? [],
      resource: resourceInfo ? { type: resourceInfo.resourceType, name: resourceInfo.resourceName } : null,
    };
  }
  throw new Error("the call should have failed");
}
