// Many AddMemory calls, each repeated under its request_id until it is known to have succeeded.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { type ServiceError, status } from "@grpc/grpc-js";

import { unary } from "./connection.js";
import { AddMemoryRequest, type MemoryServiceClient } from "./stubs/recall/v1/memory.js";

const CONCURRENCY = 16;
const SESSIONS = 10;
const GIVE_UP_MS = 60_000;
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 1_000;

// After these the outcome is unknown, or the server asks to come again.
const REPEAT = [status.UNAVAILABLE, status.RESOURCE_EXHAUSTED, status.ABORTED, status.DEADLINE_EXCEEDED];

/** Makes the calls and resolves to how many the server acknowledged; rejects with what no repetition mends. */
export async function load(memory: MemoryServiceClient, calls: number): Promise<number> {
  const numbers = Array(calls).keys(); // shared: each worker takes the next
  let acknowledged = 0;
  const worker = async () => {
    for (const number of numbers) {
      if (await add(memory, request(number))) {
        acknowledged += 1;
      }
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
  return acknowledged;
}

function request(number: number): AddMemoryRequest {
  return AddMemoryRequest.create({
    sessionId: `load-${number % SESSIONS}`,
    messages: [
      { role: "user", content: `question ${number}` },
      { role: "assistant", content: `answer ${number}` },
    ],
    requestId: randomUUID(),
  });
}

/** Whether the server acknowledged the request in time. */
async function add(memory: MemoryServiceClient, request: AddMemoryRequest): Promise<boolean> {
  const giveUp = performance.now() + GIVE_UP_MS;
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    try {
      await unary(memory, memory.addMemory, request);
      return true;
    } catch (error) {
      if (!REPEAT.includes((error as ServiceError).code)) {
        throw error;
      }
    }
    if (performance.now() + pause > giveUp) {
      return false;
    }
    await sleep(Math.random() * pause); // spread out, so that refused callers do not come back all at once
  }
}
